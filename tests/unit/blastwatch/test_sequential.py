"""The always-valid comparison: error under continuous looking, power, and an independent implementation of it."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch import sequential
from blastwatch.sequential import FRACTIONS, Look, follow, log_wealth, verdict

ALPHA = 0.05
RUNS = 3000
SLACK = 3 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)  # three standard errors of the simulation
differences = st.lists(st.floats(-1, 1), min_size=1, max_size=30).map(lambda row: np.array(row, np.float64))


def naive(values, mean):
    """Wealth after the last unit, as it stands in the module's head, in plain arithmetic."""
    total = 0.0
    for fraction in FRACTIONS:
        wealth = 1.0
        for value in values:
            wealth *= 1 + float(fraction) * (value - mean) / (1 + mean)
        total += wealth
    return total / len(FRACTIONS)


def crossed(rows, mean, level):
    """Share of the runs (rows) whose wealth ever reached 1 / level."""
    return float((log_wealth(rows, mean).max(axis=-1) >= math.log(1 / level)).mean())


def patients(random, shape, *, cells=20, champion=0.9, gain=0.0, shared=0.8):
    """Per-patient differences: each patient has an accuracy of its own, and both models often err on the same cells."""
    level = random.beta(champion * 20, (1 - champion) * 20, size=(*shape, 1))
    same = random.random((*shape, cells)) < shared
    first, second = random.random((2, *shape, cells))
    ours = np.where(same, first, second) < np.clip(level + gain, 0, 1)
    return ours.mean(axis=-1) - (first < level).mean(axis=-1)


NULLS = {
    "no difference": lambda random: patients(random, (RUNS, 200)),
    "cells": lambda random: random.choice([-1.0, 0.0, 1.0], p=[0.05, 0.9, 0.05], size=(RUNS, 200)),
    "wide": lambda random: random.choice([-1.0, 1.0], size=(RUNS, 200)),
    "skewed": lambda random: random.choice([-1.0, 0.05 / 0.95], p=[0.05, 0.95], size=(RUNS, 200)),
    "depends on the past": lambda random: _turning(random, (RUNS, 200)),
}


def _turning(random, shape):
    """Mean 0 given the past, but spread and shape follow the unit before: no independence is needed."""
    rows = np.zeros(shape)
    for column in range(shape[1]):
        wide = column > 0
        scale = np.where(rows[:, column - 1] > 0, 1.0, 0.1) if wide else np.ones(shape[0])
        rows[:, column] = scale * random.choice([-1.0, 1.0], size=shape[0])
    return rows


@pytest.mark.parametrize("case", sorted(NULLS))
@pytest.mark.parametrize("side", [1, -1])
def test_under_the_null_it_rarely_ever_crosses(case, side):
    """Looked at after each of 200 patients, in 3,000 runs: at most alpha."""
    rows = NULLS[case](np.random.default_rng(5))
    assert crossed(side * rows, 0.0, ALPHA) <= ALPHA + SLACK


def test_worse_by_less_than_the_margin_is_rarely_called_worse():
    rows = np.random.default_rng(6).choice([-1.0, 0.0, 1.0], p=[0.06, 0.9, 0.04], size=(RUNS, 200))
    assert crossed(-rows, 0.02, ALPHA) <= ALPHA + SLACK


def test_the_confidence_sequence_covers_at_all_looks_together():
    random = np.random.default_rng(7)
    truth = 0.03
    rows = random.choice([-1.0, 0.0, 1.0], p=[0.02, 0.93, 0.05], size=(RUNS, 200))
    both = np.maximum(log_wealth(rows, truth), log_wealth(-rows, -truth)).max(axis=-1)
    missed = float((both >= math.log(2 / ALPHA)).mean())
    assert missed <= ALPHA + SLACK
    for row in rows[:20]:
        last = follow(row, looks=[50, 100, 150, 200], alpha=ALPHA)[-1]
        covered = log_wealth(row, truth)[[49, 99, 149, 199]].max() < math.log(2 / ALPHA)
        assert (last.low <= truth) == covered


def test_a_planted_advantage_is_found():
    random = np.random.default_rng(8)
    assert crossed(patients(random, (500, 150), gain=0.05), 0.0, ALPHA / 2) > 0.9
    assert crossed(patients(random, (500, 400), gain=0.03), 0.0, ALPHA / 2) > 0.9
    assert crossed(-patients(random, (500, 150), gain=-0.08), 0.02, ALPHA / 2) > 0.9


@given(differences, st.floats(-0.9, 0.9))
def test_against_a_naive_implementation(values, mean):
    assert np.exp(log_wealth(values, mean)[-1]) == pytest.approx(naive(values, mean), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(differences, st.floats(0, 0.2))
def test_the_history_is_consistent(values, margin):
    history = follow(values, margin=margin)
    assert [look.units for look in history] == list(range(1, len(values) + 1))
    wealth, other = np.exp(log_wealth(values, 0.0)), np.exp(log_wealth(-values, margin))
    assert [look.better for look in history] == pytest.approx(wealth, rel=1e-9)
    assert [look.worse for look in history] == pytest.approx(other, rel=1e-9)
    assert [look.p_better for look in history] == pytest.approx(np.minimum.accumulate(1 / np.maximum(wealth, 1)))
    for before, after in itertools.pairwise(history):
        assert before.low <= after.low and after.high <= before.high
        assert after.p_better <= before.p_better and after.p_worse <= before.p_worse
    last = history[-1]
    assert -1 <= last.low <= 1 and -1 <= last.high <= 1
    if max(wealth) > 2 / sequential.ALPHA * 1.001:
        assert verdict(last, margin=margin) == "better"


@settings(max_examples=50, deadline=None)
@given(differences, st.randoms())
def test_the_order_within_a_look_does_not_matter(values, random):
    shuffled = values.tolist()
    random.shuffle(shuffled)
    (a,), (b,) = (follow(np.array(row), looks=[len(values)]) for row in (values, shuffled))
    assert (a.better, a.worse) == pytest.approx((b.better, b.worse), rel=1e-9)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=5e-5)


@given(differences)
def test_exchanging_the_models_turns_the_interval_round(values):
    (ours,), (theirs,) = (follow(sign * values, looks=[len(values)]) for sign in (1, -1))
    assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low), abs=1e-12)


def test_each_side_speaks_of_its_own_question():
    random = np.random.default_rng(9)
    planted = {"better": (0.02, 0.08), "worse": (0.1, 0.02), "not worse": (0.03, 0.03)}
    for word, (lost, won) in planted.items():
        values = random.choice([-1.0, 0.0, 1.0], p=[lost, 1 - lost - won, won], size=3000)
        last = follow(values, looks=range(100, 3001, 100), margin=0.02)[-1]
        assert verdict(last, margin=0.02) == word
        assert (last.better >= 40) == (word == "better")
        assert (last.worse >= 40) == (word == "worse")
        assert last.low <= won - lost <= last.high


def test_the_words():
    def look(low, high):
        return Look(units=9, mean=0.0, better=1.0, worse=1.0, p_better=1.0, p_worse=1.0, low=low, high=high)

    assert verdict(look(0.01, 0.1)) == "better"
    assert verdict(look(-0.01, 0.1)) == "not worse"
    assert verdict(look(-0.3, -0.03)) == "worse"
    assert verdict(look(-0.3, 0.1)) == "undecided"


def test_extremes_stay_finite():
    last = follow(np.ones(3000), looks=[3000])[-1]
    assert math.isfinite(last.better) and last.low > 0.99 and last.high == 1
    assert follow(np.zeros(0)) == []


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        ([1.5], {}, "differences"),
        ([float("nan")], {}, "differences"),
        ([0.0], {"margin": -0.1}, "margin"),
        ([0.0], {"alpha": 0.0}, "alpha"),
        ([0.0], {"looks": [2]}, "looks"),
        ([0.0, 0.0], {"looks": [2, 1]}, "looks"),
    ],
)
def test_what_cannot_be_is_refused(values, options, words):
    with pytest.raises(ValueError, match=words):
        follow(np.array(values), **options)
    with pytest.raises(ValueError, match="`mean`"):
        log_wealth(np.array([0.0]), 1.0)
