"""Intervals by patient: cells of one patient are not independent, so whole groups are drawn, not cells."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from training.figures import Units, figures

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
    label_of = cells.groupby(cells["group"].astype(str), sort=True)["label"].agg(lambda labels: labels.mode().iloc[0])
    random = np.random.default_rng(seed)
    drawn = np.zeros((resamples, len(label_of)))
    for label in sorted(label_of.unique()):
        members = np.flatnonzero(label_of == label)
        drawn[:, members] = random.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return drawn


def bounds(draws: ArrayLike, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of a figure's draws; those on which it is not defined (NaN) are left out."""
    known = np.asarray(draws, dtype=np.float64)
    known = known[np.isfinite(known)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def intervals(units: Units, names: Sequence[str], draws: Floats, level: float = LEVEL) -> dict[str, dict[str, float]]:
    """Per figure: value on the cells themselves, low and high end of its interval.

    Args:
        names: out of `training.figures.FORMULAS`. A figure that the cells do not define is left out.
        draws: from `draw_patients`.
    """
    every = np.concatenate([np.ones((1, units.groups)), draws])
    return as_intervals(figures(units, every, names), level)


def as_intervals(found: Mapping[str, Floats], level: float = LEVEL) -> dict[str, dict[str, float]]:
    """The same from arrays whose first entry is the value and whose others are its draws."""
    rows = {}
    for name, values in found.items():
        low, high = bounds(values[1:], level)
        if np.isfinite([values[0], low, high]).all():
            rows[name] = {"value": float(values[0]), "low": low, "high": high}
    return rows
