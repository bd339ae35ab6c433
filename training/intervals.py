"""Intervals by patient of the figures of an evaluation (`training.figures`)."""

from collections.abc import Sequence

import numpy as np

from blastwatch.intervals import LEVEL, Floats, as_interval
from training.figures import OF_HEALTHY, OF_ILL, Units, figures


def patients_behind(units: Units, name: str) -> int:
    """Patients of the label that has fewer, among the labels that a figure reads."""
    ill, healthy = (len(np.unique(units.group[side])) for side in (units.ill, ~units.ill))
    if name in OF_ILL:
        return ill
    return healthy if name in OF_HEALTHY else min(ill, healthy)


def intervals(units: Units, names: Sequence[str], draws: Floats, level: float = LEVEL) -> dict[str, dict[str, float]]:
    """Per figure: value on the cells themselves, low and high end of its interval.

    Args:
        names: out of `training.figures.FORMULAS`. A figure that the cells do not define is left out.
        draws: from `blastwatch.intervals.draw_patients`.
    """
    every = np.concatenate([np.ones((1, units.groups)), draws])
    found = figures(units, every, names)
    rows = {name: as_interval(found[name], patients_behind(units, name), level) for name in names}
    return {name: row for name, row in rows.items() if row is not None}
