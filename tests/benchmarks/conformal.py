"""`python -m tests.benchmarks.conformal [--draws N]`: what the three-way decision covers of patients it has never seen,
as a Markdown table, by number of calibration patients and by how much patients differ (`tests.answers`)."""

import argparse

import numpy as np

from tests.answers import Spread, draw_models
from training.conformal import METHODS, attainable, expected_coverage, fit_conformal
from training.figures import plain, units_of

PATIENTS = (4, 9, 20, 40)
SPREADS = (0.0, 1.0, 2.0)
ERROR = 0.1
CELLS = 30
TESTED = 10  # new patients of each label
NAMES = ("coverage_over_healthy", "referred", "accuracy_on_decided")


def arrays(table):
    return table["probability"].to_numpy(), (table["label"] == "all").to_numpy().astype(int), table["group"].to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    print(f"{given.draws} calibrations, each asked of {TESTED} new patients a label; about {CELLS} cells a patient.\n")
    print("| calibration patients a label | spread of patients | coverage aimed at | subsampled: coverage (in its "
          "interval), referred, accuracy on decided | pooled |")  # fmt: skip
    print("|---|---|---|---|---|")
    for patients in PATIENTS:
        ends = expected_coverage(patients, TESTED, ERROR)
        for spread in SPREADS:
            found = {method: [] for method in METHODS}
            random, world = np.random.default_rng((patients, round(spread))), Spread(patient=spread)
            for _ in range(given.draws):
                (held,) = draw_models(random, [0.8], patients=2 * patients, cells=CELLS, spread=world)
                (tested,) = draw_models(random, [0.8], patients=2 * TESTED, cells=CELLS, spread=world)
                for method, rows in found.items():
                    limits = fit_conformal(*arrays(held), error=ERROR, method=method).thresholds
                    rows.append([plain(units_of(tested, thresholds=limits), NAMES)[name] for name in NAMES])
            entries = " | ".join(entry(np.array(rows), *ends) for rows in found.values())
            print(f"| {patients} | {spread:.0f} | {1 - attainable(patients, ERROR):.2f} | {entries} |", flush=True)


def entry(rows: np.ndarray, low: float, high: float) -> str:
    covered, referred, decided = np.nanmean(rows, axis=0)
    inside = ((rows[:, 0] >= low - 1e-9) & (rows[:, 0] <= high + 1e-9)).mean()
    return f"{covered:.3f} ({100 * inside:.0f} %), {referred:.2f}, {decided:.2f}"


if __name__ == "__main__":
    main()
