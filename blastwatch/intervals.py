"""Intervals by patient: cells of one patient are not independent, so whole groups are drawn, not cells."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
Floats = NDArray[np.float64]


def draw_patients(cells: pd.DataFrame, *, resamples: int, seed: int) -> Floats:
    """How often every group stands in each draw of a cluster bootstrap (Field & Welsh 2007,
    doi:10.1111/j.1467-9868.2007.00593.x).

    Groups are drawn with replacement within each label (the one most of their cells have), so every draw holds both
    classes. A group drawn twice counts as two patients.

    Args:
        cells: with the columns group and label.

    Returns:
        Shape (resamples, groups), in the sorted order of the groups' names.
    """
    names, group = np.unique(cells["group"].astype(str), return_inverse=True)
    labels, label = np.unique(cells["label"], return_inverse=True)
    counts = np.bincount(group * len(labels) + label, minlength=len(names) * len(labels)).reshape(len(names), -1)
    label_of = counts.argmax(axis=1)
    random = np.random.default_rng(seed)
    drawn = np.zeros((resamples, len(names)))
    for number in np.unique(label_of):
        members = np.flatnonzero(label_of == number)
        drawn[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return drawn


def bounds(draws: ArrayLike, patients: int, level: float = LEVEL) -> tuple[float, float]:
    """The expanded percentile interval of a figure's draws (Hesterberg 2015, doi:10.1080/00031305.2015.1089789).

    With few patients plain percentiles lie too near: drawn patients vary less than new ones by (n - 1) / n, and the
    normal distribution has shorter tails than Student's. So the percentiles are taken further out, such that the
    interval of a mean is as wide as Student's. They cannot lie beyond the most extreme draw.

    Args:
        draws: shape (resamples,); those on which the figure is not defined (NaN) are left out.
        patients: n, of the label that has fewer among those the figure reads. With one there is no spread to be seen.
    """
    from scipy.special import ndtr, stdtrit

    known = np.asarray(draws, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return np.nan, np.nan
    tail = (1 - level) / 2
    if patients > 1:
        tail = float(ndtr(np.sqrt(patients / (patients - 1)) * stdtrit(patients - 1, tail)))
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def as_interval(values: Floats, patients: int, level: float = LEVEL) -> dict[str, float] | None:
    """value, low and high from an array whose first entry is the value and whose others are its draws; None where the
    value is not defined."""
    low, high = bounds(values[1:], patients, level)
    if not np.isfinite([values[0], low, high]).all():
        return None
    return {"value": float(values[0]), "low": low, "high": high}
