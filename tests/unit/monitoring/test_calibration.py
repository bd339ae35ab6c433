"""Scores equal to Evidently's and scipy's, and thresholds that alarm as often as they say."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blastwatch.errors import DataError, UsageError
from blastwatch.package import DriftReference
from monitoring.calibration import (
    FALSE_ALARM_RATE,
    _freedoms,
    basis,
    calibrate,
    scale_quantile,
    simulate,
    thresholds_for,
)
from monitoring.commands import calibrate as calibrate_command
from monitoring.directions import DIRECTIONS
from monitoring.reference import build_reference, reference_columns
from monitoring.scores import ANSWERED, EVIDENTLY_DEFAULT, MEASURED, METHODS, jensen_shannon, wasserstein
from monitoring.statistics import STATISTICS
from tests.cohorts import draw_cohort, scores_of, unanswered, window_of
from training.parameters import PackageParameters

WITHOUT_SIGNATURES = {name: method for name, method in METHODS.items() if name not in DIRECTIONS}
samples = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


def one_window(reference, current, score):
    """A score of `monitoring.scores` for two samples."""
    side = np.r_[np.ones(len(reference)), np.zeros(len(current))][None]
    return score(np.concatenate([reference, current]), 1 - side, side)[0]


def drawn(**size):
    return DriftReference(draw_cohort(np.random.default_rng(0), **size))


@settings(max_examples=60, deadline=None)
@given(samples, samples)
@example([0.0, 0.0025], [1.1229034035588938, 634.5])  # 250,000 standard deviations away
def test_wasserstein_is_scipys_over_the_standard_deviation(reference, current):
    from scipy import stats

    expected = stats.wasserstein_distance(reference, current) / max(np.std(reference), 0.001)
    assert one_window(np.array(reference), np.array(current), wasserstein) == pytest.approx(
        expected, rel=1e-6, abs=1e-6
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.lists(st.booleans(), min_size=1, max_size=30))
def test_jensen_shannon_is_scipys(reference, current):
    from scipy.spatial import distance

    first, second = np.mean(reference), np.mean(current)
    expected = distance.jensenshannon([first, 1 - first], [second, 1 - second])
    found = one_window(np.array(reference), np.array(current), jensen_shannon)
    assert found == pytest.approx(np.nan_to_num(expected), abs=1e-7)


def test_a_window_draws_whole_groups_that_leave_the_reference_side():
    groups = np.repeat(np.arange(6), [5, 50, 10, 20, 30, 40])
    windows, sides = simulate(groups, cells=61, patients=3, count=50, generator=np.random.default_rng(0))
    assert (windows.sum(axis=1) == 61).all()
    for window, side in zip(windows, sides, strict=True):
        inside, outside = set(groups[window > 0]), set(groups[side > 0])
        assert len(inside) == 3 and not inside & outside and inside | outside == set(range(6))
        for group in inside:  # no cell twice before every cell of its group came once
            counts = window[groups == group]
            assert counts.max() - counts.min() <= 1


@pytest.fixture(scope="module")
def rates():
    """Share of windows that alarm: without drift at our thresholds and at Evidently's, and with a stain shift."""
    calm, default, shifted = [], [], []
    for seed in range(12):
        random = np.random.default_rng(seed)
        cohort = draw_cohort(random, patients=12 + 24, cells=40)
        names = sorted(cohort["group"].unique())
        reference = cohort[cohort["group"].isin(names[:12])].reset_index(drop=True)
        known = DriftReference(reference)
        thresholds = thresholds_for(calibrate(known, false_alarm_rate=0.05, resamples=300, window_sizes=(90,)), 90)
        for start in range(12, 36, 3):
            window = window_of(cohort, names[start : start + 3], 90, random)
            found = scores_of(reference, window)
            calm.append(any(found[name] >= limit for name, limit in thresholds.items()))
            default.append(any(found[name] >= EVIDENTLY_DEFAULT[METHODS[name]] for name in found))
            stained = window.assign(od_red=window["od_red"] + 4 * reference["od_red"].std())
            found = scores_of(reference, stained)
            shifted.append(found["od_red"] >= thresholds["od_red"])
    return np.mean(calm), np.mean(default), np.mean(shifted)


def test_new_patients_alarm_about_as_often_as_stated(rates):
    calm, default, _ = rates
    assert calm <= 0.10  # stated 0.05; 96 windows of 12 cohorts
    assert default > 0.9


def test_a_stain_shift_is_found(rates):
    assert rates[2] > 0.9


def test_calibration_says_what_it_did():
    reference = drawn(patients=12, cells=30)
    found = calibrate(reference, resamples=200, seed=3)
    assert (found["groups"], found["cells"], found["patients"], found["seed"]) == (12, 360, 3, 3)
    assert found["enough_groups"] is True and found["left_out"] == []
    assert found["methods"] == WITHOUT_SIGNATURES
    assert [window["cells"] for window in found["windows"]] == [30, 100, 300]
    assert found == calibrate(reference, resamples=200, seed=3)
    assert set(found["windows"][0]["thresholds"]) == {*MEASURED, "probability", "predicted_label", "embedding"}
    stricter = calibrate(reference, resamples=200, seed=3, false_alarm_rate=0.2)
    assert stricter["windows"][1]["thresholds"]["focus"] < found["windows"][1]["thresholds"]["focus"]


def test_patients_trained_on_narrow_what_is_measured_and_say_nothing_of_answers():
    cohort = draw_cohort(np.random.default_rng(0), patients=24, cells=30)
    held_out, learned = cohort[cohort["group"] < "P008"], cohort[cohort["group"] >= "P008"]
    alone = calibrate(DriftReference(held_out), resamples=300)
    both = calibrate(DriftReference(pd.concat([held_out, unanswered(learned)])), resamples=300)
    every = calibrate(DriftReference(cohort), resamples=300)
    assert (alone["groups"], alone["answered_groups"], alone["enough_groups"]) == (8, 8, False)
    assert (both["groups"], both["answered_groups"], both["enough_groups"], both["cells"]) == (24, 8, False, 720)
    assert (every["groups"], every["answered_groups"], every["enough_groups"]) == (24, 24, True)
    said = [basis(found) for found in (alone, both, every)]
    assert [one["said"] for one in said] == [
        "from 8 known patients", "from 24 known patients, 8 of them with answers", "from 24 known patients"
    ]  # fmt: skip
    assert "from 8 patients and 10 are needed" in said[1]["caution"] and said[2]["caution"] is None
    assert basis({"format": 1, "windows": []}) is None
    assert both["methods"] == alone["methods"] == WITHOUT_SIGNATURES
    few, more, all_ = (np.array([row["thresholds"][name] for name in MEASURED])
                       for row in (found["windows"][1] for found in (alone, both, every)))  # fmt: skip
    assert (more < few).all() and np.median(more / all_) < 1.2
    # The answers are looked at by themselves, with the same eight patients, so still wide.
    few, more, all_ = (np.array([row["thresholds"][name] for name in ANSWERED])
                       for row in (found["windows"][1] for found in (alone, both, every)))  # fmt: skip
    assert (more > 1.5 * all_).all() and (more / few < 1.1).all()


def test_one_odd_patient_of_many_blinds_no_other_column():
    """Each of 40 patients is in 7.5 % of the windows, fewer than lie above a column's 0.9 quantile: what is odd in one
    of them would come into the thresholds of all columns alike, here thirteen times as high."""
    cohort = draw_cohort(np.random.default_rng(3), patients=40, cells=30)
    odd = cohort.copy()
    odd.loc[odd["group"] == "P000", "cell_area"] += 30 * odd["cell_area"].std()
    plain, found = (
        thresholds_for(calibrate(DriftReference(rows), resamples=500, window_sizes=(90,)), 90) for rows in (cohort, odd)
    )
    assert found["cell_area"] > 5 * plain["cell_area"]
    others = [name for name in plain if name != "cell_area"]
    assert [found[name] for name in others] == pytest.approx([plain[name] for name in others], rel=0.05)


@pytest.mark.parametrize(("groups", "expected"), [(2, 0.9), (29, 0.9), (30, 0.95), (60, 0.975)])
def test_the_scale_of_a_column_is_higher_where_each_patient_is_in_fewer_windows(groups, expected):
    assert scale_quantile(groups, 3) == pytest.approx(expected)


def test_a_window_takes_the_thresholds_of_the_largest_size_it_reaches():
    found = calibrate(drawn(patients=5, cells=30), resamples=100)
    by_size = {window["cells"]: window["thresholds"] for window in found["windows"]}
    assert found["enough_groups"] is False
    assert thresholds_for(found, 30) == thresholds_for(found, 99) == by_size[30]
    assert thresholds_for(found, 5000) == by_size[300]
    with pytest.raises(DataError, match="at least 30 predictions for a verdict on drift but got 29"):
        thresholds_for(found, 29)
    with pytest.raises(DataError, match="of format 1 but got 9"):
        thresholds_for(found | {"format": 9}, 100)


def test_a_constant_column_is_left_out_and_named():
    reference = drawn(patients=4, cells=20).cells.assign(focus=1.0)
    found = calibrate(DriftReference(reference), resamples=100)
    assert found["left_out"] == ["focus"] and "focus" not in found["methods"]


def test_one_patient_is_not_enough():
    with pytest.raises(DataError, match="at least 2 patients in the reference but got 1"):
        calibrate(drawn(patients=1, cells=50))


@pytest.mark.parametrize(
    "wrong", [{"false_alarm_rate": 0.0}, {"patients": 0}, {"resamples": 0}, {"window_sizes": (0, 30)}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
        calibrate(drawn(patients=3, cells=10), **wrong)


def test_build_reference_puts_the_columns_in_order_and_refuses_what_does_not_fit():
    rows = draw_cohort(np.random.default_rng(0), patients=3, cells=4)
    parts = {
        "statistics": rows[list(STATISTICS)].to_dict("records"),
        "answers": (rows["probability"].to_numpy(), rows[[f"e{n:02d}" for n in range(32)]].to_numpy()),
    }
    built = build_reference(rows[["subject", "group", "label"]], **parts)
    assert tuple(built.columns) == reference_columns()
    pd.testing.assert_frame_equal(built, rows, check_dtype=False)
    with pytest.raises(DataError, match="for 11 cells"):
        build_reference(rows.iloc[1:], **parts)
    with pytest.raises(DataError, match="Expected finite reference values but probability has others"):
        build_reference(rows, **(parts | {"answers": (np.full(12, np.nan), parts["answers"][1])}))
    with pytest.raises(DataError, match="labels hem, all but got blast"):
        build_reference(rows.assign(label="blast"), **parts)


def test_packages_and_the_command_have_the_same_rate_by_default():
    (option,) = (each for each in calibrate_command.params if each.name == "false_alarm_rate")
    assert option.default == FALSE_ALARM_RATE == PackageParameters().false_alarm_rate


def test_the_command_takes_no_rate_that_so_few_windows_cannot_give():
    done = CliRunner().invoke(calibrate_command, ["--resamples", "999"])
    assert isinstance(done.exception, UsageError) and "Expected --resamples to be 1000 or more" in str(done.exception)


def test_what_a_direction_is_fitted_with_takes_degrees_of_freedom():
    assert _freedoms(20, {"parameters": 5.5}) == 13.5
