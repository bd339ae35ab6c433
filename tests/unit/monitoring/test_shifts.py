"""Simulated shifts: what they leave alone, and that each moves what it is named after."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blastwatch.images import Preprocessing, crop_cell
from monitoring.shifts import OF_THE_FRAME, SHIFTS, field, shift
from monitoring.statistics import image_statistics
from tests.service_packages import draw_cell

SEEN = Preprocessing(crop=320, size=128)


@pytest.fixture(scope="module")
def cell():
    return draw_cell(3)[65:385, 65:385].copy()


def drawn(seed=0):
    return np.random.default_rng(seed)


def measured(image):
    return image_statistics(crop_cell(image, SEEN), SEEN)


@pytest.mark.parametrize("name", SHIFTS)
def test_strength_nothing_gives_the_image_back(cell, name):
    assert shift(cell, name, 0.0, random=drawn()) is cell


@pytest.mark.parametrize("name", [name for name in SHIFTS if name != "pixel_size"])
def test_the_background_stays_black_and_the_outline_where_it_was(cell, name):
    shifted = shift(cell, name, 1.0, random=drawn())
    assert shifted.dtype == np.uint8
    assert np.array_equal(shifted.max(axis=2) > 0, cell.max(axis=2) > 0)
    assert not np.array_equal(shifted, cell)


@settings(deadline=None)
@given(st.sampled_from(sorted(SHIFTS)), st.floats(0, 1))
def test_every_strength_gives_an_image(cell, name, strength):
    shifted = shift(cell, name, strength, random=drawn())
    assert shifted.shape == cell.shape
    assert shifted.any()


@pytest.mark.parametrize(
    ("name", "column", "factor"),
    [
        ("darker", "brightness", (0.5, 0.7)), ("defocus", "focus", (0, 0.6)), ("noise", "focus", (1.1, 9)),
        ("pixel_size", "cell_area", (1.45, 1.65)), ("pixel_size", "cell_width", (1.2, 1.3)),
        ("white_balance", "od_red", (0, 0.85)), ("white_balance", "od_blue", (1.15, 9)),
        ("stain", "od_green", (0, 0.9)),
    ],
)  # fmt: skip
def test_what_a_shift_is_named_after_moves(cell, name, column, factor):
    before, after = measured(cell), measured(shift(cell, name, 1.0, random=drawn()))
    assert factor[0] < after[column] / before[column] < factor[1]


def test_less_light_adds_density_as_beer_and_lambert_say(cell):
    """0.6 of the light is -log10(0.6) = 0.222 more density in every channel."""
    before, after = measured(cell), measured(shift(cell, "darker", 1.0, random=drawn()))
    for name in ("od_red", "od_green", "od_blue"):
        assert after[name] - before[name] == pytest.approx(-np.log10(0.6), abs=0.01)


def test_blur_is_scikit_images_away_from_the_outline():
    from skimage.filters import gaussian

    image = drawn().integers(50, 200, (64, 64, 3), dtype=np.uint8)
    theirs = gaussian(image, sigma=1.5, channel_axis=2, preserve_range=True)
    ours = shift(image, "defocus", 0.5, random=drawn())
    assert np.abs(ours[12:-12, 12:-12] - theirs[12:-12, 12:-12]).max() <= 0.5 + 1e-3


def test_jpeg_is_pillows_at_quality_50():
    image = drawn().integers(1, 255, (48, 48, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=50, subsampling=2)
    found = shift(image, "jpeg", 1.0, random=drawn())
    assert np.array_equal(found, np.maximum(np.asarray(Image.open(buffer)), 1))


def test_light_falls_off_from_left_to_right(cell):
    shifted = shift(cell, "uneven", 1.0, random=drawn()).astype(float)
    ratio = (shifted.sum(axis=(0, 2)) / np.maximum(cell.astype(float).sum(axis=(0, 2)), 1))[cell.any(axis=(0, 2))]
    assert ratio[0] > ratio[len(ratio) // 2] > ratio[-1]


def test_a_black_image_has_nothing_to_shift():
    black = np.zeros((64, 64, 3), np.uint8)
    for name in SHIFTS:
        assert not shift(black, name, 1.0, random=drawn()).any()
    assert set(OF_THE_FRAME) <= set(SHIFTS)


def test_a_field_is_no_cell_on_black(cell):
    found = field(np.stack([cell, cell]), random=drawn())
    assert found.shape == cell.shape
    assert found.max(axis=2).min() > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing", 0.5), "Expected a shift among"), (("stain", 1.5), "strength from 0 to 1"),
        (("stain", float("nan")), "strength from 0 to 1"),
    ],
)  # fmt: skip
def test_bad_input(cell, arguments, said):
    with pytest.raises(ValueError, match=said):
        shift(cell, *arguments, random=drawn())
    with pytest.raises(ValueError, match="Expected uint8"):
        shift(cell.astype(float), "stain", 0.5, random=drawn())
