"""Is a network worth more than three size numbers? By the paired interval of its evaluation, not by two values alone.

`training.significance` holds the network against a logistic regression on area, height and width on the same test
cells, and the interval of the difference is by patient. The model card and the gate `baseline` say the same of it.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blastwatch.rounding import with_interval

SIZES, METRIC = "sizes", "auroc"
FEWEST_TESTED = 5
"""Test patients of a label below which an interval by patient is no evidence: those of two to four are wide and yet may
know of nobody unlike them, and one patient shows no spread at all (docs/evaluation.md)."""

BEATS, BEATEN, ALIKE = "beats", "does not beat", "cannot be told apart from"


@dataclass(frozen=True, kw_only=True)
class SizeDifference:
    """AUROC of the network less that of the size numbers; low, high: its 95 % interval by patient."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`BEATS`, `BEATEN` or `ALIKE`: zero lies below, above or within the interval."""
        return BEATS if self.low > 0 else BEATEN if self.high < 0 else ALIKE

    def __str__(self) -> str:
        figures = {"value": self.difference, "low": self.low, "high": self.high}
        return f"the network {self.verdict} three size numbers: {with_interval(figures, sign=True)}"


def size_difference(metrics: Mapping[str, Any]) -> SizeDifference | None:
    """What an evaluation's `metrics.json` says of it; None where it does not, as those of old.

    >>> row = {"baseline": "sizes", "metric": "auroc", "difference": 0.022, "low": -0.106, "high": 0.211}
    >>> print(size_difference({"comparisons": [row]}))
    the network cannot be told apart from three size numbers: +0.022 (-0.106 to +0.211)
    """
    rows = metrics.get("comparisons")
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and (row.get("baseline"), row.get("metric")) == (SIZES, METRIC):
            difference, low, high = (number_of(row, key) for key in ("difference", "low", "high"))
            if difference is not None and low is not None and high is not None:
                return SizeDifference(difference=difference, low=low, high=high)
    return None


def patients_tested(split: Mapping[str, Any]) -> dict[str, int]:
    """Test patients of each label, from the evidence of a split; {} where it does not say."""
    try:
        return {str(label): int(counts["groups"]) for label, counts in sorted(split["sides"]["test"].items())}
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        return {}


def what_few_show(patients: Mapping[str, int]) -> str:
    """Of whom an interval by patient is, and that it is no evidence where it is of too few; "" where nobody knows.

    >>> what_few_show({"all": 12, "hem": 9})
    'of 12 all and 9 hem test patients'
    >>> what_few_show({"all": 12, "hem": 2})
    'of 12 all and 2 hem test patients, which is no evidence either way: 5 of each are needed'
    """
    if not patients:
        return ""
    told = f"of {' and '.join(f'{count} {label}' for label, count in patients.items())} test patients"
    few = min(patients.values()) < FEWEST_TESTED
    return f"{told}, which is no evidence either way: {FEWEST_TESTED} of each are needed" if few else told


def number_of(row: Any, key: str) -> float | None:
    """A finite number of the evidence; None for anything else, so that NaN passes no gate."""
    value = row.get(key) if isinstance(row, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # NaN is not, nor an int that no float holds
