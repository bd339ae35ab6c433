"""Image statistics on shapes and colours whose numbers one can work out by hand."""

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from blastwatch.images import Preprocessing, crop_cell
from monitoring.quality import concerns, quality_limits
from monitoring.shifts import shift
from monitoring.statistics import OPTICAL_DENSITY, STATISTICS, TABLE, image_statistics

FULL = Preprocessing(crop=224, size=224)
BCCD = Path(__file__).parents[4] / "shared" / "data" / "bccd"


def ellipse(*, side=450, height=200, width=200, colour=(120, 60, 130)):
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    image = np.zeros((side, side, 3), np.uint8)
    image[(2 * y / height) ** 2 + (2 * x / width) ** 2 <= 1] = colour
    return image


def measured(image, preprocessing=FULL):
    return image_statistics(crop_cell(image, preprocessing), preprocessing)


def test_disc():
    found = measured(ellipse())
    assert tuple(found) == STATISTICS
    assert found["cell_area"] == pytest.approx(np.pi * 100**2, rel=0.01)
    assert (found["cell_height"], found["cell_width"]) == (200, 200)
    assert found["elongation"] == pytest.approx(1, abs=0.01)
    assert (found["border"], found["contrast"], found["focus"], found["dark_share"]) == (0, 0, 0, 1)


def test_ellipse():
    found = measured(ellipse(height=100, width=200))
    assert found["elongation"] == pytest.approx(2, rel=0.02)
    assert (found["cell_height"], found["cell_width"]) == (100, 200)


def test_turning_an_ellipse_keeps_its_elongation():
    turned = Image.fromarray(ellipse(height=100, width=180)).rotate(40, Image.Resampling.BICUBIC)
    assert measured(np.asarray(turned))["elongation"] == pytest.approx(1.8, rel=0.03)


def test_optical_density_by_hand_and_by_scikit_image():
    from skimage.color import separate_stains

    found = measured(ellipse(colour=(120, 60, 130)))
    for name, level in (("od_red", 120), ("od_green", 60), ("od_blue", 130)):
        assert found[name] == pytest.approx(-np.log10(level / 255))
    # scikit-image's density is scaled by -log(1e-6); with unit stain vectors it is the optical density itself.
    pixel = np.full((1, 1, 3), (120, 60, 130), np.uint8)
    theirs = separate_stains(pixel, np.eye(3))[0, 0] * -np.log10(1e-6)
    assert [found["od_red"], found["od_green"], found["od_blue"]] == pytest.approx(theirs, rel=1e-6)
    assert OPTICAL_DENSITY[255] == 0 and OPTICAL_DENSITY[0] == OPTICAL_DENSITY[1] == pytest.approx(np.log10(255))


def test_dark_share_is_otsu_of_two_tones():
    image = ellipse()
    y, x = np.mgrid[:450, :450] - 224.5
    image[y**2 + x**2 <= 50**2] = (40, 30, 90)
    found = measured(image)
    assert found["dark_share"] == pytest.approx(0.25, abs=0.01)
    assert found["contrast"] > 10 and found["focus"] > 0


def test_blur_lowers_focus():
    random = np.random.default_rng(0)
    image = ellipse()
    noisy = np.where(image > 0, np.clip(image + random.normal(0, 20, image.shape), 20, 255), 0).astype(np.uint8)
    small = Image.fromarray(noisy).resize((150, 150), Image.Resampling.BILINEAR)
    blurred = np.asarray(small.resize((450, 450), Image.Resampling.BILINEAR))
    assert measured(blurred)["focus"] < measured(noisy)["focus"] / 2


def coloured(sigma, *, seed=0):
    """An ellipse whose blue varies by normal noise."""
    noise = np.random.default_rng(seed).normal(0, sigma, (450, 450))
    image = ellipse(height=300, width=300, colour=(120, 90, 150)).astype(np.float64)
    image[..., 2] += np.where(image[..., 2] > 0, noise, 0)
    return np.clip(image, 0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("sigma", [4.0, 10.0])
def test_chroma_noise_is_the_noise_that_was_added(sigma):
    whole = Preprocessing(crop=450, size=450)
    # Half of a blue level is a level of Cb; rounding to whole levels adds a variance of 1/12.
    expected = np.sqrt(sigma**2 + 1 / 12) / 2
    assert measured(coloured(sigma), whole)["chroma_noise"] == pytest.approx(expected, rel=0.03)
    assert measured(ellipse(), whole)["chroma_noise"] == 0


def test_chroma_noise_by_scipy():
    from scipy.signal import convolve2d

    image = coloured(6.0)
    chroma = image.astype(np.float64) @ np.array([-43, -85, 128]) / 256
    mask = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    inside = convolve2d(image.max(axis=2) > 12, np.ones((5, 5)), mode="same") == 25
    sizes = np.abs(convolve2d(chroma, mask, mode="same"))[inside]
    expected = np.sqrt(np.pi / 2) / 6 * sizes.mean()
    assert measured(image, Preprocessing(crop=450, size=450))["chroma_noise"] == pytest.approx(expected, rel=0.01)


def test_compression_takes_the_chroma_noise_away_and_leaves_the_brightness():
    image = coloured(6.0)
    packed = shift(image, "jpeg", 1.0, random=np.random.default_rng(0))
    before, after = measured(image), measured(packed)
    assert after["chroma_noise"] < before["chroma_noise"] / 2
    assert after["brightness"] == pytest.approx(before["brightness"], rel=0.01)


@pytest.mark.parametrize("name", [row.name for row in TABLE if row.name not in ("focus", "chroma_noise")])
def test_units_are_those_of_the_image_at_any_input_size(name):
    image = ellipse(height=180, width=220)
    image[100:200, 150:300][image[100:200, 150:300].any(axis=2)] = (60, 40, 100)
    large, small = (measured(image, Preprocessing(crop=320, size=size))[name] for size in (224, 64))
    assert small == pytest.approx(large, rel=0.12, abs=0.02)


def test_a_black_image_has_no_cell():
    found = image_statistics(np.zeros((64, 64, 3), np.uint8), Preprocessing(size=64))
    assert found == dict.fromkeys(STATISTICS, 0.0) | {"elongation": 1.0}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(16, 48), st.sampled_from([0, 1, 200, 255]))
def test_always_finite(seed, size, background):
    random = np.random.default_rng(seed)
    image = np.full((size, size, 3), background, np.uint8)
    top, left = random.integers(0, size, 2)
    patch = image[top : top + random.integers(1, size), left : left + random.integers(1, size)]
    patch[:] = random.integers(0, 256, patch.shape if seed % 2 else 3)
    found = image_statistics(image, Preprocessing(crop=320, size=size))
    assert all(np.isfinite(value) and isinstance(value, float) for value in found.values())
    assert 0 <= found["border"] <= 1 and 0 <= found["dark_share"] <= 1 and found["elongation"] >= 1


@pytest.mark.parametrize("wrong", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3))])
def test_another_shape_is_refused(wrong):
    with pytest.raises(ValueError, match="Expected uint8 of shape"):
        image_statistics(wrong, FULL)


def test_takes_about_a_millisecond():
    crop = crop_cell(ellipse(height=300, width=300), Preprocessing())
    image_statistics(crop, Preprocessing())
    best = min(_seconds(crop) for _ in range(20))
    assert best < 0.003  # measured 0.0005; the machine may be busy


def _seconds(crop):
    start = time.perf_counter()
    image_statistics(crop, Preprocessing())
    return time.perf_counter() - start


@pytest.fixture
def limits():
    import pandas as pd

    random = np.random.default_rng(0)
    rows = [
        measured(
            ellipse(height=int(h), width=int(w), colour=tuple(int(c) for c in (r, r // 2, r + 10))),
            Preprocessing(crop=320, size=64),
        )
        for h, w, r in zip(*(random.integers(low, high, 60) for low, high in ((160, 250), (160, 250), (70, 110))))  # noqa: B905
    ]
    return quality_limits(pd.DataFrame(rows))


def test_a_cell_raises_no_concerns(limits):
    assert concerns(measured(ellipse(height=205, width=190), Preprocessing(crop=320, size=64)), limits) == []


def test_another_kind_of_image_does(limits):
    shape = Preprocessing(crop=320, size=64)
    field = np.full((480, 640, 3), 200, np.uint8)
    found = concerns(measured(field, shape), limits)
    assert "the cell is too large, or this is a field and not a single segmented cell" in found[0]
    assert "cell_area 1.024e+05, expected at most" in found[0]
    assert any("too bright" in reason for reason in found)
    assert any("too small" in reason for reason in concerns(measured(ellipse(height=20, width=20), shape), limits))
    assert concerns(measured(np.zeros_like(field), shape), limits) == ["there is no cell: the image is black"]


@pytest.mark.realdata
def test_every_real_field_raises_concerns(limits):
    files = sorted(BCCD.glob("*.jpg"))
    if not files:
        pytest.skip(f"the BCCD fields are not at {BCCD.relative_to(BCCD.parents[2])}")
    shape = Preprocessing(crop=320, size=64)
    for file in files:
        assert concerns(measured(np.asarray(Image.open(file).convert("RGB")), shape), limits)
