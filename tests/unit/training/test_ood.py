"""The out-of-distribution score: against scikit-learn and scipy, and what its limit keeps."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import load_file, save_file
from scipy.spatial.distance import mahalanobis

from blastwatch.errors import DataError, PackageError
from blastwatch.ood import OodScore, coordinates, read_ood
from blastwatch.package import OOD, open_package, seal
from tests.packages import make_package
from training.conformal import patient_limit
from training.ood import _score, fit_ood
from training.projection import fit_projection, without_each

WIDTH, AXES = 24, 8


def drawn(random, patients, cells=30, spread=1.0):
    """Embeddings of patients who differ as a whole, and the patient of each."""
    scales = np.geomspace(3, 0.3, WIDTH)
    middle = random.normal(size=(patients, 1, WIDTH)) * scales
    points = middle + spread * random.normal(size=(patients, cells, WIDTH)) * scales
    names = np.repeat([f"p{number}" for number in range(patients)], cells)
    return points.reshape(-1, WIDTH).astype(np.float32), pd.Series(names)


@pytest.fixture(scope="module")
def fitted():
    random = np.random.default_rng(0)
    projection = fit_projection(drawn(random, 20)[0], AXES)
    embeddings, groups = drawn(random, 12)
    return fit_ood(embeddings, groups, projection, rate=0.05), embeddings, groups


def test_the_score_is_the_mahalanobis_distance_over_its_dimensions(fitted):
    score, embeddings, _ = fitted
    points = coordinates(embeddings, score.projection, score.floor)
    inverse = score.whitener @ score.whitener.T
    wanted = [mahalanobis(point, score.mean, inverse) / np.sqrt(AXES + 1) for point in points[:20]]
    assert score(embeddings[:20]) == pytest.approx(wanted)
    # Equal numbers of cells, so that the weights are those of a plain mean.
    assert score.mean == pytest.approx(points.mean(axis=0))


def test_the_residual_is_what_the_axes_do_not_tell(fitted):
    score, *_ = fitted
    projection = score.projection
    beside = projection.mean + 50 * np.linalg.svd(projection.components)[2][-1]
    inside = projection.mean + projection.components.T @ np.ones(AXES, np.float32)
    found = coordinates(np.stack([beside, inside]).astype(np.float32), projection, score.floor)
    assert found[0, :AXES] == pytest.approx(np.zeros(AXES), abs=1e-4)
    assert np.exp(found[:, AXES]) - score.floor == pytest.approx([50, 0], abs=1e-3)
    assert score(beside[None].astype(np.float32))[0] > score.limit


def test_new_patients_pass_and_strangers_do_not(fitted):
    score, *_ = fitted
    random = np.random.default_rng(1)
    shares = [float((score(drawn(random, 1)[0]) > score.limit).mean()) for _ in range(300)]
    # One patient in thirteen is as far out as twelve can say: 1 / (12 + 1) is the least that can be promised.
    assert np.mean(shares) < 1.5 / 13
    strangers = drawn(random, 20)[0] + 8 * np.geomspace(0.3, 3, WIDTH).astype(np.float32)
    assert (score(strangers) > score.limit).mean() > 0.95


def test_the_limit_is_wider_than_one_from_the_cells_that_were_fitted(fitted):
    score, embeddings, _ = fitted
    assert score.limit > np.quantile(score(embeddings), 0.95)


def test_a_patient_of_the_projection_is_scored_on_axes_that_were_fitted_to_the_others():
    random = np.random.default_rng(4)
    embeddings, groups = drawn(random, 8)
    projection, others = fit_projection(embeddings, AXES), without_each(embeddings, groups, set(groups), AXES)
    found = fit_ood(embeddings, groups, projection, others, rate=0.1)
    scores = np.empty(len(groups))
    for patient in set(groups):
        own = (groups == patient).to_numpy()
        axes = fit_projection(embeddings[~own], AXES)
        np.testing.assert_array_equal(axes.components, others[patient].components)
        alone = fit_ood(embeddings[~own], groups[~own], axes, rate=0.1)  # mean and covariance of the others
        points = coordinates(embeddings[own], axes, found.floor) - alone.mean
        scores[own] = np.sqrt(((points @ alone.whitener) ** 2).mean(axis=1))
    assert found.limit == pytest.approx(patient_limit(scores, groups.to_numpy(), error=0.1), rel=1e-3)
    common = fit_ood(embeddings, groups, projection, rate=0.1)
    assert found.limit != pytest.approx(common.limit, rel=1e-2)
    np.testing.assert_array_equal(found.mean, common.mean)


def test_a_patient_of_many_cells_weighs_no_more():
    random = np.random.default_rng(2)
    embeddings, groups = drawn(random, 6)
    projection = fit_projection(embeddings, AXES)
    again = np.concatenate([embeddings, np.repeat(embeddings[groups == "p0"], 9, axis=0)])
    more = pd.concat([groups, pd.Series(["p0"] * 270)], ignore_index=True)
    one, two = (fit_ood(points, names, projection, rate=0.1) for points, names in ((embeddings, groups), (again, more)))
    assert one.mean == pytest.approx(two.mean)


@given(arrays(np.float32, (5, WIDTH), elements=st.floats(-1e6, 1e6, width=32)))
def test_every_embedding_has_a_finite_score(fitted, embeddings):
    score, *_ = fitted
    found = score(embeddings)
    assert np.isfinite(found).all()
    assert (found >= 0).all()
    assert (score.concern(float(found[0])) is None) == (found[0] <= score.limit)


def test_more_axes_than_the_embedding_has():
    random = np.random.default_rng(3)
    embeddings, groups = drawn(random, 5)
    score = fit_ood(embeddings[:, :4], groups, fit_projection(embeddings[:, :4], AXES), rate=0.1)
    assert np.isfinite(score(embeddings[:, :4])).all()


def test_bad_input():
    random = np.random.default_rng(4)
    embeddings, groups = drawn(random, 2)
    projection = fit_projection(embeddings, AXES)
    with pytest.raises(DataError, match="at least 3 patients .* but got 2"):
        fit_ood(embeddings, groups, projection, rate=0.1)
    embeddings, groups = drawn(random, 3)
    embeddings[0, 0] = np.nan
    with pytest.raises(DataError, match="finite embeddings"):
        fit_ood(embeddings, groups, projection, rate=0.1)


def test_a_package_carries_its_score(tmp_path):
    package = open_package(make_package(tmp_path / "package"))
    score = read_ood(package)
    assert isinstance(score, OodScore)
    assert score.concern(score.limit) is None
    (package.folder / OOD).write_bytes(b"nothing")
    seal(package.folder)
    with pytest.raises(PackageError, match="ood.safetensors of the package cannot be read"):
        read_ood(package)


@pytest.mark.parametrize(("name", "value"), [("limit", np.nan), ("limit", np.inf), ("limit", 0.0), ("floor", np.nan),
                                             ("floor", 0.0), ("mean", np.nan), ("whitener", np.inf)])  # fmt: skip
def test_a_score_that_would_refer_everybody_or_nobody_is_no_score(tmp_path, name, value):
    package = open_package(make_package(tmp_path / "package"))
    found = load_file(package.folder / OOD)
    save_file(found | {name: np.full_like(found[name], value)}, package.folder / OOD)
    with pytest.raises(PackageError, match="Expected finite numbers in ood.safetensors, floor and limit above 0"):
        read_ood(package)


def test_neither_does_their_spread_count_more():
    random = np.random.default_rng(0)
    points = random.normal(size=(60, 3)) @ np.diag([1, 2, 3.0])
    points[:10] *= 4
    names = np.repeat([f"p{number}" for number in range(6)], 10)
    often = np.r_[np.repeat(np.arange(10), 20), np.arange(10, 60)]
    one, two = (_score(points[rows], names[rows], None, 0.0).whitener for rows in (np.arange(60), often))
    assert two @ two.T == pytest.approx(one @ one.T, abs=0.08)
