"""Intervals by patient of the figures of an evaluation (`training.figures`)."""

from collections.abc import Sequence

import numpy as np

from blastwatch.intervals import LEVEL, ROUNDING, SHARE, Floats, as_interval, bounds, exact_bounds, spreads
from training.figures import OF_HEALTHY, OF_ILL, RIGHT_OR_WRONG, Units, figures, quarter

WORST_QUARTER = "worst_quarter_accuracy"
BY_RANKS = ("auroc", "average_precision")
"""Near 1 few patients move them, and by much: with `freedom_of` their intervals held the truth too seldom."""
FEW = 5  # patients from whom on percentiles are far enough out at the levels that are asked for


def patients_behind(units: Units, name: str) -> int:
    """Patients of the label that has fewer, among the labels that a figure reads."""
    ill, healthy = (len(np.unique(units.group[side])) for side in (units.ill, ~units.ill))
    if name in OF_ILL:
        return ill
    return healthy if name in OF_HEALTHY else min(number for number in (ill, healthy) if number)


def intervals(units: Units, names: Sequence[str], draws: Floats, level: float = LEVEL) -> dict[str, dict[str, float]]:
    """Per figure: value on the cells themselves, low and high end of its interval.

    Args:
        names: out of `training.figures.FORMULAS`. A figure that the cells do not define is left out.
        draws: from `blastwatch.intervals.draw_patients`.
    """
    every = np.concatenate([np.ones((1, units.groups)), draws])
    found = figures(units, every, names)
    rows = {name: _interval(units, name, found[name], draws, level) for name in names}
    return {name: row for name, row in rows.items() if row is not None}


def _interval(units: Units, name: str, values: Floats, draws: Floats, level: float) -> dict[str, float] | None:
    if name == WORST_QUARTER:
        return _of_worst_quarter(units, values, level)
    if name in RIGHT_OR_WRONG:
        return _of_right_or_wrong(units, name, values, level)
    patients = patients_behind(units, name)
    welch = 1 < patients < FEW and name not in BY_RANKS
    freedom = freedom_of(units, values[1:], draws) if welch else None
    return as_interval(values, patients, level, freedom=freedom)


def freedom_of(units: Units, values: Floats, draws: Floats) -> float | None:
    """Degrees of freedom of a figure's draws by what patients of each label add to their variance (Welch 1947,
    doi:10.1093/biomet/34.1-2.28; Satterthwaite 1946, doi:10.2307/3002019): with two healthy and twenty ill ones those
    of two patients where the figure hangs on the healthy ones, else nearly those of all.

    Args:
        values: of the figure on the draws, (resamples,); draws: (resamples, groups).

    Returns:
        None where no patient adds to it, or too few draws define it.
    """
    known = np.isfinite(values)
    if known.sum() <= 2 * units.groups:
        return None
    counts = draws[known] - draws[known].mean(axis=0)
    effects = np.linalg.lstsq(counts, values[known] - values[known].mean(), rcond=None)[0]
    ill = np.isin(np.arange(units.groups), units.group[units.ill])
    sides = [side for side in (ill, ~ill) if side.sum() > 1]
    parts = [float((counts[:, side] @ effects[side]).var()) for side in sides]
    if sum(parts) <= ROUNDING**2:
        return None
    return sum(parts) ** 2 / sum(part**2 / (int(side.sum()) - 1) for part, side in zip(parts, sides, strict=True))


def _of_right_or_wrong(units: Units, name: str, values: Floats, level: float) -> dict[str, float]:
    """The outer of the draws' interval and Clopper and Pearson's: where all patients at hand were right, no draw shows
    one who is not."""
    value = float(values[0])
    low, high = bounds(values[1:], patients_behind(units, name), level, value=value, within=SHARE)
    least, most = exact_bounds(value, len(np.unique(units.group)), level)
    return {"value": value, "low": min(low, least), "high": max(high, most)}


def _of_worst_quarter(units: Units, values: Floats, level: float) -> dict[str, float] | None:
    """Student's interval of the logit, with the spread of the draws and one degree of freedom less than the patients
    in the quarter.

    A mean of the worst quarter is a trimmed mean, whose degrees of freedom are those of the patients that it keeps
    (Tukey & McLaughlin 1963, Sankhya A 25:331-352). Percentiles of its draws lie too high: a draw cannot hold worse
    patients than those at hand. On the logit the interval reaches further down than up, and stays from 0 to 1. Half a
    cell is added to those right and to those wrong, that 0 and 1 have a logit (Haldane 1956, Annals of Human Genetics
    20:309-311).
    """
    from scipy.special import expit, stdtrit

    kept = int(quarter(len(units.group)))
    patients = min(kept, patients_behind(units, WORST_QUARTER))
    if patients < 2 or not spreads(values[1:]):
        return as_interval(values, patients, level)
    cells = kept * float(units.cells.mean())
    logits = np.log((values * cells + 0.5) / ((1 - values) * cells + 0.5))
    error = np.sqrt(patients / (patients - 1)) * logits[1:].std()
    reach = -stdtrit(patients - 1, (1 - level) / 2) * error
    ends = expit(logits[0] + np.array([-reach, reach]))
    low, high = np.clip((ends * (cells + 1) - 0.5) / cells, 0.0, 1.0)
    value = float(values[0])
    # The way to the logit and back rounds.
    return {"value": value, "low": min(float(low), value), "high": max(float(high), value)}
