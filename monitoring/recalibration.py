"""What a version's probabilities are worth among cells as they come, for estimates of its performance.

A version's temperature is fitted with both classes weighing the same (`training.calibration`), since the mix of a
caller's cells is not known. Its probabilities then say what they would mean where half of the patients are ill. An
estimate needs what they mean where they are used: CBPE takes for granted that they are calibrated on the cells of the
window. So their log odds are fitted anew, by a slope and a shift (Platt 1999, Advances in Large Margin Classifiers),
to the truth of the version's reference patients, answered by what had not seen them, each patient weighing the same.
Labels and decisions stay what they were.

A normal distribution around the version's own calibration (the logarithm of the slope, and the shift, with a standard
deviation of 1 each) holds both where few patients are known: it counts as much as one patient.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES, POSITIVE
from blastwatch.intervals import Floats

FARTHEST = 1e-6  # from 0 and 1 that a probability may lie, so that its log odds are a number


@dataclass(frozen=True)
class Recalibration:
    """slope, shift: of the log odds of a blast."""

    slope: float = 1.0
    shift: float = 0.0

    def __call__(self, probability: Floats) -> Floats:
        """Probability of a blast among cells as they come, of one that the version gave; both float64 (n,)."""
        if self == AS_GIVEN:
            return np.asarray(probability, dtype=np.float64)
        from scipy.special import expit

        return np.asarray(expit(self.slope * _log_odds(probability) + self.shift))


AS_GIVEN = Recalibration()


def recalibrate(reference: pd.DataFrame) -> Recalibration:
    """Fit to a version's reference.

    Args:
        reference: cells answered by what had not seen their patients: probability, label (the truth) and group. Where
            they are all of one class nothing is fitted.
    """
    blast = (reference["label"] == CLASS_NAMES[POSITIVE]).to_numpy()
    if blast.all() or not blast.any():
        return AS_GIVEN
    weights = 1 / reference.groupby("group")["label"].transform("size").to_numpy(np.float64)
    return fit(reference["probability"].to_numpy(np.float64), blast, weights)


def fit(probability: Floats, blast: NDArray[np.bool_], weights: Floats) -> Recalibration:
    """The most probable slope and shift.

    Args:
        probability: of a blast as the version gave it, shape (n,); blast: whether it is one; weights: of the cells,
            such that those of a patient add up to 1.
    """
    from scipy.optimize import minimize

    odds, signs = _log_odds(probability), np.where(blast, -1.0, 1.0)

    def loss(values: Floats) -> float:
        wrong = np.logaddexp(0, signs * (np.exp(values[0]) * odds + values[1]))
        return float((weights * wrong).sum() + (values**2).sum() / 2)

    found = minimize(loss, np.zeros(2)).x
    return Recalibration(float(np.exp(found[0])), float(found[1]))


def _log_odds(probability: Floats) -> Floats:
    from scipy.special import logit

    return np.asarray(logit(np.clip(np.asarray(probability, dtype=np.float64), FARTHEST, 1 - FARTHEST)))
