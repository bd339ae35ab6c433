"""The directions that hold most of what cameras do, and the cells that are looked at."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import TruncatedSVD

from blastwatch.errors import UsageError
from blastwatch.images import Preprocessing
from blastwatch.network import build
from monitoring.shifts import SHIFTS, shift
from training.distributed import World
from training.linear_probe import LinearProbe
from training.nuisances import CAMERAS, Moves, directions, under_cameras
from training.parameters import TrainParameters
from training.sampling import of_each_patient


def drawn(moves=200, width=12, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(moves, width)) * np.linspace(0.1, 3, width) + np.linspace(-1, 1, width)


@pytest.mark.parametrize("count", [1, 4, 11])
def test_they_are_the_first_right_singular_vectors(count):
    moves = drawn()
    found = directions(moves, count)
    expected = TruncatedSVD(count, algorithm="arpack").fit(moves).components_
    np.testing.assert_allclose(found @ found.T, expected.T @ expected, atol=1e-8)
    np.testing.assert_allclose(found.T @ found, np.eye(count), atol=1e-12)


def test_what_moves_all_cells_alike_comes_first():
    """It has no variance, and yet it is what moves every answer."""
    moves = 0.1 * np.random.default_rng(0).normal(size=(50, 8)) + 2 * np.eye(8)[3]
    assert abs(directions(moves, 1)[3, 0]) > 0.99


@pytest.mark.parametrize(("moves", "count"), [(200, 12), (5, 6)])
def test_too_many_are_refused(moves, count):
    with pytest.raises(UsageError, match=f"but got {count}"):
        directions(drawn(moves), count)


def test_a_cell_is_looked_at_under_every_cause_at_both_strengths():
    crop = np.zeros((48, 48, 3), np.uint8)
    crop[12:36, 12:36] = np.random.default_rng(0).integers(60, 200, (24, 24, 3))
    seen = Preprocessing(crop=64, size=48)
    plain, *found = under_cameras(crop, seen, np.random.default_rng(1))
    assert len(found) == len(CAMERAS) == 2 * len(SHIFTS)
    assert all(one.shape == (48, 48, 3) and (one != plain).any() for one in found)
    np.testing.assert_array_equal(found, under_cameras(crop, seen, np.random.default_rng(1))[1:])
    assert np.abs(plain.astype(int) - crop)[13:35, 13:35].mean() < 25  # of noise from pixel to pixel, the worst case


def test_where_no_pixel_is_resampled_the_cell_is_as_it_was():
    crop = np.zeros((48, 48, 3), np.uint8)
    crop[12:36, 12:36] = np.random.default_rng(0).integers(60, 200, (24, 24, 3))
    plain, *found = under_cameras(crop, Preprocessing(crop=48, size=48), np.random.default_rng(1))
    np.testing.assert_array_equal(plain, crop)
    expected = shift(crop, *CAMERAS[2], random=np.random.default_rng(1))  # white balance, which draws nothing
    assert CAMERAS[2][0] == "white_balance"
    np.testing.assert_array_equal(found[2], expected)


def test_moves_of_some_patients():
    moves = Moves(np.arange(8, dtype=np.float32).reshape(4, 2), np.array(["a", "b", "a", "c"]))
    kept = moves.of(np.array(["a", "c"]))
    assert kept.patients.tolist() == ["a", "a", "c"] and kept.differences[:, 0].tolist() == [0, 4, 6]


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=60), st.integers(1, 40))
def test_patients_are_looked_at_evenly(patients, most):
    patients = np.array(patients)
    places = of_each_patient(patients, most, np.random.default_rng(0).permutation(len(patients)))
    assert (np.diff(places) > 0).all()
    names, counts = np.unique(patients, return_counts=True)
    each = max(most // len(names), 1)
    for name, count in zip(names, counts, strict=True):
        assert (patients[places] == name).sum() == min(count, each)


@pytest.mark.parametrize(("fusion", "width"), [("features", 1264), ("scores", 608)])
def test_too_many_are_refused_before_a_cell_is_looked_at(fusion, width):
    """With scores each network has a layer of its own, the narrower of which has 608 numbers to read."""
    name = "efficientnet_lite0_lite2_early"
    wanted = TrainParameters(
        architecture=name, weights="imagenet", fit="logistic", fusion=fusion, nuisances=width, precision="fp32"
    )
    alone = World(0, 1, torch.device("cpu"))
    with pytest.raises(UsageError, match=rf"train\.nuisances to be fewer than the {width} numbers .* but got {width}"):
        LinearProbe(build(name), wanted, None, None, None, alone)
