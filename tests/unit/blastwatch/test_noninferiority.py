"""The paired test by patient against scipy, its properties, and its behaviour where patients are few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from blastwatch.noninferiority import compare_by_patient, lower_bound, patient_differences, unseen_share
from tests.benchmarks.noninferiority import World, passing, passing_rare

answers = st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), min_size=1, max_size=60)
levels = st.floats(0.5, 0.999)


def columns(rows):
    """Patients of even number have blasts; the first two of each label are always there."""
    rows = [*rows, *((patient, True, True) for patient in range(4))]
    patients = [str(patient) for patient, _, _ in rows]
    labels = ["hem" if patient % 2 else "all" for patient, _, _ in rows]
    return patients, labels, [row[1] for row in rows], [row[2] for row in rows]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("confidence", [0.6, 0.8, 0.9, 0.975])
def test_the_bound_is_welchs(seed, confidence):
    """D is half the difference of the means of d_ill and of -d_healthy, so its bound is half that of Welch's test."""
    random = np.random.default_rng(seed)
    ill, healthy = random.normal(-0.02, 0.1, 3 + seed), random.normal(0.01, 0.3, 9)
    difference, low = lower_bound(ill, healthy, confidence=confidence)
    theirs = stats.ttest_ind(ill, -healthy, equal_var=False, alternative="greater")
    assert difference == pytest.approx((ill.mean() + healthy.mean()) / 2)
    assert low == pytest.approx(theirs.confidence_interval(confidence).low / 2)


def test_the_bound_decides_as_a_test_of_the_summed_up_figures():
    """Reject "worse by more than the margin" exactly where the one-sided p-value is at most 1 - confidence."""
    random = np.random.default_rng(1)
    for _ in range(200):
        ill, healthy, margin = random.normal(0, 0.1, 5), random.normal(0, 0.2, 7), random.uniform(0, 0.15)
        parts = [(v.mean(), v.std(ddof=1), len(v)) for v in (ill + 2 * margin, -healthy)]
        p = stats.ttest_ind_from_stats(*parts[0], *parts[1], equal_var=False, alternative="greater").pvalue
        low = lower_bound(ill, healthy, confidence=0.9)[1]
        assert (p <= 0.1) == (low >= -margin)


def test_a_stratum_without_spread_leaves_the_other_ones_t_test():
    ill = np.array([-0.2, 0.0, 0.1, 0.05])
    low = lower_bound(ill, np.zeros(6), confidence=0.95)[1]
    assert low == pytest.approx(stats.ttest_1samp(ill, 0).confidence_interval(0.9).low / 2)


def test_leading_axes_are_comparisons_of_their_own():
    random = np.random.default_rng(2)
    ill, healthy = random.normal(size=(4, 3, 5)), random.normal(size=(4, 3, 8))
    difference, low = lower_bound(ill, healthy, confidence=0.9)
    assert difference.shape == low.shape == (4, 3)
    one = lower_bound(ill[2, 1], healthy[2, 1], confidence=0.9)
    assert (difference[2, 1], low[2, 1]) == pytest.approx(one)


def test_the_mean_is_over_patients_and_not_over_cells():
    """A patient of a hundred cells weighs as much as one of a single cell."""
    patients = ["a"] * 100 + ["b"] + ["c"] * 10 + ["d"] * 10
    labels = ["all"] * 101 + ["hem"] * 20
    candidate = [True] * 100 + [False] + [True] * 20
    found = compare_by_patient(patients, labels, candidate, [True] * 121, confidence=0.9)
    assert found.difference == pytest.approx(-0.25)
    assert found.patients == {"all": 2, "hem": 2}


def test_one_patient_of_a_label_cannot_be_judged():
    assert compare_by_patient(["a", "b", "c"], ["all", "all", "hem"], [1, 1, 1], [1, 1, 1], confidence=0.9) is None
    assert compare_by_patient([], [], [], [], confidence=0.9) is None
    with pytest.raises(ValueError, match=r"2 patients or more of each label but got \[1, 2\]"):
        lower_bound([0.0], [0.0, 0.1], confidence=0.9)


@pytest.mark.parametrize("confidence", [0.4, 1.0, float("nan")])
def test_a_wrong_confidence_is_named(confidence):
    with pytest.raises(ValueError, match="Expected `confidence`"):
        lower_bound([0.0, 0.1], [0.0, 0.1], confidence=confidence)


def test_few_patients_widen_the_bound():
    """The same spread in two patients a label instead of eight."""
    lows = [lower_bound([-0.1, 0.1] * n, [-0.1, 0.1] * n, confidence=0.9)[1] for n in (1, 2, 4)]
    assert lows == sorted(lows)
    assert lows[0] < -0.1


def test_patients_of_two_labels_widen_the_bound():
    """Where the audit tied an ill subject to a healthy one, their answers go together."""
    apart = [("a", "all", 0), ("b", "all", 1), ("c", "all", 1), ("d", "hem", 0), ("e", "hem", 1), ("f", "hem", 1)]
    tied = [(patient.replace("d", "a").replace("e", "b"), label, right) for patient, label, right in apart]
    lows = []
    for rows in (apart, tied):
        patients, labels, right = zip(*rows, strict=True)
        lows.append(compare_by_patient(patients, labels, right, [1] * 6, confidence=0.9))
    assert lows[0].difference == lows[1].difference == pytest.approx(-1 / 3)
    assert lows[1].low < lows[0].low


@given(answers, levels, st.floats(0, 1))
@settings(deadline=None)
def test_identical_versions_always_pass(rows, confidence, margin):
    patients, labels, candidate, _ = columns(rows)
    found = compare_by_patient(patients, labels, candidate, candidate, confidence=confidence)
    assert (found.difference, found.low) == (0, 0)
    assert found.within(margin) and found.within(0)


@given(answers, levels, st.floats(0, 1), st.floats(0, 1))
@settings(deadline=None)
def test_what_passes_passes_by_a_wider_margin_and_a_lower_confidence(rows, confidence, one, two):
    narrow, wide = sorted((one, two))
    sure = compare_by_patient(*columns(rows), confidence=confidence)
    assert sure.within(wide) or not sure.within(narrow)
    assert sure.low <= sure.difference + 1e-12
    assert compare_by_patient(*columns(rows), confidence=0.5).low >= sure.low - 1e-12


@given(answers, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_of_patients_and_cells_does_not_matter(rows, random):
    cells = list(zip(*columns(rows), strict=True))
    shuffled = cells[:]
    random.shuffle(shuffled)
    found, again = (compare_by_patient(*zip(*c, strict=True), confidence=0.9) for c in (cells, shuffled))
    assert found == again


@given(answers)
@settings(deadline=None)
def test_the_two_versions_mirror_each_other(rows):
    patients, labels, candidate, champion = columns(rows)
    there = compare_by_patient(patients, labels, candidate, champion, confidence=0.9)
    back = compare_by_patient(patients, labels, champion, candidate, confidence=0.9)
    assert there.difference == pytest.approx(-back.difference)
    assert there.difference - there.low == pytest.approx(back.difference - back.low)


def test_differences_by_patient():
    table = patient_differences(["b", "a", "b", "a"], ["all", "hem", "all", "hem"], [1, 0, 1, 1], [0, 1, 1, 0])
    assert table.to_dict("list") == {"patient": ["a", "b"], "label": ["hem", "all"], "difference": [0.0, 0.5]}


@pytest.mark.parametrize(("patients", "confidence"), [(3, 0.95), (5, 0.95), (20, 0.9)])
def test_a_version_that_is_worse_by_the_margin_passes_as_seldom_as_is_said(patients, confidence):
    """Simulated cells of patients who differ; 2,000 draws err by half a percentage point themselves."""
    shares = passing(World(), -0.05, patients, draws=2000, seed=3)
    assert shares[0.05, confidence] == pytest.approx(1 - confidence, abs=0.02)
    assert shares[0.02, confidence] < shares[0.05, confidence] < shares[0.10, confidence]


def test_a_loss_in_rare_patients_passes_far_more_often_than_one_in_all():
    """A true loss of the margin: five patients of each label hardly ever hold the 6 % on whom the candidate fails."""
    few, many = (passing_rare(0.057, 0.88, patients, draws=2000, seed=3) for patients in (5, 80))
    assert few == pytest.approx((1 - 0.057) ** 10, abs=0.04) and 0.05 < many < 0.15
    share = unseen_share(5, confidence=0.95)
    assert (1 - share) ** 5 == pytest.approx(0.05)


def test_patients_of_both_labels_are_the_paired_t_test():
    """What a patient's two halves share widens the bound, and takes degrees of freedom."""
    rows = [(0, 0), (1, 1), (0, 1), (1, 1), (0, 0)]  # whether the candidate is right on the blast, on the normal cell
    patients = [str(number) for number in range(len(rows)) for _ in range(2)]
    right = [value for row in rows for value in row]
    found = compare_by_patient(patients, ["all", "hem"] * len(rows), right, [1] * len(right), confidence=0.9)
    differences = [(one - 1 + other - 1) / 2 for one, other in rows]
    assert found.low == pytest.approx(stats.ttest_1samp(differences, 0).confidence_interval(0.8).low)
