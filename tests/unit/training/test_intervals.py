"""Intervals of the figures that the draws alone would make too narrow: shares of patients, and the worst quarter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from blastwatch.intervals import as_interval, bounds, draw_patients
from tests.answers import draw_answers
from training.figures import RIGHT_OR_WRONG, figures, units_of
from training.intervals import WORST_QUARTER, freedom_of, intervals, patients_behind


def asked(table, *, resamples=200):
    return units_of(table), draw_patients(table, resamples=resamples, seed=1)


def interval(table, name):
    units, draws = asked(table)
    return intervals(units, [name], draws)[name]


@pytest.mark.parametrize("name", RIGHT_OR_WRONG)
def test_twelve_patients_of_twelve_are_no_certainty(name):
    table = draw_answers(1, patients=12, cells=10, distance=4)
    row = interval(table, name)
    theirs = stats.binomtest(12, 12).proportion_ci(0.95, "exact")
    assert row == pytest.approx({"value": 1, "low": theirs.low, "high": 1})


@pytest.mark.parametrize("name", RIGHT_OR_WRONG)
def test_a_share_of_patients_takes_the_outer_of_both_intervals(name):
    table = draw_answers(2, patients=14, cells=10, distance=0.3)
    units, draws = asked(table)
    row = intervals(units, [name], draws)[name]
    theirs = stats.binomtest(round(14 * row["value"]), 14).proportion_ci(0.95, "exact")
    low, high = bounds(figures(units, draws, [name])[name], 7, value=row["value"], within=(0, 1))
    assert 0 < row["value"] < 1
    assert (row["low"], row["high"]) == pytest.approx((min(low, theirs.low), max(high, theirs.high)))


@pytest.mark.parametrize("patients", [7, 12, 20])
def test_the_worst_quarter_has_students_interval_on_the_logit(patients):
    table = draw_answers(patients, patients=patients, cells=10)
    units, draws = asked(table)
    shares = np.sort(((table["probability"] >= 0.5) == (table["label"] == "all")).groupby(table["group"]).mean())
    kept = round(patients / 4)
    row = intervals(units, [WORST_QUARTER], draws)[WORST_QUARTER]
    value = shares[:kept].mean()
    assert row["value"] == pytest.approx(value)
    logits = [
        special.logit((10 * kept * drawn + 0.5) / (10 * kept + 1))
        for drawn in (value, *figures(units, draws, [WORST_QUARTER])[WORST_QUARTER])
    ]
    error = np.std(logits[1:]) * np.sqrt(kept / (kept - 1))
    ends = special.expit(stats.t.interval(0.95, kept - 1, logits[0], error))
    theirs = np.clip((ends * (10 * kept + 1) - 0.5) / (10 * kept), 0, 1)
    assert (row["low"], row["high"]) == pytest.approx(tuple(theirs))


def test_the_worst_quarter_may_be_worse_than_any_patient_at_hand():
    table = draw_answers(3, patients=12, cells=10)
    units, draws = asked(table)
    assert intervals(units, [WORST_QUARTER], draws)[WORST_QUARTER]["low"] < (units.right / units.cells).min()


def test_a_quarter_of_one_patient_shows_no_spread():
    table = draw_answers(4, patients=5, cells=10)
    row = interval(table, WORST_QUARTER)
    assert (row["low"], row["high"]) == (0, 1)


def test_a_worst_quarter_without_a_fault_is_of_as_many_trials_as_patients_in_it():
    table = draw_answers(5, patients=20, cells=10, distance=9)
    row = interval(table, WORST_QUARTER)
    assert row["value"] == 1
    assert row["low"] == pytest.approx(stats.binomtest(5, 5).proportion_ci(0.95, "exact").low)


def test_two_ill_patients_bound_the_worst_quarter_of_many():
    """The worst may be those two, of whom each draw holds two."""
    table = draw_answers(6, patients=30, cells=10)
    few = table[(table["label"] == "hem") | table["group"].isin(["P001", "P003"])]
    units, draws = asked(few)
    assert patients_behind(units, WORST_QUARTER) == 2
    row = intervals(units, [WORST_QUARTER], draws)[WORST_QUARTER]
    other = interval(table, WORST_QUARTER)
    assert row["high"] - row["low"] > 1.5 * (other["high"] - other["low"])


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 24), st.floats(0, 3))
def test_these_intervals_hold_their_value_and_grow_with_the_level(seed, patients, distance):
    names = [WORST_QUARTER, *RIGHT_OR_WRONG]
    units, draws = asked(draw_answers(seed, patients=patients, cells=5, distance=distance), resamples=50)
    narrow, wide = (intervals(units, names, draws, level) for level in (0.8, 0.95))
    for name in names:
        assert 0 <= wide[name]["low"] <= narrow[name]["low"] <= narrow[name]["value"]
        assert narrow[name]["value"] <= narrow[name]["high"] <= wide[name]["high"] <= 1


@pytest.mark.parametrize(("spread_of_healthy", "freedom"), [(5.0, 1), (0.0, 19), (np.sqrt(0.1), "welch")])
def test_degrees_of_freedom_are_those_of_the_patients_that_a_figure_hangs_on(spread_of_healthy, freedom):
    """A mean of the means of two healthy and of twenty ill patients."""
    table = draw_answers(3, patients=40, cells=4)
    healthy, ill = (sorted(table.loc[table["label"] == label, "group"].unique()) for label in ("hem", "all"))
    table = table[table["group"].isin([*healthy[:2], *ill[:20]])]
    units, draws = asked(table, resamples=4000)
    order = sorted(table["group"].astype(str).unique())
    is_ill = np.isin(order, ill)
    effects = np.random.default_rng(4).normal(size=22)
    for side, spread in ((is_ill, 1.0), (~is_ill, spread_of_healthy)):
        effects[side] = (effects[side] - effects[side].mean()) / effects[side].std(ddof=1) * spread
    values = draws[:, is_ill] @ effects[is_ill] / 20 + draws[:, ~is_ill] @ effects[~is_ill] / 2
    found = freedom_of(units, values, draws)
    parts = {2: spread_of_healthy**2 / 2 / 2, 20: 1 / 20 * 19 / 20}  # of a draw: (n - 1) / n of a variance of the mean
    theirs = sum(parts.values()) ** 2 / sum(part**2 / (n - 1) for n, part in parts.items())
    assert found == pytest.approx(theirs, rel=0.15)
    assert freedom == "welch" or found == pytest.approx(freedom, rel=0.05)


def test_a_figure_that_no_patient_moves_has_no_degrees_of_freedom():
    units, draws = asked(draw_answers(3, patients=6, cells=4))
    assert freedom_of(units, np.full(len(draws), 0.5), draws) is None
    assert freedom_of(units, np.full(len(draws), np.nan), draws) is None


def test_cells_of_one_label_alone_have_the_intervals_of_its_patients():
    table = draw_answers(5, patients=20, cells=10)
    row = interval(table[table["label"] == "all"].reset_index(drop=True), "mean_accuracy")
    assert 0 < row["low"] < row["value"] < row["high"] < 1


def test_an_interval_holds_its_value_where_all_draws_lie_to_one_side():
    """As those of a biased figure may, such as the calibration error."""
    draws = np.random.default_rng(1).uniform(0.5, 0.6, 500)
    assert as_interval(np.array([0.4, *draws]), 12)["low"] == 0.4
