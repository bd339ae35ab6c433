"""Another stain: only the colour of the cell changes, by degrees."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from blastwatch.errors import DataError, UsageError
from monitoring.stain import restain, stain_map
from training.staining import restain_files
from training.synthesis import draw_style
from training.synthesis_cell import draw_cell

images = arrays.arrays(np.uint8, (6, 7, 3))


@settings(max_examples=50)
@given(images)
def test_strength_zero_changes_nothing(image):
    assert np.array_equal(restain(image, strength=0.0), image)


@settings(max_examples=50)
@given(images, st.floats(-2, 2))
def test_the_background_stays_and_the_outline_too(image, strength):
    stained = restain(image, strength=strength)
    assert stained.dtype == np.uint8
    assert np.array_equal(stained.max(axis=-1) > 0, image.max(axis=-1) > 0)


def test_the_colour_moves_with_the_strength():
    cell = draw_cell(draw_style("all", np.random.default_rng(0)), np.random.default_rng(1))
    mask = cell.max(axis=-1) > 0
    green = [restain(cell, strength=strength)[mask][:, 1].mean() for strength in (-0.5, 0, 0.5, 1)]
    assert green == sorted(green)
    assert green[-1] > 1.4 * green[1]


def test_the_map_is_the_identity_at_zero():
    assert np.allclose(stain_map(0), np.eye(3))
    with pytest.raises(UsageError, match="strength"):
        stain_map(3)


def test_files_and_folders(tmp_path):
    cell = draw_cell(draw_style("all", np.random.default_rng(0)), np.random.default_rng(1))
    source = tmp_path / "source/fold_0/all"
    source.mkdir(parents=True)
    Image.fromarray(cell).save(source / "a.png")
    (source / "b.bmp").write_text("no image")
    done = restain_files([tmp_path / "source"], tmp_path / "out", strength=1.0)
    assert done.written == 1
    assert len(done.refused) == 1
    assert "b.bmp" in done.refused[0]
    written = np.asarray(Image.open(tmp_path / "out/fold_0/all/a.bmp"))
    assert np.array_equal(written, restain(cell, strength=1.0))
    assert restain_files([source / "a.png"], tmp_path / "single", strength=1.0).written == 1
    with pytest.raises(DataError, match="Two images would be written as fold_0/all/a"):
        restain_files([tmp_path / "source", tmp_path / "source"], tmp_path / "out", strength=1.0)
    with pytest.raises(DataError, match="would be overwritten"):
        restain_files([tmp_path / "out"], tmp_path / "out", strength=1.0)
    with pytest.raises(DataError, match="missing"):
        restain_files([tmp_path / "nowhere"], tmp_path / "out", strength=1.0)
    with pytest.raises(DataError, match="could be read"):
        restain_files([source / "b.bmp"], tmp_path / "out", strength=1.0)
