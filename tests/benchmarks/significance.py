"""`python -m tests.benchmarks.significance [--draws N]`: how often the paired comparison of two models finds a
difference that is not there, and how often one that is, as Markdown tables.

Both models are drawn by `tests.answers`: patients and cells that are hard for both, and some that are hard for one. The
first is better by a known difference of accuracy, or by none: then both are draws of one. Two trainings of one recipe
may also differ as a whole (`--seed-spread`): those two models do differ, and the tests, which speak of the models at
hand, say so more often than of the recipe.
"""

import argparse
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from tests.answers import USUAL, Spread, draw_models
from training.significance import Pair, compare_pair

PATIENTS = (8, 12, 20, 40, 80)  # half of them healthy
GAINS = (0.0, 0.02, 0.05, 0.10)
METRICS = ("mean_accuracy", "weighted_f1", "auroc", "specificity_over_healthy", "worst_quarter_accuracy")
ACCURACY = 0.84  # of the second model
CELLS = 30
LEVEL = 0.05


def distance(accuracy: float, spread: Spread) -> float:
    """Of the classes, at which a model of `tests.answers` has this accuracy on average."""
    variance = spread.patient**2 + spread.patient_model**2 + spread.cell**2 + spread.cell_model**2 + spread.seed**2
    return NormalDist().inv_cdf(accuracy) * variance**0.5


def found(patients: int, gain: float, *, draws: int, permutations: int, resamples: int, spread: Spread, seed: int = 1):
    """Per metric, shares of the draws with p at or below the level, and with an interval that leaves out zero."""
    random = np.random.default_rng((seed, patients, round(1000 * gain)))
    distances = [distance(ACCURACY + gain, spread), distance(ACCURACY, spread)]
    tested, left_out = dict.fromkeys(METRICS, 0), dict.fromkeys(METRICS, 0)
    for number in range(draws):
        pair = Pair(*draw_models(random, distances, patients=patients, cells=CELLS, spread=spread))
        rows = compare_pair(pair, METRICS, resamples=resamples, permutations=permutations, seed=number)
        for metric, (difference, test) in rows.items():
            tested[metric] += test.p <= LEVEL
            left_out[metric] += not difference.low <= 0 <= difference.high
    return {metric: (tested[metric] / draws, left_out[metric] / draws) for metric in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--permutations", type=int, default=999)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--gains", type=float, nargs="+", default=GAINS)
    parser.add_argument("--seed-spread", type=float, default=0.0)
    given = parser.parse_args()
    spread = replace(USUAL, seed=given.seed_spread)
    print(
        f"Percentage of {given.draws} draws in which the permutation test has p <= {LEVEL} / the 95 % interval of the "
        f"bootstrap leaves out zero. Accuracy of the second model {ACCURACY}, about {CELLS} cells a patient; spread of "
        f"patients {spread.patient}, of patients for one model {spread.patient_model}, of cells {spread.cell}, of "
        f"cells for one model {spread.cell_model}, of a training {spread.seed}.\n"
    )
    for gain in given.gains:
        print(f"| accuracy +{gain:.2f}, patients | {' | '.join(name.replace('_', ' ') for name in METRICS)} |")
        print(f"|---|{'---|' * len(METRICS)}")
        for patients in PATIENTS:
            shares = found(
                patients, gain, draws=given.draws, permutations=given.permutations, resamples=given.resamples,
                spread=spread,
            )  # fmt: skip
            entries = [f"{100 * test:.1f} / {100 * interval:.1f}" for test, interval in shares.values()]
            print(f"| {patients} | {' | '.join(entries)} |", flush=True)
        print()


if __name__ == "__main__":
    main()
