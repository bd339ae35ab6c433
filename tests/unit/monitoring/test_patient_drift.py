"""Drift over patients: the p-values, the bets, what alarms and what does not, and when it is over."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, poisson

from monitoring.patient_drift import (
    AGAIN,
    JUMPS,
    PATIENTS_PER_FALSE_ALARM,
    STEEPEST,
    STEPS,
    Bets,
    courses,
    evidence_of,
    follow,
    p_values,
    patient_means,
    shares,
    stakes,
)
from monitoring.scores import MEASURED, PROBABILITY
from tests.cohorts import draw_cohort, unanswered

NEEDED = 2 * PATIENTS_PER_FALSE_ALARM  # of the probability, which has half of the false alarms


def mean_probabilities(random, patients, ill):
    """Of patients of whom a share is ill."""
    return np.where(random.random(patients) < ill, random.beta(6, 1.5, patients), random.beta(3, 5, patients))


def course(random, *parts, known=36, needed=NEEDED):
    """Of a stream of parts (patients, share of the ill); two in three of those known are ill."""
    stream = np.concatenate([mean_probabilities(random, *part) for part in parts])
    return follow(mean_probabilities(random, known, 2 / 3), stream, random.random(len(stream)), needed)


values = st.lists(st.integers(0, 6), max_size=20).map(lambda some: np.array(some, dtype=np.float64))


@settings(max_examples=60, deadline=None)
@given(known=values, stream=values, seed=st.integers(0, 99))
def test_a_p_value_is_the_share_of_those_so_far_whose_value_is_lower(known, stream, seed):
    uniforms = np.random.default_rng(seed).random(len(stream))
    found = p_values(known, stream, uniforms)
    for place, value in enumerate(stream):
        so_far = np.concatenate([known, stream[: place + 1]])
        expected = np.mean(so_far < value) + uniforms[place] * np.mean(so_far == value)
        assert found[place] == pytest.approx(expected) and 0 <= found[place] < 1


def test_p_values_of_exchangeable_patients_are_uniform_and_independent():
    random = np.random.default_rng(0)
    rows = [p_values(random.exponential(size=5), random.exponential(size=20), random.random(20)) for _ in range(400)]
    found = np.array(rows)
    assert kstest(found.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(found[:, :-1].ravel(), found[:, 1:].ravel())[0, 1]) < 3 / np.sqrt(found[:, 1:].size)


def simple_jumper(ranks):
    """Algorithm 8.1 of the book, written down once more."""
    bets = [lambda p, e=e: 1 + e * (p - 0.5) for e in (-STEEPEST, 0, STEEPEST)]
    bets += [lambda p, a=a, b=b: b / a if p <= a else (1 - b) / (1 - a) for a, b in STEPS]
    stakes, found = [1 / len(bets)] * len(bets), [1.0]
    for p in ranks:
        total = sum(stakes)
        stakes = [(1 - JUMPS) * stake + JUMPS / len(bets) * total for stake in stakes]
        stakes = [stake * bet(p) for stake, bet in zip(stakes, bets, strict=True)]
        found.append(sum(stakes))
    return np.array(found)


def test_the_stake_is_that_of_the_book_and_the_evidence_sums_over_all_beginnings():
    ranks = np.random.default_rng(1).random(60) ** 1.3
    stake = stakes(ranks, np.inf)
    np.testing.assert_allclose(stake, simple_jumper(ranks), rtol=1e-12)
    evidence = [sum(stake[n] / stake[begin] for begin in range(n)) for n in range(1, 61)]
    np.testing.assert_allclose(evidence_of(stake), evidence, rtol=1e-12)


def test_bets_are_fair():
    """Each makes 1 of 1 in the mean over uniform ranks and never loses all; else nothing that is said of false alarms
    holds."""
    made = Bets().apply((np.arange(100_000) + 0.5) / 100_000)
    assert made.shape == (100_000, 3 + len(STEPS)) and (made > 0).all()
    np.testing.assert_allclose(made.mean(axis=0), 1, rtol=1e-9)


def test_false_alarms_stay_below_what_is_stated():
    random = np.random.default_rng(2)
    alarms = sum(len(course(random, (300, 2 / 3), known=23, needed=200.0).changes) for _ in range(100))
    assert 0 < alarms <= poisson.ppf(0.999, 100 * 300 / 200)


@pytest.mark.parametrize(("ill", "share", "within"), [(0.0, 0.95, 40), (1.0, 0.8, 80)])
def test_another_mix_of_patients_is_found_and_dated(ill, share, within):
    random = np.random.default_rng(3)
    found = [course(random, (40, 2 / 3), (100, ill)).changes for _ in range(60)]
    late = [change for changes in found for change in changes if change.found >= 40]
    assert np.mean([change.found < 40 + within for change in late]) >= share and len(late) >= share * 60
    assert abs(np.median([change.since for change in late]) - 40) <= 6


def test_an_alarm_ends_when_patients_are_again_as_before_and_those_between_are_held_against_nobody():
    random = np.random.default_rng(3)
    found = course(random, (40, 2 / 3), (40, 0.0), (120, 2 / 3))
    change, *others = found.changes
    assert not others and found.alarm is None
    assert 40 <= change.found < 75 and 60 < change.until <= 80 + AGAIN and found.evidence < 1
    assert len(found.baseline) == 36 + change.since


def test_an_alarm_stands_while_the_change_does():
    found = course(np.random.default_rng(5), (40, 2 / 3), (160, 0.0))
    assert found.alarm is found.changes[-1] and len(found.changes) == 1 and found.evidence >= 1


def two_kinds(random, patients, ill):
    """Means of patients of whom a share is ill, and whom the model tells apart without doubt."""
    return np.where(random.random(patients) < ill, random.beta(20, 2, patients), random.beta(2, 20, patients))


def alarms_of(random, *parts, streams):
    """The first alarm of each stream in which it came after the fortieth patient."""
    found = []
    for _ in range(streams):
        stream = np.concatenate([two_kinds(random, *part) for part in parts])
        changes = follow(two_kinds(random, 36, 0.69), stream, random.random(len(stream)), NEEDED).changes
        found += [change for change in changes[:1] if 40 <= change.found < 140]
    return found


def test_an_alarm_of_a_small_change_that_stays_hardly_ever_ends():
    """Of the many rows of patients that overlap some look as before by chance."""
    found = alarms_of(np.random.default_rng(11), (40, 0.69), (300, 0.33), streams=24)
    assert len(found) >= 10 and sum(change.until is not None for change in found) <= 0.25 * len(found)


def test_after_a_return_an_alarm_ends_soon():
    found = alarms_of(np.random.default_rng(12), (40, 0.69), (100, 0.2), (200, 0.69), streams=16)
    ended = [np.inf if change.until is None else change.until + AGAIN - 140 for change in found]
    assert len(found) >= 10 and np.median(ended) <= 90


def test_only_the_order_of_values_counts():
    random = np.random.default_rng(6)
    known, stream, uniforms = random.normal(size=20), random.normal(size=90) + 1.5, random.random(90)
    one, other = follow(known, stream, uniforms, NEEDED), follow(np.exp(known), np.exp(stream), uniforms, NEEDED)
    assert one.changes == other.changes and one.evidence == other.evidence and one.changes


def test_a_change_that_stays_for_a_thousand_patients_overflows_nothing():
    random = np.random.default_rng(7)
    found = follow(random.normal(size=400), random.normal(size=1000) + 50, random.random(1000), 1e5)
    assert found.alarm is not None and found.alarm.since <= 2 and np.isfinite(found.evidence)


def test_nobody_came():
    found = follow(np.array([1.0, 2.0]), np.empty(0), np.empty(0), NEEDED)
    assert (found.evidence, found.changes, list(found.baseline)) == (0.0, (), [1.0, 2.0])


def test_shares_of_the_false_alarms():
    found = shares((*MEASURED, PROBABILITY))
    assert sum(found.values()) == pytest.approx(1) and found[PROBABILITY] == 0.5
    assert len({found[name] for name in MEASURED}) == 1
    assert shares(MEASURED[:2]) == dict.fromkeys(MEASURED[:2], 0.5) and shares(()) == {}


def test_patients_without_a_value_and_columns_that_do_not_vary_are_left_out():
    random = np.random.default_rng(8)
    known = pd.DataFrame({"focus": random.normal(size=20), "od_red": np.ones(20), PROBABILITY: random.random(20)})
    known.loc[5:, PROBABILITY] = np.nan  # of those the model learned from
    came = pd.DataFrame({name: random.normal(size=80) for name in known})
    came["focus"] += 4.0
    came.loc[::2, "focus"] = np.nan
    found = courses(known, came, random.random(80))
    assert list(found) == ["focus", PROBABILITY] and len(found[PROBABILITY].baseline) >= 5
    alarm = found["focus"].alarm
    assert alarm.since % 2 == 1 and alarm.found % 2 == 1 and alarm.since <= 5


def test_means_of_known_patients():
    rows = draw_cohort(np.random.default_rng(9), patients=4, cells=40)
    rows = pd.concat([rows, unanswered(rows[rows["group"] == "P001"].assign(group="P009"))], ignore_index=True)
    found = patient_means(rows, 40)
    assert list(found.index) == ["P000", "P001", "P002", "P003", "P009"]
    np.testing.assert_allclose(found.loc["P002", "focus"], rows.loc[rows["group"] == "P002", "focus"].mean())
    assert found[PROBABILITY].isna().tolist() == [False] * 4 + [True]
    few = patient_means(rows, 3).loc["P000", "focus"]
    assert few == pytest.approx(rows.loc[rows["group"] == "P000", "focus"].iloc[[0, 20, 39]].mean())
