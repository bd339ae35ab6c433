"""Probabilities at the mix in which patients come: scikit-learn's fit, and estimates that are not off by the mix."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from monitoring.performance import Limits, performance, reference_performance
from monitoring.recalibration import AS_GIVEN, Recalibration, fit, recalibrate
from tests.answered import accuracy, answers

LIMITS = Limits(tolerance=0.02, margin=0.05)


def of_mix(random, share, *, patients=400, **options):
    """Answers that are calibrated where half of the patients are ill, to patients of whom another share is."""
    cells = answers(random, patients=patients, **options)
    truth = cells.groupby("patient")["truth"].first()
    ill, healthy = (truth.index[truth == label] for label in ("all", "hem"))
    most = int(min(len(ill) / share, len(healthy) / (1 - share)))
    kept = [*ill[: round(most * share)], *healthy[: round(most * (1 - share))]]
    return cells[cells["patient"].isin(kept)].reset_index(drop=True)


def as_reference(cells):
    return pd.DataFrame({"group": cells["patient"], "label": cells["truth"], "probability": cells["probability"]})


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_with_many_patients_it_is_platts_fit_by_scikit_learn(share):
    cells = of_mix(np.random.default_rng(1), share, patients=2000, cells=4, sure=1.7)
    odds = np.log(cells["probability"] / (1 - cells["probability"])).to_numpy()[:, None]
    platt = LogisticRegression(C=1e9).fit(odds, cells["truth"] == "all")
    found = recalibrate(as_reference(cells))
    assert (found.slope, found.shift) == pytest.approx((platt.coef_[0, 0], platt.intercept_[0]), abs=0.05)
    assert found.slope == pytest.approx(1 / 1.7, abs=0.1)
    assert found.shift == pytest.approx(np.log(share / (1 - share)), abs=0.25)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.75])
def test_an_estimate_is_not_off_by_the_mix(share):
    """Of 60 windows of the mix that the reference has, with hard cells, where a mix counts most."""
    random, gaps = np.random.default_rng(2), []
    recalibration = recalibrate(as_reference(of_mix(random, share, distance=0.8)))
    for _ in range(60):
        window = of_mix(random, share, patients=60, distance=0.8)
        found = performance(window, LIMITS, recalibration=recalibration)
        gaps.append(found["realised"]["accuracy"]["value"] - found["estimated"]["accuracy"]["value"])
    assert abs(np.mean(gaps)) < 0.02


def test_left_as_given_it_is_off_where_the_version_leans():
    """All cells look more like blasts than the version knew them: as given it takes them for sure ones."""
    random = np.random.default_rng(5)

    def drawn(patients):
        cells = answers(random, patients=patients, distance=1.0)
        odds = np.log(cells["probability"] / (1 - cells["probability"])) + 2.0
        cells = cells.assign(probability=1 / (1 + np.exp(-odds)))
        return cells.assign(label=np.where(cells["probability"] >= 0.5, "all", "hem"))

    recalibration = recalibrate(as_reference(drawn(400)))
    window = drawn(400)
    gaps = [
        abs(found["realised"]["accuracy"]["value"] - found["estimated"]["accuracy"]["value"])
        for found in (performance(window, LIMITS, recalibration=used) for used in (AS_GIVEN, recalibration))
    ]
    assert gaps[0] > 0.04 and gaps[1] < 0.02


def test_every_patient_weighs_the_same():
    cells = of_mix(np.random.default_rng(3), 0.5, patients=60, cells=10)
    many = cells[cells["patient"] == cells["patient"].iloc[0]]
    more = pd.concat([cells, *[many] * 50], ignore_index=True)
    one, other = (recalibrate(as_reference(table)) for table in (cells, more))
    assert (one.slope, one.shift) == pytest.approx((other.slope, other.shift), abs=0.02)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=6))
def test_few_patients_move_it_little_and_the_order_stays(cells):
    """With a cell each, and whatever was said of it: also where the classes are parted, or a probability is 0 or 1."""
    probability, blast = (np.array(column) for column in zip(*cells, strict=True))
    found = fit(probability.astype(np.float64), blast, np.ones(len(cells)))
    assert 0 < found.slope < 20 and abs(found.shift) < 4
    shown = found(np.linspace(0, 1, 50))
    assert (np.diff(shown) >= 0).all() and (shown >= 0).all() and (shown <= 1).all()


@pytest.mark.parametrize("label", ["all", "hem"])
def test_a_reference_of_one_class_leaves_them_as_they_are(label):
    reference = pd.DataFrame({"group": ["a", "b"], "label": label, "probability": [0.2, 0.7]})
    assert recalibrate(reference) == AS_GIVEN
    assert list(AS_GIVEN(np.array([0.0, 0.3, 1.0]))) == [0.0, 0.3, 1.0]


def test_labels_stay_what_the_version_said():
    """A cell that it calls normal at 0.4 is estimated by what 0.4 is worth, and stays called normal."""
    cells = pd.DataFrame(
        {"id": ["1"], "patient": ["a"], "probability": [0.4], "label": ["hem"], "truth": [None]}
    )  # fmt: skip
    shifted = Recalibration(slope=1.0, shift=np.log(3.0))
    worth = shifted(np.array([0.4]))[0]
    assert worth == pytest.approx(2 / 3) and performance(cells, LIMITS, recalibration=shifted)["estimated"]["accuracy"][
        "value"
    ] == pytest.approx(1 - worth)


def test_what_a_reference_is_estimated_at_is_what_it_reached():
    cells = of_mix(np.random.default_rng(4), 0.75, distance=0.8, sure=0.5)
    reference = as_reference(cells)
    found = reference_performance(reference, recalibrate(reference))
    value = {kind: found[kind]["accuracy"]["value"] for kind in ("estimated", "realised")}
    assert value["estimated"] == pytest.approx(value["realised"], abs=0.01)
    assert value["realised"] == pytest.approx(accuracy(0.8), abs=0.05)
