"""`python -m tests.benchmarks.temperatures [--draws 150]`: the temperature of few calibration patients.

Patients are drawn whose cells lie on the right side of zero by a margin in log odds, which differs from patient to
patient and from cell to cell; the network states its margins too high or too low, so that another temperature is best.
Of so many patients of each label one is fitted (`likeliest`: by these alone; `steadied`: as `blastwatch evaluate` does
it). Printed: the cross-entropy of 300 new patients of each label, means over the draws, and how often the likeliest is
the lowest that is tried.
"""

import argparse
import itertools

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from training.calibration import BORDER, HIGHEST, LOWEST, fit_temperature, patient_weights, steadied_temperature

CELLS, NEW = 30, 300  # of a patient; new patients of each label
NOISE = 2.0  # spread of the margins of one patient's cells
GRID = np.linspace(np.log(LOWEST / 4), np.log(4 * HIGHEST), 481)
WORLDS = ((0.75, 1.0), (0.97, 0.8))
"""Share of the cells that are right, and the spread of patients' mean margins."""


def draw(random: np.random.Generator, patients: int, world: tuple[float, float]) -> NDArray[np.float64]:
    """Margins of the cells of so many patients of each label, towards the right label, (2 * patients, CELLS)."""
    right, spread = world
    means = NOISE * norm.ppf(right) + spread * random.normal(size=(2 * patients, 1))
    return np.asarray(means + NOISE * random.normal(size=(2 * patients, CELLS)))


def loss_at(margins: NDArray[np.float64], log_temperature: float) -> float:
    return float(np.logaddexp(0.0, -margins * np.exp(-log_temperature)).mean())


def fitted(margins: NDArray[np.float64]) -> tuple[float, float]:
    """Both log temperatures."""
    patients = len(margins)
    labels = np.repeat(np.arange(patients) % 2, CELLS)
    groups = np.repeat(np.arange(patients), CELLS)
    odds = margins.ravel() * np.where(labels == 1, 0.5, -0.5)
    logits = np.stack([-odds, odds], axis=1)
    likeliest = fit_temperature(logits, labels, patient_weights(labels, groups))
    return float(np.log(likeliest)), float(np.log(steadied_temperature(logits, labels, groups)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=150)
    parser.add_argument("--patients", type=int, nargs="+", default=[1, 2, 3, 5, 10, 20], help="of each label")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.5, 1.0, 2.0, 3.0], help="the best ones")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    for world in WORLDS:
        new = draw(np.random.default_rng(asked.seed), NEW, world)
        losses = np.array([loss_at(new, place) for place in GRID])
        best = float(GRID[losses.argmin()])
        print(f"{world[0]:.0%} right, patients' spread {world[1]:g}, at the best temperature {losses.min():.3f}")
        told = [f"best {temperature:g}: likeliest, steadied" for temperature in asked.temperatures]
        print("| patients a label | likeliest is the lowest | " + " | ".join(told) + " |")
        print("|---" * (2 + len(told)) + "|")
        rows = {}
        for count, temperature in itertools.product(asked.patients, asked.temperatures):
            random, off = np.random.default_rng((asked.seed, count)), np.log(temperature) - best
            both = np.array([fitted(draw(random, count, world) * np.exp(off)) for _ in range(asked.draws)])
            rows[count, temperature] = (
                *(np.interp(both - off, GRID, losses).mean(axis=0)),
                (both[:, 0] <= np.log(LOWEST * BORDER)).mean(),
            )
        for count, row in pd.Series(rows).unstack().iterrows():
            lowest = " to ".join(f"{share:.0%}" for share in (min(r[2] for r in row), max(r[2] for r in row)))
            print(f"| {count} | {lowest} | " + " | ".join(f"{r[0]:.3f}, {r[1]:.3f}" for r in row) + " |", flush=True)


if __name__ == "__main__":
    main()
