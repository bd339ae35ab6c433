"""The temperature, fitted on patients unseen by what answered them, and how reliable the probabilities then are."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import probabilities
from blastwatch.errors import DataError
from blastwatch.package import OUT_OF_FOLD
from blastwatch.rounding import fixed
from training.figures import BINS

Floats = NDArray[np.floating]

CALIBRATED_ON = {
    "calibration": "calibration patients",
    OUT_OF_FOLD: "calibration patients and (answered by fits that had not seen them) training patients",
}
"""Of each value of evaluate.calibrate_on, whom card and report name."""

LOWEST, HIGHEST = 0.05, 20.0  # temperatures between which one is fitted
BORDER = 1.01  # within a factor of it the fit ended at a border, which it nears and never reaches
SPREAD = 1.0  # of the log temperature of networks, before any patient is asked
MOST_HEARD = 10  # cells of a patient that count as one observation each: more of them are alike


def fit_temperature(logits: Floats, labels: NDArray[np.int64], weights: Floats) -> float:
    """Temperature with the lowest weighted negative log-likelihood (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: shape (n, classes); labels: shape (n,); weights: shape (n,), such that every patient weighs the same.

    Returns:
        A value from `LOWEST` to `HIGHEST`.
    """
    return _fit(logits, labels, weights, pull=0.0)


def steadied_temperature(logits: Floats, labels: NDArray[np.int64], groups: NDArray[Any]) -> float:
    """Temperature for patients to come, from calibration patients who may be few.

    Of few patients the likeliest one is arbitrary, and too low where none of their cells was wrong. So it is the most
    probable one instead, where the log temperature of a network is normal around 0 with `SPREAD`, and a patient is as
    many observations as cells, up to `MOST_HEARD`. From five patients of a label on that changes next to nothing
    (`tests.benchmarks.temperatures`).

    Args:
        logits: shape (n, classes); labels: shape (n,); groups: patients, shape (n,), each weighing the same.
    """
    cells = pd.DataFrame({"label": labels, "group": groups}).value_counts(sort=False)
    heard = float(cells.clip(upper=MOST_HEARD).sum())
    return _fit(logits, labels, patient_weights(labels, groups), pull=1 / (2 * heard * SPREAD**2))


def _fit(logits: Floats, labels: NDArray[np.int64], weights: Floats, *, pull: float) -> float:
    """The temperature with the lowest weighted loss and `pull` times the square of its logarithm."""
    from scipy.optimize import minimize_scalar

    check_finite(logits, "calibrate")
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        chosen = probabilities(logits, float(np.exp(log_temperature)))[rows, labels]
        mean = float(-(weights * np.log(np.maximum(chosen, 1e-12))).sum() / weights.sum())
        return mean + pull * log_temperature**2

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def check_finite(logits: Floats, what: str) -> None:
    """Refuse answers that are no numbers: a temperature would be fitted to them, and a label said.

    Args:
        logits: shape (n, classes). what: what their cells do, for the person who reads of it: calibrate.

    Raises:
        DataError: saying of how many cells.
    """
    wrong = int((~np.isfinite(logits).all(axis=1)).sum())
    if wrong:
        raise DataError(
            f"Expected finite logits of the {len(logits)} cells that {what} but those of {wrong} are not: the weights "
            "are no numbers, or such that the network's sums overflow. Train again, with a lower train.learning_rate "
            "or train.precision=fp32."
        )


def border_told(calibration: Mapping[str, Any]) -> str:
    """What it means that the likeliest temperature lies at the end of its range, in a few sentences; "" where it does
    not.

    What is taken in its place is said to rest on what is usual where that drew it more than half of the way to 1.

    Args:
        calibration: `temperature`, which answers; `likeliest`, of `fit_temperature`, which evaluations of before used.

    >>> border_told({"temperature": 1.2, "likeliest": 1.25})
    ''
    >>> border_told({"temperature": 0.1, "likeliest": 0.05})[-33:]
    'cells was wrong. 0.100 was taken.'
    """
    used = calibration["temperature"]
    likeliest = calibration.get("likeliest", used)
    if likeliest <= LOWEST * BORDER:
        said = (
            f"The calibration patients do not bound the temperature, whose likeliest value is the lowest ({LOWEST:g}): "
            "they are too few, or none of their cells was wrong."
        )
        sure = "probabilities are too sure, many of them 0 or 1"
    elif likeliest >= HIGHEST / BORDER:
        said = (
            f"The calibration patients do not bound the temperature, whose likeliest value is the highest "
            f"({HIGHEST:g}): the network tells their classes hardly apart."
        )
        sure = "all probabilities lie near one half"
    else:
        return ""
    if not LOWEST * BORDER < used < HIGHEST / BORDER:
        return f"{said} With it {sure}."
    if abs(np.log(used)) < abs(np.log(likeliest)) / 2:
        return f"{said} {fixed(used)} was taken, which rests on what is usual for networks more than on these patients."
    return f"{said} {fixed(used)} was taken."


def temperate_loss(logits: Floats, labels: NDArray[np.int64], weights: Floats) -> float:
    """The weighed cross-entropy at the temperature that suits the logits best, since one is fitted afterwards anyway:
    what counts is what no temperature can mend (Berta et al. 2025, arXiv:2501.19195).

    Args:
        logits, labels, weights: as of `fit_temperature`.
    """
    from sklearn.metrics import log_loss

    temperature = fit_temperature(logits, labels, weights)
    return float(log_loss(labels, probabilities(logits, temperature), sample_weight=weights))


def patient_weights(labels: NDArray[np.int64], groups: NDArray[Any]) -> NDArray[np.float64]:
    """Every patient weighs the same within its class, both classes the same; they add up to 1."""
    frame = pd.DataFrame({"label": labels, "group": groups})
    within = 1.0 / frame.groupby(["label", "group"])["label"].transform("size")
    return np.asarray(within / within.groupby(frame["label"]).transform("sum") / frame["label"].nunique(), dtype=float)


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
