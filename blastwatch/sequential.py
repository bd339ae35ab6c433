"""Is the challenger better than the champion? A comparison that stays valid however often it is looked at.

Units (patients) enter one after another, each with a difference d in [-1, 1]: accuracy of the challenger on that
patient's labelled cells minus accuracy of the champion on the same cells. For a bet of the fraction f in (0, 1)
against "the mean of d is at most m" the wealth after n units is

    W_f = product over units of  1 + f * (d - m) / (1 + m)

No factor is negative because d >= -1, and none is above 1 on average where the mean of d is at most m, whatever came
before. So W_f, and the average of W_f over a fixed set of fractions, is a test supermartingale that starts at 1: an
e-process. By Ville (1939) the chance that it ever reaches 1/a is at most a. One may look after every unit, stop
when one likes and go on later. Nothing is estimated and nothing tuned: the average over fractions does what the best
of them would have done, up to the number of fractions (Cover's universal portfolio).

Two-sided: each direction gets half of `alpha`, so an e-value of 2 / alpha decides. The confidence sequence holds
every m that neither direction has refuted; it covers the mean at all looks together with probability 1 - alpha, and
all words of `verdict` are read off it, so the chance that any of them is ever wrong is at most alpha.

Sources: Waudby-Smith, Ramdas, "Estimating means of bounded random variables by betting", JRSS-B 86 (2024) 1-27;
Ville, "Étude critique de la notion de collectif" (1939); Johari, Koomen, Pekelis, Walsh, "Always valid inference",
Operations Research 70 (2022) 1806-1821; Howard, Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Annals of Statistics 49 (2021) 1055-1080.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

FRACTIONS: Floats = (np.arange(40) + 0.5) / 40
"""Fractions of the wealth that are bet, each with the same weight."""

ALPHA = 0.05
MARGIN = 0.02
_EXACT = 1e-5  # of the bounds, which are rounded outwards

BETTER, NOT_WORSE, WORSE, UNDECIDED = "better", "not worse", "worse", "undecided"


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is known after `units` units.

    mean: of the differences so far; 0 before the first.
    better, worse: e-values against "the mean is at most 0" and against "the mean is at least -margin".
    p_better, p_worse: the smallest 1/e of this look and all before it, at most 1; valid at any time of looking.
    low, high: the confidence sequence, cut with those of all looks before.
    """

    units: int
    mean: float
    better: float
    worse: float
    p_better: float
    p_worse: float
    low: float
    high: float


def log_wealth(differences: Floats, mean: float) -> Floats:
    """Logarithm of the e-process against "the mean is at most `mean`", after each unit.

    Against "at least" give the differences and the mean with the opposite sign.

    Args:
        differences: shape (..., n), each in [-1, 1], in the order in which the units came.
        mean: above -1, below 1.

    Returns:
        Shape (..., n).

    >>> np.exp(log_wealth(np.array([0.0, 1.0]), 0.0)).round(6).tolist()
    [1.0, 1.5]
    """
    _check(differences)
    if not -1 < mean < 1:
        raise ValueError(f"Expected `mean` above -1 and below 1 but got {mean}")
    gain = (differences - mean) / (1 + mean)
    total = np.full(differences.shape, -np.inf)
    for fraction in FRACTIONS:  # one at a time: a simulation asks for thousands of runs at once
        total = np.logaddexp(total, np.cumsum(np.log1p(fraction * gain), axis=-1))
    return np.asarray(total - np.log(len(FRACTIONS)))


def follow(
    differences: Floats, *, looks: Sequence[int] | None = None, margin: float = MARGIN, alpha: float = ALPHA
) -> list[Look]:
    """The whole history of one comparison.

    Args:
        differences: shape (n,), one a unit, in the order in which they entered.
        looks: rising numbers of units after which it was looked; default: after each one. Looks that are left out
            only make the result more careful.
        margin: of accuracy, in [0, 1); how much worse counts as worse.
        alpha: chance that any statement drawn from any of the looks is wrong.
    """
    _check(differences)
    if not 0 <= margin < 1:
        raise ValueError(f"Expected `margin` from 0 to below 1 but got {margin}")
    if not 0 < alpha < 1:
        raise ValueError(f"Expected `alpha` between 0 and 1 but got {alpha}")
    ends = list(range(1, len(differences) + 1) if looks is None else looks)
    if any(b <= a for a, b in zip([0, *ends], ends, strict=False)) or (ends and ends[-1] > len(differences)):
        raise ValueError(f"Expected `looks` to rise from 1 to at most {len(differences)} but got {ends}")
    # The wealth does not depend on the order, so equal differences are counted: cells have three values in all.
    values, which = np.unique(differences, return_inverse=True)
    limit = float(np.log(2 / alpha))
    better, worse = log_wealth(differences, 0.0), log_wealth(-differences, margin)
    means = np.cumsum(differences) / np.arange(1, len(differences) + 1)
    low, high, p_better, p_worse = -1.0, 1.0, 1.0, 1.0
    history = []
    for end in ends:
        counts = np.bincount(which[:end], minlength=len(values))
        seen, counts = values[counts > 0], counts[counts > 0]
        low = _refuted(seen, counts, limit, low)
        high = -_refuted(-seen, counts, limit, -high)
        p_better = min(p_better, float(np.exp(-max(better[end - 1], 0.0))))
        p_worse = min(p_worse, float(np.exp(-max(worse[end - 1], 0.0))))
        history.append(
            Look(
                units=end,
                mean=float(means[end - 1]),
                better=_exp(better[end - 1]),
                worse=_exp(worse[end - 1]),
                p_better=p_better,
                p_worse=p_worse,
                low=low,
                high=high,
            )
        )
    return history


def verdict(look: Look, *, margin: float = MARGIN) -> str:
    """`better`, `not worse` (by more than the margin), `worse` (by more than it) or `undecided`."""
    if look.low > 0:
        return BETTER
    if look.low > -margin:
        return NOT_WORSE
    return WORSE if look.high < -margin else UNDECIDED


def _refuted(values: Floats, counts: NDArray[np.intp], limit: float, low: float) -> float:
    """Highest m for which "the mean is at most m" is refuted, now or (`low`) before.

    The wealth falls as m rises, so steps that double and then halving find it; most looks move nothing.
    """
    step, high = _EXACT, low + _EXACT
    while high < 1 and _final(values, counts, high) >= limit:
        low, step = high, 2 * step
        high = low + step
    high = min(high, 1.0)
    while high - low > _EXACT:
        middle = (low + high) / 2
        if _final(values, counts, middle) >= limit:
            low = middle
        else:
            high = middle
    return low


def _exp(logarithm: float) -> float:
    """An e-value that a float can hold; beyond 1e300 none says more."""
    return float(np.exp(min(logarithm, 690.0)))


def _final(values: Floats, counts: NDArray[np.intp], mean: float) -> float:
    """`log_wealth` after the last unit, for differences given as values with their counts."""
    gain = (values - mean) / (1 + mean)
    logarithms = counts @ np.log1p(gain[:, None] * FRACTIONS)
    return float(np.logaddexp.reduce(logarithms) - np.log(len(FRACTIONS)))


def _check(differences: Floats) -> None:
    if not np.all(np.abs(differences) <= 1):
        raise ValueError("Expected `differences` in [-1, 1]")
