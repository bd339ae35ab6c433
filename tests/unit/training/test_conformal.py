"""The conformal decision: its quantile by hand, and its promise over many simulated calibrations and patients."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.decision import decide
from blastwatch.intervals import draw_patients
from tests.answers import Spread, draw_models
from training.conformal import (
    METHODS,
    Scores,
    attainable,
    coverage_report,
    expected_coverage,
    expected_told,
    fit_conformal,
)
from training.figures import plain, units_of


def arrays(table):
    return table["probability"].to_numpy(), (table["label"] == "all").to_numpy().astype(int), table["group"].to_numpy()


USUAL = Spread()


def drawn(seed, *, patients, cells=12, spread=USUAL):
    (table,) = draw_models(np.random.default_rng(seed), [0.8], patients=patients, cells=cells, spread=spread)
    return table


def covered(table, thresholds):
    names = ["coverage_over_healthy", "coverage_over_ill"]
    return list(plain(units_of(table, thresholds=thresholds), names).values())


def test_the_pooled_limit_by_hand():
    """Three healthy patients: masses 1/4 each and 1/4 for the one to come. An error of 0.4 wants 0.6 of the mass."""
    blast = np.array([0.1, 0.2, 0.3, 0.8, 0.5, 0.6, 0.9, 0.9, 0.9])
    labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    groups = np.array(["a", "a", "b", "b", "c", "c", "x", "y", "z"])
    found = fit_conformal(blast, labels, groups, error=0.4, method="pooled")
    # Cumulated: 0.1 1/8, 0.2 2/8, 0.3 3/8, 0.5 4/8, 0.6 5/8.
    assert found.thresholds.hem == found.thresholds.all  # the classes lie apart
    assert 0.6 < found.thresholds.all <= 0.9
    found = fit_conformal(np.where(labels == 1, 0.4, blast), labels, groups, error=0.4, method="pooled")
    assert found.thresholds.all == np.nextafter(0.6, 1) and found.thresholds.hem == np.nextafter(0.4, 0)
    assert found.patients == {"hem": 3, "all": 3} and found.guaranteed == {"hem": 0.4, "all": 0.4}


@pytest.mark.parametrize("error", [0.1, 0.25, 0.4, 0.6])
def test_the_subsampled_limit_is_the_median_over_every_draw_of_one_cell_a_patient(error):
    random = np.random.default_rng(round(100 * error))
    cells = [random.random(size) for size in (2, 3, 4, 3)]
    scores = np.concatenate(cells)
    groups = np.repeat(list("abcd"), [len(own) for own in cells])
    rank = int(np.ceil(5 * (1 - max(error, 0.2)) - 1e-9))
    limits = np.sort([np.sort(drawn)[rank - 1] for drawn in product(*cells)])
    median = limits[int(np.ceil(len(limits) / 2)) - 1]
    plain = Scores(scores, groups).at_mass(1 - error)
    assert METHODS["subsampled"](Scores(scores, groups), error) == (max(median, plain) if error < 0.2 else median)


def test_with_one_cell_a_patient_both_limits_are_the_usual_one():
    scores = np.random.default_rng(1).random(19)
    for method in METHODS.values():
        assert method(Scores(scores, np.arange(19)), 0.1) == np.sort(scores)[17]


def test_too_few_patients_promise_less_and_say_so():
    table = drawn(1, patients=8)
    pooled = fit_conformal(*arrays(table), error=0.1, method="pooled")
    assert pooled.aimed == pooled.guaranteed == {"hem": 0.2, "all": 0.2}
    assert covered(table, pooled.thresholds) == [1, 1]  # no calibration cell is decided wrongly
    subsampled = fit_conformal(*arrays(table), error=0.1, method="subsampled")
    assert subsampled.aimed == {"hem": 0.2, "all": 0.2} and subsampled.guaranteed == {"hem": 0.4, "all": 0.4}
    assert all(share >= 0.9 for share in covered(table, subsampled.thresholds))
    assert attainable(9, 0.1) == pytest.approx(0.1) and attainable(8, 0.1) > 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.3]), st.integers(2, 30), st.floats(0, 2))
def test_the_pooled_error_holds_on_the_calibration_patients_themselves(seed, error, patients, spread):
    table = drawn(seed, patients=2 * patients, cells=6, spread=Spread(patient=spread))
    table["probability"] = table["probability"].clip(0.01, 0.99).round(2)
    found = fit_conformal(*arrays(table), error=error, method="pooled")
    for share, name in zip(covered(table, found.thresholds), ("hem", "all"), strict=True):
        assert share >= (1 - found.guaranteed[name]) * (patients + 1) / patients - 1e-9


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(sorted(METHODS)))
def test_the_order_of_the_cells_does_not_matter(seed, method):
    table = drawn(seed, patients=12, cells=6)
    mixed = table.sample(frac=1, random_state=seed)
    there, back = (fit_conformal(*arrays(cells), error=0.2, method=method) for cells in (table, mixed))
    assert there.thresholds == back.thresholds


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(("patients", "error", "spread"), [(24, 0.1, 1.5), (24, 0.3, 0.0), (8, 0.1, 1.0)])
def test_the_mean_coverage_of_new_patients_is_what_was_aimed_at(method, patients, error, spread):
    """Over 200 calibrations, each asked of 20 new patients. A class that is too well told apart would hide a fault."""
    shares, world = [], Spread(patient=spread)
    for seed in range(200):
        held = drawn(seed, patients=patients, cells=8, spread=world)
        found = fit_conformal(*arrays(held), error=error, method=method)
        shares.append(covered(drawn(10_000 + seed, patients=40, cells=8, spread=world), found.thresholds))
    least = 1 - attainable(patients // 2, error)
    for column in np.array(shares).T:
        noise = column.std() / np.sqrt(len(column))
        assert column.mean() >= least - 2.5 * noise
        assert column.mean() <= least + 2 / (patients // 2 + 1) + 2.5 * noise  # not held by referring everything


def test_a_quantile_over_cells_would_not_hold_its_promise():
    """Why the patient is the unit: with few patients that differ, equal weights of cells cover too little."""
    shares, world = [], Spread(patient=2.0)
    for seed in range(150):
        blast, labels, _ = arrays(drawn(seed, patients=18, cells=40, spread=world))
        upper = np.sort(blast[labels == 0])[int(np.ceil(0.9 * (labels == 0).sum()))]
        new = drawn(10_000 + seed, patients=18, cells=40, spread=world)
        healthy = new[new["label"] == "hem"]
        shares.append((healthy["probability"] <= upper).groupby(healthy["group"]).mean().mean())
    assert np.mean(shares) < 0.9 - 2 * np.std(shares) / np.sqrt(150)


@pytest.mark.parametrize(("calibrated", "tested", "spread"), [(12, 12, 1.5), (4, 5, 1.0)])
def test_the_coverage_lies_in_its_interval_as_often_as_it_says(calibrated, tested, spread):
    inside, world = 0, Spread(patient=spread)
    for seed in range(200):
        held = drawn(seed, patients=2 * calibrated, cells=8, spread=world)
        found = fit_conformal(*arrays(held), error=0.1, method="subsampled")
        share, _ = covered(drawn(10_000 + seed, patients=2 * tested, cells=8, spread=world), found.thresholds)
        low, high = expected_coverage(calibrated, tested, 0.1)
        inside += low - 1e-9 <= share <= high + 1e-9
    assert inside >= 183  # of 200; at 95 % fewer come up once in a hundred times


def test_the_interval_against_a_simulation_of_one_cell_a_patient():
    random, calibrated, tested = np.random.default_rng(1), 19, 10
    scores = np.sort(random.random((20_000, calibrated)), axis=1)
    limit = scores[:, int(np.ceil(0.9 * (calibrated + 1))) - 1]
    shares = (random.random((20_000, tested)) <= limit[:, None]).mean(axis=1)
    low, high = expected_coverage(calibrated, tested, 0.1)
    assert (low, high) == (np.quantile(shares, 0.025), np.quantile(shares, 0.975))


def test_the_report_states_coverage_and_whether_it_lies_where_it_should():
    found = fit_conformal(*arrays(drawn(1, patients=24)), error=0.1, method="pooled")
    table = drawn(2, patients=16)
    units = units_of(table, thresholds=found.thresholds)
    report = coverage_report(found, units, table, draw_patients(table, resamples=100, seed=1))
    row = report["classes"]["hem"]
    decisions = np.array([decide(value, found.thresholds) for value in table["probability"]])
    healthy = table["label"] == "hem"
    in_set = pd.Series(decisions != "all")
    assert row["coverage"]["value"] == pytest.approx(in_set[healthy].mean())
    by_patient = in_set[healthy].groupby(table.loc[healthy, "group"]).mean()
    assert row["coverage_by_patient"]["value"] == pytest.approx(by_patient.mean())
    assert (row["calibration_patients"], row["test_patients"], row["guaranteed_error"]) == (12, 8, 0.1)
    assert report["method"] == "pooled"
    assert row["inside"] == (row["expected"]["low"] <= by_patient.mean())


@pytest.mark.parametrize(("right", "inside", "told"), [(1.0, True, "0.783 or more"), (0.5, False, "0.783 to 0.983")])
def test_classes_that_lie_apart_may_be_covered_more_than_was_asked(right, inside, told):
    """Sixty patients of each label and nothing wrong: the upper end of what ranks alone would give is below 1."""
    patients, rng = 60, np.random.default_rng(1)
    table = pd.DataFrame(
        {"group": [f"p{number}" for number in range(2 * patients)], "label": ["hem", "all"] * patients}
    )
    truth = table["label"] == "all"
    table["probability"] = np.where(truth, 0.9, 0.1) + rng.uniform(-0.05, 0.05, len(table))
    found = fit_conformal(*arrays(table), error=0.1, method="subsampled")
    wrong = np.arange(len(table)) // 2 % 60 >= right * 60
    tested = table.assign(probability=np.where(wrong, 1 - table["probability"], table["probability"]))
    units = units_of(tested, thresholds=found.thresholds)
    row = coverage_report(found, units, tested, draw_patients(tested, resamples=20, seed=1))["classes"]["hem"]
    assert row["coverage_by_patient"]["value"] == pytest.approx(right) and row["expected"]["high"] < 1
    assert row["inside"] is inside and expected_told(row) == told


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda b, y, g: fit_conformal(b, y, g, error=0.0, method="pooled"), "`error` between 0 and 1"),
        (lambda b, y, g: fit_conformal(b, y * 0, g, error=0.1, method="pooled"), "calibration cells of both classes"),
        (lambda b, y, g: fit_conformal(b, y, g, error=0.1, method="plain"), "a method out of subsampled, pooled"),
        (lambda b, y, g: expected_coverage(0, 3, 0.1), "a patient or more on each side but got 0 and 3"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(*arrays(drawn(1, patients=6)))
