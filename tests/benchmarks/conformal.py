"""`python -m tests.benchmarks.conformal [--draws N]`: what the three-way decision covers of patients it has never seen,
as a Markdown table, by number of calibration patients and by how much patients differ (`tests.answers`)."""

import argparse

import numpy as np

from tests.answers import Spread, draw_models
from training.conformal import expected_coverage, fit_conformal, promised
from training.figures import plain, units_of

PATIENTS = (4, 9, 20, 40)
SPREADS = (0.0, 1.0, 2.0)
ERROR = 0.1
CELLS = 30
TESTED = 10  # new patients of each label
NAMES = ("coverage_over_healthy", "referred", "accuracy_on_decided", "accuracy")


def arrays(table):
    return table["probability"].to_numpy(), (table["label"] == "all").to_numpy().astype(int), table["group"].to_numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    given = parser.parse_args()
    print(f"{given.draws} calibrations, each asked of {TESTED} new patients a label; about {CELLS} cells a patient.\n")
    print("| calibration patients a label | spread of patients | promised coverage | mean coverage | expected interval "
          "(share inside) | referred | accuracy | on decided |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for patients in PATIENTS:
        low, high = expected_coverage(patients, TESTED, ERROR)
        for spread in SPREADS:
            random, rows = np.random.default_rng((patients, round(spread))), []
            for _ in range(given.draws):
                world = {"cells": CELLS, "spread": Spread(patient=spread)}
                (held,) = draw_models(random, [0.8], patients=2 * patients, **world)
                (tested,) = draw_models(random, [0.8], patients=2 * TESTED, **world)
                limits = fit_conformal(*arrays(held), error=ERROR).thresholds
                rows.append([plain(units_of(tested, thresholds=limits), NAMES)[name] for name in NAMES])
            found = np.array(rows)
            covered, referred, decided, accuracy = np.nanmean(found, axis=0)
            inside = ((found[:, 0] >= low - 1e-9) & (found[:, 0] <= high + 1e-9)).mean()
            print(
                f"| {patients} | {spread:.0f} | {1 - promised(patients, ERROR):.2f} | {covered:.3f} | "
                f"{low:.2f} to {high:.2f} ({100 * inside:.1f} %) | {referred:.2f} | {accuracy:.2f} | {decided:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
