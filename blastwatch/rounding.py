"""Figures as a person reads them: rounded, but never onto a bound or a limit that they do not reach.

A probability of 0.9998 printed as 1.000 looks certain, and 0.89996 beside a limit of 0.9 as 0.9 makes the verdict look
wrong. `blastwatch/pages/entries.js` does the same for the pages.
"""

import math
from collections.abc import Mapping

BOUNDS = (-1.0, 0.0, 1.0)
"""Where shares and the differences of two of them end, and change their sign."""
PERCENTS = (-100.0, 0.0, 100.0)
"""The same of percents."""

_NOISE = 1e-12  # what lies nearer to a bound was computed as the bound itself
_MOST_DIGITS = 6  # behind the point
_LONGEST = 17  # significant digits, with which two floats that differ look so


def fixed(value: float, digits: int = 3, *, sign: bool = False, bounds: tuple[float, ...] = BOUNDS) -> str:
    """So many digits behind the point, or as many more as keep it from a bound; from there on which side it lies on.

    Args:
        digits: 0 to 6. sign: a plus, too. bounds: what is shown only of a value that is there.

    >>> fixed(0.9123), fixed(0.99996), fixed(1.0), fixed(0.0002), fixed(1e-9), fixed(-0.0004, sign=True)
    ('0.912', '0.99996', '1.000', '0.0002', '< 0.000001', '-0.0004')
    """
    plus = "+" if sign else ""
    text = f"{value:{plus}.{digits}f}"
    if not math.isfinite(value) or float(text) not in bounds:
        return text
    bound = float(text) + 0.0
    if abs(value - bound) <= _NOISE:
        return f"{bound:{plus}.{digits}f}"
    for more in range(digits + 1, _MOST_DIGITS + 1):
        text = f"{value:{plus}.{more}f}"
        if float(text) != bound:
            return text
    step = 10.0**-_MOST_DIGITS
    edge = bound + math.copysign(step, value - bound)
    return f"{'<' if value < edge else '>'} {edge:{plus}.{_MOST_DIGITS}f}"


def percent(share: float, digits: int = 2) -> str:
    """A share in percent with its sign: none or all of it only where that is so.

    >>> percent(0.0123), percent(0.999996), percent(0.0004, 0), percent(1.0, 0)
    ('1.23%', '99.9996%', '0.04%', '100%')
    """
    return f"{fixed(100 * share, digits, bounds=PERCENTS)}%"


def with_interval(row: Mapping[str, float], *, sign: bool = False) -> str:
    """A figure and its interval, of `value`, `low` and `high`.

    >>> with_interval({"value": 0.99961, "low": 0.8, "high": 1.0})
    '0.9996 (0.800 to 1.000)'
    """
    value, low, high = (fixed(row[name], sign=sign) for name in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def against(value: float, limit: float) -> tuple[str, str]:
    """A figure and the limit that it is held against, with as many digits as tell them apart, four at least.

    >>> against(0.899961, 0.9), against(0.9, 0.9), against(0.99996, 0.5), against(200.0, 300.0)
    (('0.89996', '0.9'), ('0.9', '0.9'), ('0.99996', '0.5'), ('200', '300'))
    """
    for digits in range(4, _LONGEST + 1):
        texts = significant(value, digits), significant(limit, digits)
        if value == limit or texts[0] != texts[1]:
            break
    return texts


def significant(value: float, digits: int = 4) -> str:
    """So many significant digits, or as many more as keep a share from one; whole numbers are whole.

    >>> significant(0.00123456), significant(0.99998), significant(12345.0), significant(123456.7)
    ('0.001235', '0.99998', '12345', '123457')
    """
    if not math.isfinite(value) or float(value).is_integer():
        return f"{value:.0f}"
    if abs(value) >= 10.0**digits:
        return f"{value:.0f}"
    for more in range(digits, _LONGEST + 1):
        text = f"{value:.{more}g}" if more < _LONGEST else repr(float(value))
        if abs(float(text)) != 1.0:
            break
    return text
