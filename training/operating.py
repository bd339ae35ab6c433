"""The probability from which a cell is called a blast, chosen on calibration patients and never on those tested."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from blastwatch.decision import POSITIVE

RULES = ("youden", "sensitivity")
TIED = 1e-12


def choose_threshold(
    blast: NDArray[np.floating], labels: NDArray[np.int64], weights: NDArray[np.floating], *, rule: str, wanted: float
) -> float:
    """The operating threshold, halfway between two neighbouring calibration cells.

    Args:
        blast: probability of a blast, shape (n,); labels: positions in `CLASS_NAMES`, shape (n,); weights: shape (n,),
            such that every patient weighs the same.
        rule: `youden` has the highest sum of sensitivity and specificity (Youden 1950,
            doi:10.1002/1097-0142(1950)3:1<32::AID-CNCR2820030106>3.0.CO;2-3), of equal ones that nearest to one half;
            `sensitivity` has the highest threshold whose sensitivity is at least `wanted`.

    Returns:
        From 0 to 1; a cell is called a blast from it upwards.
    """
    values = np.unique(blast)
    thresholds = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2, [1.0]])
    sensitivity, false_alarms = (_at_or_above(blast[part], weights[part], thresholds)
                                 for part in (labels == POSITIVE, labels != POSITIVE))  # fmt: skip
    if rule == "sensitivity":
        return float(thresholds[sensitivity >= wanted - TIED].max())
    if rule != "youden":
        raise ValueError(f"Expected a rule out of {', '.join(RULES)} but got {rule!r}")
    gained = sensitivity - false_alarms
    best = thresholds[gained >= gained.max() - TIED]
    return float(best[np.abs(best - 0.5).argmin()])


def _at_or_above(blast: NDArray[Any], weights: NDArray[Any], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the weight at or above each threshold."""
    order = np.argsort(blast)
    below = np.concatenate([[0.0], np.cumsum(weights[order])])[np.searchsorted(blast[order], thresholds, "left")]
    return np.asarray(1 - below / weights.sum())
