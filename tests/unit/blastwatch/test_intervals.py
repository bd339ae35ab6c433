"""Intervals against scipy's, and what holds of them for any draws."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from blastwatch.intervals import DIFFERENCE, SHARE, as_interval, bounds, exact_bounds, spreads

WIDE = (-np.inf, np.inf)


def every_draw(values):
    """Means of all n^n draws, each as likely as the other."""
    return np.mean(list(product(values, repeat=len(values))), axis=1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 80), st.floats(0, 1), st.sampled_from((0.8, 0.95, 0.99)))
def test_a_share_has_the_interval_of_clopper_and_pearson(trials, share, level):
    hits = round(share * trials)
    theirs = stats.binomtest(hits, trials).proportion_ci(level, "exact")
    assert exact_bounds(hits / trials, trials, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("patients", [2, 3, 4])
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_a_mean_of_up_to_four_patients_has_students_interval(patients, level):
    values = np.random.default_rng(patients).normal(size=patients)
    found = bounds(every_draw(values), patients, level, value=values.mean(), within=WIDE)
    theirs = stats.t.interval(level, patients - 1, values.mean(), stats.sem(values))
    assert found == pytest.approx(theirs)
    assert bounds(every_draw(values), patients, level, value=values.mean(), within=(-0.1, 0.1)) == (-0.1, 0.1)


@pytest.mark.parametrize("patients", [5, 8, 60])
def test_the_interval_of_a_mean_is_as_wide_as_students(patients):
    values = np.random.default_rng(patients).normal(size=patients)
    error = values.std() / np.sqrt(patients)
    normal = stats.norm.ppf(0.5 + np.linspace(-0.4999999, 0.4999999, 400_001)) * error + values.mean()
    theirs = stats.t.interval(0.95, patients - 1, values.mean(), stats.sem(values))
    assert bounds(normal, patients, value=0.0, within=WIDE) == pytest.approx(theirs, rel=0.03, abs=0.03)


def test_skewed_draws_of_few_patients_keep_their_further_end():
    draws = every_draw([0.0, 0.5, 0.5, 0.5])
    low, high = bounds(draws, 4, value=0.49, within=SHARE)
    assert low == pytest.approx(np.quantile(draws, stats.norm.cdf(np.sqrt(4 / 3) * stats.t.ppf(0.025, 3))))
    assert high > draws.max()


def test_one_patient_shows_no_spread():
    draws = np.random.default_rng(1).random(100)
    assert bounds(draws, 1, value=0.5, within=SHARE) == SHARE
    assert as_interval(np.append(0.2, draws), 1, within=DIFFERENCE) == {"value": 0.2, "low": -1, "high": 1}
    assert as_interval(np.full(21, 0.9), 1) == {"value": 0.9, "low": 0, "high": 1}


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-1, 1), min_size=5, max_size=40),
    st.integers(1, 12),
    st.tuples(st.floats(0.5, 0.999), st.floats(0.5, 0.999)).map(sorted),
)
def test_intervals_lie_in_their_range_and_grow_with_the_level(draws, patients, levels):
    values = np.append(np.mean(draws), draws)
    narrow, wide = (as_interval(values, patients, level, within=DIFFERENCE) for level in levels)
    assert -1 <= wide["low"] <= narrow["low"] + 1e-12
    assert narrow["high"] - 1e-12 <= wide["high"] <= 1
    if patients <= 4 and levels[1] >= 0.95:
        assert wide["low"] <= wide["value"] <= wide["high"]


def test_draws_that_agree_are_trials_of_a_share_and_say_nothing_of_a_difference():
    alike = np.full(21, 1.0)
    low = stats.binomtest(12, 12).proportion_ci().low
    assert as_interval(alike, 12) == pytest.approx({"value": 1, "low": low, "high": 1})
    assert as_interval(np.zeros(21), 12, within=DIFFERENCE) == {"value": 0, "low": 0, "high": 0}
    assert not spreads(alike + np.linspace(0, 1e-14, 21))
    assert spreads([1.0, np.nan, 0.9])


def test_what_no_draw_defines_has_no_interval():
    assert np.isnan(bounds(np.array([np.nan]), 5, value=0.5, within=SHARE)).all()
    assert as_interval(np.array([np.nan, 0.5, 0.6]), 5) is None
    assert as_interval(np.array([0.5, np.nan, np.nan]), 5) is None
