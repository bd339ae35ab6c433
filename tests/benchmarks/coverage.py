"""`python -m tests.benchmarks.coverage [--draws N]`: how often the 95 % interval of a figure holds the truth, how often
the truth lies below or above it, and how wide it is, as Markdown tables.

Patients and their cells are drawn by `tests.answers`. The truth is the figure over 20,000 patients of each label, drawn
alike. Both ends are by `training.intervals`, as `blastwatch evaluate` gives them.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from blastwatch.intervals import draw_patients
from tests.answers import USUAL, Spread, draw_models
from tests.benchmarks.significance import CELLS, distance
from training.figures import plain, units_of
from training.intervals import intervals

PATIENTS = (2, 3, 4, 5, 10, 18, 40)  # of each label
FIGURES = ("mean_accuracy", "specificity_over_healthy", "auroc", "majority_accuracy", "worst_quarter_accuracy")
LARGE, TABLES = 400, 100  # patients of a table of the truth, and how many tables
HARD = 0.1  # share of the patients whom a model reads hardly better than chance

Draw = Callable[[np.random.Generator, int], pd.DataFrame]


def alike(random: np.random.Generator, patients: int, *, accuracy: float, spread: Spread) -> pd.DataFrame:
    (table,) = draw_models(random, [distance(accuracy, spread)], patients=patients, cells=CELLS, spread=spread)
    return table


def some_hard(random: np.random.Generator, patients: int) -> pd.DataFrame:
    """One patient of ten is read with an accuracy of 0.5, the others with 0.9."""
    distances = [distance(accuracy, USUAL) for accuracy in (0.9, 0.5)]
    easy, hard = draw_models(random, distances, patients=patients, cells=CELLS, spread=USUAL)
    names = easy["group"].unique()
    return easy.where(~easy["group"].isin(names[random.random(len(names)) < HARD]), hard)


SHAPES: dict[str, Draw] = {
    "accuracy 0.84": partial(alike, accuracy=0.84, spread=USUAL),
    "accuracy 0.95": partial(alike, accuracy=0.95, spread=USUAL),
    "accuracy 0.84, patients differ twice as much": partial(alike, accuracy=0.84, spread=replace(USUAL, patient=1.2)),
    "one patient of ten at 0.5, the others at 0.9": some_hard,
}


def truth(draw: Draw) -> dict[str, float]:
    found = pd.DataFrame([plain(units_of(draw(np.random.default_rng((2, n)), LARGE)), FIGURES) for n in range(TABLES)])
    return {str(name): float(value) for name, value in found.mean().items()}


def covered(draw: Draw, known: dict[str, float], patients: int, *, draws: int, resamples: int) -> dict[str, np.ndarray]:
    """Per figure: shares of the draws with the truth in the interval, below and above it, and the mean width."""
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in FIGURES}
    for number in range(draws):
        table = draw(np.random.default_rng((1, patients, number)), 2 * patients)
        found = intervals(units_of(table), FIGURES, draw_patients(table, resamples=resamples, seed=number))
        for name, row in found.items():
            below, above = known[name] < row["low"], known[name] > row["high"]
            rows[name].append((not below and not above, below, above, row["high"] - row["low"]))
    return {name: np.mean(seen, axis=0) for name, seen in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=500)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--patients", type=int, nargs="+", default=PATIENTS)
    given = parser.parse_args()
    print(
        f"Percentage of {given.draws} draws whose 95 % interval holds the truth (truth below / above it), and its mean "
        f"width. About {CELLS} cells a patient.\n"
    )
    for shape, draw in SHAPES.items():
        known = truth(draw)
        print(f"| {shape}; patients of each label | {' | '.join(name.replace('_', ' ') for name in FIGURES)} |")
        print(f"|---|{'---|' * len(FIGURES)}")
        print(f"| truth | {' | '.join(f'{known[name]:.3f}' for name in FIGURES)} |")
        for patients in given.patients:
            found = covered(draw, known, patients, draws=given.draws, resamples=given.resamples)
            entries = [
                f"{100 * held:.1f} ({100 * below:.1f} / {100 * above:.1f}), {width:.2f}"
                for held, below, above, width in found.values()
            ]
            print(f"| {patients} | {' | '.join(entries)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
