"""Intervals by patient: cells of one patient are not independent, so whole groups are drawn, not cells."""

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
ROUNDING = 1e-12  # draws nearer to each other than this are one
Floats = NDArray[np.float64]
Range = tuple[float, float]
SHARE: Range = (0.0, 1.0)
DIFFERENCE: Range = (-1.0, 1.0)
"""Where the figures lie, and the differences of two."""


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


def bounds(
    draws: ArrayLike,
    patients: int,
    level: float = LEVEL,
    *,
    value: float,
    within: Range,
    others: int = 0,
    freedom: float | None = None,
) -> tuple[float, float]:
    """The expanded percentile interval of a figure's draws (Hesterberg 2015, doi:10.1080/00031305.2015.1089789).

    With few patients plain percentiles lie too near: drawn patients vary less than new ones by (n - 1) / n, and the
    normal distribution has shorter tails than Student's. So the percentiles are taken further out, such that the
    interval of a mean is as wide as Student's. Where that is further than any draw can lie (the most extreme one has a
    chance of n^-n; with up to four patients at 95 %), the interval is the outer of them and of Student's around the
    value, with the standard error of the draws (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 12).

    Args:
        draws: shape (resamples,); those on which the figure is not defined (NaN) are left out.
        patients: n, of the label that has fewer among those the figure reads. With one there is no spread to be seen,
            and the interval is all of the range.
        value: the figure itself.
        within: the range of the figure; the interval does not leave it.
        others: of the difference of two models in a figure that reads both labels, patients of the label that has
            more: most extreme draws are rarer there, and Student's has the degrees of freedom of both samples.
        freedom: degrees of freedom of Student's interval where they are known otherwise.

    Returns:
        Both ends, NaN where the figure is defined on none of the draws.
    """
    from scipy.special import ndtr, stdtrit

    known = _known(draws)
    if not len(known):
        return np.nan, np.nan
    if patients < 2:
        return within
    student, narrow = stdtrit(patients - 1, (1 - level) / 2), np.sqrt(patients / (patients - 1))
    tail = float(ndtr(narrow * student))
    low, high = np.quantile(known, [tail, 1 - tail])
    if tail < float(patients) ** -patients * float(max(others, 1)) ** -others:
        freedom = freedom or patients + others - (2 if others else 1)
        reach = -stdtrit(freedom, (1 - level) / 2) * narrow * known.std()
        low, high = min(low, value - reach), max(high, value + reach)
    return max(float(low), within[0]), min(float(high), within[1])


def exact_bounds(value: float, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Clopper and Pearson's interval of a share out of independent trials (1934, doi:10.1093/biomet/26.4.404).

    Args:
        value: the share, from 0 to 1; value * trials need not be whole.
    """
    from scipy.special import betaincinv

    hits, tail = value * trials, (1 - level) / 2
    low = float(betaincinv(hits, trials - hits + 1, tail)) if hits > 0 else 0.0
    high = float(betaincinv(hits + 1, trials - hits, 1 - tail)) if hits < trials else 1.0
    return low, high


def spreads(draws: ArrayLike) -> bool:
    """Whether the draws differ by more than the rounding of their sums. Where they do not, no patient differed from
    another, which does not say that the next one will not."""
    known = _known(draws)
    return bool(len(known) and np.ptp(known) > ROUNDING)


def as_interval(
    values: Floats,
    patients: int,
    level: float = LEVEL,
    *,
    within: Range = SHARE,
    others: int = 0,
    freedom: float | None = None,
) -> dict[str, float] | None:
    """value, low and high from an array whose first entry is the value and whose others are its draws; None where the
    value is not defined.

    Args:
        patients, within, others, freedom: see `bounds`. A share whose draws all agree is one of as many independent
            trials (`exact_bounds`), two at least; a difference whose draws all agree has no width.
    """
    value, draws = float(values[0]), values[1:]
    low, high = bounds(draws, patients, level, value=value, within=within, others=others, freedom=freedom)
    if not np.isfinite([value, low, high]).all():
        return None
    if within == SHARE and patients > 1 and not spreads(draws):
        low, high = exact_bounds(value, patients, level)
    # Draws of a figure that is biased may all lie to one side of it.
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def _known(draws: ArrayLike) -> Floats:
    given = np.asarray(draws, dtype=np.float64)
    return given[np.isfinite(given)]
