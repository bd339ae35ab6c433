"""`python -m tests.benchmarks.noninferiority [--draws N] [--spread S]`: how often the non-inferiority gate lets a worse
model through and holds an equal or better one back, as Markdown tables.

Patients are drawn, not taken from any data. Each has an accuracy of its own with the champion, a beta variable of mean
`ACCURACY`, and one with the candidate, of that mean plus the true difference; the two go together (a Gaussian copula):
who is hard for one model is hard for the other. A patient's cells are right or wrong by these accuracies, for both
models at once and not independently either: the same cell is hard for both. The gate's own `lower_bound` judges.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from blastwatch.noninferiority import lower_bound

PATIENTS = (3, 5, 10, 20, 40, 80)
MARGINS = (0.02, 0.05, 0.10)
CONFIDENCES = (0.8, 0.9, 0.95)
ACCURACY = 0.88  # mean over patients, about what independent results on C-NMC by patient reach
CELLS = 60  # mean number of a patient's cells; they vary from a few to several times that, as in C-NMC
GRID = 2048
RARE = ((0.057, 0.88), (0.1, 0.5), (0.114, 0.88))
"""Shares of patients whom the candidate loses, and what accuracy it loses there: all of `ACCURACY`, or about half."""
ELSEWHERE = 0.02  # standard deviation of d_i of the other patients, who lose nothing on average


@dataclass(frozen=True)
class World:
    """spread: intraclass correlation of a patient's cells; 0.1 is a standard deviation of 0.10 between patients.
    together: correlation of a patient's accuracies with both models; same: that of both models' answers to one cell."""

    spread: float = 0.1
    together: float = 0.8
    same: float = 0.5


def accuracies(normal: NDArray[np.float64], mean: float, spread: float) -> NDArray[np.float64]:
    """Beta variables of a mean and an intraclass correlation out of standard normal ones."""
    total = 1 / spread - 1
    levels = (np.arange(GRID) + 0.5) / GRID
    quantiles = stats.beta.ppf(levels, mean * total, (1 - mean) * total)
    return np.interp(stats.norm.cdf(normal), levels, quantiles)


def differences(
    world: World, delta: float, patients: int, draws: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """d_i of the patients of one label, shape (draws, patients)."""
    first, other = random.standard_normal((2, draws, patients))
    second = world.together * first + np.sqrt(1 - world.together**2) * other
    champion = accuracies(first, ACCURACY, world.spread)
    candidate = accuracies(second, ACCURACY + delta, world.spread)
    # Both right: what chance gives and what the cell adds, within what the two accuracies allow.
    both = champion * candidate + world.same * np.sqrt(champion * (1 - champion) * candidate * (1 - candidate))
    both = np.clip(both, np.maximum(0, champion + candidate - 1), np.minimum(champion, candidate))
    gained, lost = candidate - both, champion - both
    cells = 5 + random.negative_binomial(2, 2 / (2 + CELLS - 5), (draws, patients))
    differing = random.binomial(cells, np.clip(gained + lost, 0, 1))
    share = np.divide(gained, gained + lost, out=np.full_like(gained, 0.5), where=gained + lost > 0)
    better = random.binomial(differing, np.clip(share, 0, 1))
    return (2 * better - differing) / cells


def passing(world: World, delta: float, patients: int, draws: int, seed: int) -> dict[tuple[float, float], float]:
    """Share of the draws that pass, by margin and confidence."""
    random = np.random.default_rng((seed, patients, round((delta + 1) * 1000)))
    ill, healthy = (differences(world, delta, patients, draws, random) for _ in range(2))
    bounds = {confidence: lower_bound(ill, healthy, confidence=confidence)[1] for confidence in CONFIDENCES}
    return {(m, c): float((low >= -m - 1e-12).mean()) for c, low in bounds.items() for m in MARGINS}


def passing_rare(share: float, loss: float, patients: int, draws: int, seed: int, *, margin: float = 0.05) -> float:
    """Share of the draws that pass at a confidence of 95 %, where the whole loss falls on a share of the patients."""
    random = np.random.default_rng((seed, patients, round(share * 1000), round(loss * 1000)))

    def drawn() -> NDArray[np.float64]:
        others = ELSEWHERE * random.standard_normal((draws, patients))
        return np.where(random.random((draws, patients)) < share, -loss, others)

    return float((lower_bound(drawn(), drawn(), confidence=0.95)[1] >= -margin - 1e-12).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--spread", type=float, default=World.spread)
    parser.add_argument("--together", type=float, default=World.together)
    given = parser.parse_args()
    world = World(spread=given.spread, together=given.together)
    deltas = sorted({-0.10, -0.02, 0.0, 0.02, *(-margin for margin in MARGINS)})
    found = {
        (patients, delta): passing(world, delta, patients, given.draws, given.seed)
        for patients in PATIENTS
        for delta in deltas
    }
    print(
        f"Percentage of {given.draws} simulated promotions that pass, by the true difference. Accuracy {ACCURACY}, "
        f"intraclass correlation {world.spread}; correlation of a patient's accuracies with both models "
        f"{world.together}, of their answers to a cell {world.same}.\n"
    )
    print(f"Each entry: at a confidence of {' / '.join(f'{c:.0%}' for c in CONFIDENCES)}.\n")
    for margin in MARGINS:
        shown = [delta for delta in deltas if delta in (-0.10, -margin, -0.02, 0.0, 0.02)]
        print(f"| margin {margin:.2f}, patients of each label | {' | '.join(f'{d:+.2f}' for d in shown)} |")
        print(f"|---|{'---|' * len(shown)}")
        for patients in PATIENTS:
            entries = [
                " / ".join(f"{100 * found[patients, delta][margin, confidence]:.1f}" for confidence in CONFIDENCES)
                for delta in shown
            ]
            print(f"| {patients} | {' | '.join(entries)} |")
        print()
    counts = [patients for patients in PATIENTS if patients > 3]
    print(f"| margin 0.05 at 95 %, loss in rare patients: patients of each label | {' | '.join(map(str, counts))} |")
    print(f"|---|{'---|' * len(counts)}")
    for rare, loss in RARE:
        rows = [f"{100 * passing_rare(rare, loss, patients, given.draws, given.seed):.1f}" for patients in counts]
        print(
            f"| loses {loss:.2f} on {rare:.1%} of patients (true difference {-rare * loss:+.2f}) | {' | '.join(rows)} |"
        )


if __name__ == "__main__":
    main()
