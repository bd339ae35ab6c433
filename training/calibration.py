"""What is fitted on calibration patients alone: the temperature, and the probabilities at which a cell is decided."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import POSITIVE, Thresholds, probabilities

Floats = NDArray[np.floating]
BINS = 15


def fit_temperature(logits: Floats, labels: NDArray[np.int64], weights: Floats) -> float:
    """Temperature with the lowest weighted negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: shape (n, classes); labels: shape (n,); weights: shape (n,), such that every subject weighs the same.

    Returns:
        A value from 0.05 to 20.
    """
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        chosen = probabilities(logits, float(np.exp(log_temperature)))[rows, labels]
        return float(-(weights * np.log(np.maximum(chosen, 1e-12))).sum() / weights.sum())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20)), method="bounded")
    return float(np.exp(found.x))


def subject_weights(labels: NDArray[np.int64], subjects: NDArray[np.str_]) -> NDArray[np.float64]:
    """Every subject weighs the same within its class, both classes the same; they add up to 1."""
    frame = pd.DataFrame({"label": labels, "subject": subjects})
    within = 1.0 / frame.groupby(["label", "subject"])["label"].transform("size")
    return np.asarray(within / within.groupby(frame["label"]).transform("sum") / frame["label"].nunique(), dtype=float)


def fit_thresholds(blast: Floats, labels: NDArray[np.int64], weights: Floats, *, error: float) -> Thresholds:
    """Class-conditional split-conformal thresholds (Sadinle, Lei & Wasserman 2019, doi:10.1080/01621459.2017.1395341).

    At most `error` of the normal cells lie at or above `all`, and at most `error` of the blasts at or below `hem`,
    weighted by subject. Where the two would cross, no cell is referred and both are the point halfway between.
    """
    upper = _cut(blast[labels != POSITIVE], weights[labels != POSITIVE], error)
    lower = 1 - _cut(1 - blast[labels == POSITIVE], weights[labels == POSITIVE], error)
    if lower >= upper:
        middle = float(np.clip((lower + upper) / 2, 0, 1))
        return Thresholds(hem=middle, all=middle)
    return Thresholds(hem=float(np.clip(lower, 0, 1)), all=float(np.clip(upper, 0, 1)))


def _cut(values: Floats, mass: Floats, error: float) -> float:
    """The lowest value at or above which at most `error` of the mass lies; just over the highest if there is none."""
    order = np.argsort(values)
    ranked = values[order]
    above = np.array([mass[values >= value].sum() for value in ranked]) / mass.sum()
    allowed = ranked[above <= error]
    return float(allowed[0]) if len(allowed) else float(np.nextafter(ranked[-1], np.inf))


def expected_calibration_error(blast: Floats, truth: NDArray[np.bool_], *, bins: int = BINS) -> float:
    """Mean gap between probability and share of blasts over equal-width bins (Naeini et al. 2015, AAAI).

    Args:
        blast: probability of a blast, shape (n,); truth: whether it is one, shape (n,).

    Returns:
        From 0 (calibrated) to 1, on the probability of a blast as torchmetrics' binary calibration error has it.
    """
    return float(sum(row["weight"] * abs(row["probability"] - row["share"]) for row in reliability(blast, truth, bins)))


def reliability(blast: Floats, truth: NDArray[np.bool_], bins: int = BINS) -> list[dict[str, float]]:
    """Per bin that holds cells: mean probability, share of blasts, and share of all cells (`weight`)."""
    index = np.minimum((np.asarray(blast) * bins).astype(int), bins - 1)
    return [
        {
            "probability": float(blast[index == number].mean()),
            "share": float(truth[index == number].mean()),
            "weight": float((index == number).mean()),
        }
        for number in range(bins)
        if (index == number).any()
    ]
