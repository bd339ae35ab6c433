"""Rounded figures: as short as they can be, and on their own side of every bound and limit."""

import math

import pytest

from blastwatch.gate import at_least, at_most
from blastwatch.rounding import against, fixed, percent, significant, with_interval


@pytest.mark.parametrize(("value", "text"), [
    (0.9123, "0.912"), (0.9996, "0.9996"), (0.99999999, "> 0.999999"), (1.0, "1.000"), (1 - 1e-14, "1.000"),
    (0.0, "0.000"), (-0.0, "0.000"), (0.0002, "0.0002"), (1e-9, "< 0.000001"), (-1e-9, "> -0.000001"),
    (-0.0004, "-0.0004"), (-0.9998, "-0.9998"), (1.0002, "1.0002"), (2.99996, "3.000"), (math.nan, "nan"),
])  # fmt: skip
def test_a_figure_keeps_off_the_bounds_that_it_does_not_reach(value, text):
    assert fixed(value) == text


def test_a_difference_keeps_its_sign():
    assert [fixed(value, sign=True) for value in (0.0004, -0.0004, 0.0, 0.25)] == [
        "+0.0004",
        "-0.0004",
        "+0.000",
        "+0.250",
    ]
    assert (fixed(0.996, 2), fixed(0.00003, 4)) == ("0.996", "0.00003")


@pytest.mark.parametrize(("share", "digits", "text"), [
    (0.999996, 2, "99.9996%"), (1.0, 2, "100.00%"), (0.004, 0, "0.4%"), (0.0, 0, "0%"), (0.01, 2, "1.00%"),
    (0.010001, 2, "1.00%"), (-0.99999, 0, "-99.999%"),
])  # fmt: skip
def test_a_percent_is_none_or_all_only_where_it_is(share, digits, text):
    assert percent(share, digits) == text


def test_a_figure_and_its_interval_keep_off_the_bounds():
    row = {"value": 0.99961, "low": 0.0004, "high": 0.99998}
    assert with_interval(row) == "0.9996 (0.0004 to 0.99998)"
    assert with_interval(row, sign=True) == "+0.9996 (+0.0004 to +0.99998)"


@pytest.mark.parametrize(("value", "limit", "texts"), [
    (0.899961, 0.9, ("0.89996", "0.9")), (0.9, 0.9, ("0.9", "0.9")), (200.0, 300.0, ("200", "300")),
    (0.00123456, 0.01, ("0.001235", "0.01")), (0.1 + 0.2, 0.3, ("0.30000000000000004", "0.3")),
    (123456.4, 123456.0, ("123456.4", "123456")),
])  # fmt: skip
def test_a_figure_and_a_limit_that_differ_look_so(value, limit, texts):
    assert against(value, limit) == texts


def test_a_share_near_one_is_not_one():
    assert [significant(value) for value in (0.99998, 1.0, 12345.0, 123456.7, math.inf)] == [
        "0.99998", "1", "12345", "123457", "inf"
    ]  # fmt: skip


def test_a_gate_tells_the_figures_that_it_was_judged_by():
    assert at_least("auroc", 0.899961, 0.9).told == "auroc: 0.89996 (limit: at least 0.9)"
    assert at_most("parity", 0.0012345678, 0.01).told == "parity: 0.001235 (limit: at most 0.01)"
    assert at_least("latency", None, 3.0, unit="ms").told == "latency: not in the evidence (limit: at least 3)"
    assert at_least("auroc", 0.99998, None).told == "auroc: 0.99998 (off by policy)"
