"""A column that looks along a cause's signature: the best weighted sum of statistics, and what no statistic shows."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.package import DriftReference
from monitoring.calibration import calibrate, thresholds_for
from monitoring.directions import (
    DIRECTIONS,
    FEWEST_KNOWN,
    Refitted,
    with_directions,
    with_directions_of_patients,
)
from monitoring.drift import compare
from monitoring.scores import MEASURED
from monitoring.signatures import _FACTORS, transform
from monitoring.statistics import STATISTICS
from tests.cohorts import (
    VARYING,
    as_predictions,
    draw_cohort,
    drawn_signatures,
    scores_of,
    unanswered,
    unsealed_package,
    window_of,
)

CELLS = 120


@pytest.fixture(scope="module")
def cohort():
    return draw_cohort(np.random.default_rng(2), patients=40, cells=60)


@pytest.fixture(scope="module")
def reference(cohort):
    return cohort[cohort["group"] < "P024"].reset_index(drop=True)


@pytest.fixture(scope="module")
def movement(reference):
    """How a cause moves the transformed statistics: half of a spread of each in the mean, as patients hardly differ."""
    means = pd.DataFrame(transform(reference)).groupby(reference["group"]).mean().to_numpy()
    spread = means.std(axis=0)
    found = np.zeros(len(STATISTICS))
    place = [STATISTICS.index(name) for name in VARYING]
    axes = np.linalg.svd((means - means.mean(axis=0))[:, place] / spread[place], full_matrices=False)[2]
    found[place] = axes[-1] * np.sqrt(len(place)) / 2 * spread[place]
    return found


@pytest.fixture(scope="module")
def signatures(reference, movement):
    """Of this one cause, which is called stain."""
    return drawn_signatures(reference, {"stain": movement})


def shifted(cells, movement):
    values = transform(cells) + movement
    factors = [name in _FACTORS for name in STATISTICS]
    return cells.assign(**dict(zip(STATISTICS, np.where(factors, np.exp(values), values).T, strict=True)))


def test_there_is_a_column_for_each_signature_of_a_cause_but_a_changed_mix(reference, signatures):
    assert set(signatures["causes"]) == {"stain", "disease_mix"}
    found = with_directions(reference, signatures)
    assert [name for name in found.columns if name in DIRECTIONS] == ["toward_stain"]
    pd.testing.assert_frame_equal(found.drop(columns="toward_stain"), reference)
    assert with_directions(reference, None) is reference


def test_a_cause_moves_its_column_by_its_length_in_spreads_between_patients(reference, signatures, movement):
    """In Mahalanobis's geometry, by the covariance of the patients' means as scikit-learn shrinks it."""
    from sklearn.covariance import LedoitWolf

    means = pd.DataFrame(transform(reference)).groupby(reference["group"]).mean().to_numpy()
    spread = np.array(signatures["spread"])
    inverse = LedoitWolf().fit((means - means.mean(axis=0)) / spread).get_precision()
    before, after = (with_directions(cells, signatures)["toward_stain"]
                     for cells in (reference, shifted(reference, movement)))  # fmt: skip
    expected = np.sqrt((movement / spread) @ inverse @ (movement / spread))
    assert np.median(after - before) == pytest.approx(expected, rel=1e-6)  # a few cells have no logarithm


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_other_weighted_sum_is_moved_farther_in_spreads_between_patients(reference, signatures, movement, seed):
    whitening, spread = np.array(signatures["whitening"]), np.array(signatures["spread"])
    covariance = np.linalg.inv(whitening @ whitening)
    moved = movement / spread

    def apart(weights):
        return abs(weights @ moved) / np.sqrt(weights @ covariance @ weights)

    best = whitening @ np.array(signatures["causes"]["stain"])
    assert apart(np.random.default_rng(seed).normal(size=len(moved))) <= apart(best) * (1 + 1e-9)


def test_what_no_statistic_shows_is_found_and_new_patients_are_not(cohort, reference, signatures, movement):
    known = DriftReference(with_directions(reference, signatures))
    calibrated = calibrate(DriftReference(reference), signatures=signatures, resamples=400, window_sizes=(CELLS,))
    limits = thresholds_for(calibrated, CELLS)
    names = sorted(cohort.loc[cohort["group"] >= "P024", "group"].unique())
    for start in range(0, len(names), 4):
        window = window_of(cohort, names[start : start + 4], CELLS, np.random.default_rng(start))
        for cells, wanted in ((window, set()), (shifted(window, movement), {"toward_stain"})):
            found = scores_of(known.cells, with_directions(cells, signatures))
            beyond = {name for name in (*MEASURED, *DIRECTIONS) if name in found and found[name] >= limits[name]}
            assert beyond == wanted


@pytest.mark.parametrize("trained", [False, True])
def test_a_report_has_the_column_where_the_package_has_the_signature(
    cohort, reference, signatures, movement, trained, tmp_path
):
    names = sorted(cohort.loc[cohort["group"] >= "P036", "group"].unique())
    window = shifted(window_of(cohort, names, CELLS, np.random.default_rng(0)), movement)
    parts = (reference, None) if not trained else (reference[reference["group"] < "P012"].reset_index(drop=True),
                                                   unanswered(reference[reference["group"] >= "P012"]))  # fmt: skip
    for known in (signatures, None):
        package = unsealed_package(tmp_path / str(known is None), *parts, causes=known)
        current = as_predictions(window, digest=package.digest)
        document = compare(package, current, version="1", folder=tmp_path / "reports").document
        columns = {column["name"]: column for column in document["columns"]}
        assert ("toward_stain" in columns) == (known is not None)
        if known:
            assert columns["toward_stain"]["drifted"] and document["causes"][0]["cause"] == "stain"
            side = with_directions(pd.concat([part for part in parts if part is not None]), known)
            expected = scores_of(side, with_directions(window, known))["toward_stain"]
            assert columns["toward_stain"]["score"] == pytest.approx(expected, rel=1e-6)


def test_known_patients_differ_along_a_direction_as_new_ones_do(signatures):
    """Or a little more, of many small references; by a fit to all of them, theirs would differ less."""
    random, names = np.random.default_rng(4), signatures["columns"]
    ratios = []
    for _ in range(20):
        known, came = (pd.DataFrame(20 + random.normal(size=(count, len(names))), columns=names) for count in (20, 500))
        one, other = with_directions_of_patients(known, came, signatures)
        fit = Refitted(transform(known, names), signatures).fit([])
        within = fit.columns(transform(known, names))[:, 0]
        new = other["toward_stain"].to_numpy()
        assert new == pytest.approx(fit.columns(transform(came, names))[:, 0])
        ratios.append([values.var() / new.var() for values in (one["toward_stain"], within)])
    own, fitted = np.mean(ratios, axis=0)
    assert 0.9 < own < 1.5 and fitted < 0.85


def test_few_known_patients_have_no_directions(reference, signatures):
    means = reference.groupby("group")[list(STATISTICS)].mean()
    for known, there in ((means.head(FEWEST_KNOWN - 1), False), (means.head(FEWEST_KNOWN), True)):
        one, other = with_directions_of_patients(known, means.tail(5), signatures)
        assert ("toward_stain" in one) == ("toward_stain" in other) == there
    assert with_directions_of_patients(means, means, None)[0] is means
