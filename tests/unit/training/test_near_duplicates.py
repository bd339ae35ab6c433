"""Copies of drawn cells are found whatever was done to them, and nothing else is."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from blastwatch.errors import DataError
from blastwatch.manifest import read_cells
from tests.copies import COPIES, SAME_PIXELS
from training.fingerprints import LENGTH, SIDE, fingerprints, patch
from training.importing import import_cells
from training.looks import look
from training.near_duplicates import CLIP, CORRELATION, INSIDE, candidates, correlations, near_duplicates
from training.synthesis import synthesise


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Forty cells of ten patients, no two alike."""
    folder = tmp_path_factory.mktemp("drawn")
    synthesise(folder / "source", patients=10, cells=4, seed=3, duplicates=0)
    import_cells(folder / "source", folder / "cells", kind="cnmc")
    return read_cells(folder / "cells")


def test_different_cells_are_not_near(drawn):
    assert near_duplicates(look(drawn)) == []


@pytest.mark.parametrize("name", [name for name in COPIES if name not in SAME_PIXELS])
def test_a_copy_is_found(drawn, name):
    images = [np.asarray(Image.open(drawn.root / path).convert("RGB")) for path in drawn.rows["path"]]
    copies = [np.asarray(COPIES[name](Image.fromarray(image))) for image in images]
    patches = np.stack([patch(image) for image in images + copies])
    pairs = candidates(fingerprints(patches))
    found = {
        tuple(pair)
        for pair, value in zip(pairs.tolist(), correlations(patches, pairs), strict=True)
        if value >= CORRELATION
    }
    assert found == {(number, number + len(images)) for number in range(len(images))}


def nearly_even():
    """A patch of one grey level but for two pixels."""
    patch_ = np.full((SIDE, SIDE), 208, np.uint8)
    patch_[0, 1], patch_[5, 7] = 207, 209
    return patch_


@settings(max_examples=50, deadline=None)
@given(arrays(np.uint8, (SIDE, SIDE)), st.integers(0, 3), st.booleans())
@example(nearly_even(), 1, False)
@example(np.full((SIDE, SIDE), 208, np.uint8), 1, False)
def test_turns_and_mirrors_leave_the_fingerprint(patch_, turns, mirrored):
    other = np.rot90(patch_, turns)
    other = other[:, ::-1] if mirrored else other
    one, two = fingerprints(np.stack([patch_, other]))
    np.testing.assert_allclose(one, two, atol=1e-4)
    assert one.shape == (LENGTH,)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5) or not one.any()


def test_correlation_agrees_with_numpy():
    random = np.random.default_rng(0)
    flat = random.integers(60, 200, (2, SIDE, SIDE)).astype(np.uint8)  # all of it inside: only the border is left aside
    from scipy.ndimage import gaussian_filter

    inside = (slice(INSIDE, -INSIDE),) * 2
    detail = [image.astype(float) - gaussian_filter(image.astype(np.float32), 2.0) for image in flat]
    detail = [image - image[inside].mean() for image in detail]
    detail = [np.clip(image, -CLIP * image[inside].std(), CLIP * image[inside].std()) for image in detail]
    expected = max(
        np.corrcoef(detail[0][inside].ravel(), pose[inside].ravel())[0, 1]
        for turned in (np.rot90(detail[1], turns) for turns in range(4))
        for pose in (turned, turned[:, ::-1])
    )
    assert correlations(flat, np.array([[0, 1]]))[0] == pytest.approx(expected, abs=1e-3)


def test_empty_images_are_no_copies_of_each_other():
    patches = np.stack([patch(np.full((64, 64, 3), level, np.uint8)) for level in (0, 0, 255)])
    assert not patches.any()
    assert candidates(fingerprints(patches)).shape == (0, 2)


def test_a_missing_image_is_named(drawn):
    rows = drawn.rows.assign(path="gone_" + drawn.rows["path"])
    with pytest.raises(DataError, match="gone_.*Import the source anew"):
        look(dataclasses.replace(drawn, rows=rows))
