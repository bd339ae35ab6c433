"""Odd images and subjects that look alike are named, and ordinary ones are not."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from blastwatch.images import crop_cell
from blastwatch.manifest import read_cells
from monitoring.statistics import image_statistics
from training.importing import import_cells
from training.looks import LOOKED_AT, PREPROCESSING, look, saturated_share
from training.oddities import PROFILE, alike_subjects, background_told, limits, oddities, without_background
from training.synthesis import synthesise


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Sixty cells of twelve patients, and six images that are odd in one way at least."""
    folder = tmp_path_factory.mktemp("odd")
    synthesise(folder / "source", patients=12, cells=5, seed=4, duplicates=0)
    sample = sorted((folder / "source").rglob("*.bmp"))[0]
    pixels = np.asarray(Image.open(sample).convert("RGB"))
    burnt = pixels.copy()
    burnt[200:240, 200:240] = 255
    half = Image.fromarray(pixels).resize((90, 90))
    tiny = Image.new("RGB", (450, 450))
    tiny.paste(half, (180, 180))
    for number, (name, image) in enumerate(
        {
            "empty": np.zeros_like(pixels),
            "saturated": burnt,
            "frame": pixels[:400],
            "size": np.asarray(tiny),
            "stain": np.where(pixels.max(axis=2, keepdims=True) > 12, 250 - pixels // 8, 0).astype(np.uint8),
            "background": np.where(pixels.max(axis=2, keepdims=True) > 12, pixels, 200).astype(np.uint8),
        }.items()
    ):
        Image.fromarray(image).save(sample.with_name(f"UID_90{number}_1_1_{name}_all.bmp".replace(f"_{name}", "")))
    import_cells(folder / "source", folder / "cells", kind="cnmc")
    return read_cells(folder / "cells")


def test_each_planted_oddity_is_named_by_its_kind(drawn):
    found = oddities(drawn.rows, look(drawn).table())
    kinds = {}
    for odd in found:
        assert not odd.low <= odd.value <= odd.high or odd.kind == "empty"
        kinds.setdefault(odd.path.rsplit("UID_", 1)[1].split("_")[0], set()).add(odd.kind)
    for number, kind in enumerate(("empty", "saturated", "frame", "size", "stain", "background")):
        assert kind in kinds.pop(f"90{number}")
    assert kinds == {}


def test_a_source_without_a_usual_frame_has_no_odd_one(drawn):
    rows = drawn.rows.assign(width=np.arange(len(drawn.rows)) + 100, height=np.arange(len(drawn.rows)) + 100)
    assert not [odd for odd in oddities(rows, look(drawn).table()) if odd.kind == "frame"]


@pytest.mark.parametrize("side", [40, 192, 320])
def test_an_image_whose_every_pixel_counts_as_cell_has_no_dark_background(side):
    images = {"field": np.full((side, side, 3), 200, np.uint8), "cut out": np.zeros((side, side, 3), np.uint8)}
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    images["cut out"][np.hypot(x, y) < side / 2] = 150  # the largest disc that the frame has room for
    areas = [image_statistics(crop_cell(image, PREPROCESSING), PREPROCESSING)["cell_area"] for image in images.values()]
    table = pd.DataFrame(1.0, index=range(2), columns=list(LOOKED_AT)).assign(path=list(images), cell_area=areas)
    rows = pd.DataFrame({"path": list(images), "source": "test", "width": side, "height": side})
    found = oddities(rows, table)
    assert [odd.path for odd in found if odd.kind == "background"] == ["field"]
    assert without_background(found) == 1


def test_how_many_images_have_no_dark_background_is_told():
    assert background_told(0) == ""
    assert background_told(7).startswith("7 images have no dark background")


def test_limits_are_those_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(10, 2, 100_000)
    assert limits(values, factor=False) == pytest.approx((10 - 12, 10 + 12), abs=0.2)
    assert limits(np.exp(values), factor=True) == pytest.approx((np.exp(-2), np.exp(22)), rel=0.3)
    low, high = limits(np.full(50, 3.0), factor=False)
    assert low < 3 < high


def test_saturated_share_counts_full_pixels_of_the_cell():
    crop = np.zeros((10, 10, 3), np.uint8)
    crop[:4] = 100
    crop[0] = 255
    assert saturated_share(crop) == pytest.approx(0.25)
    assert saturated_share(np.zeros((10, 10, 3), np.uint8)) == 0


def cohort(offsets, cells=60, seed=0):
    """Rows and statistics of subjects whose looks differ by their offset, in standard deviations between cells."""
    random = np.random.default_rng(seed)
    values, subjects = [], []
    for number, offset in enumerate(offsets):
        values.append(np.exp(0.1 * (random.normal(size=(cells, len(LOOKED_AT))) + offset)))
        subjects += [f"s{number}"] * cells
    table = pd.DataFrame(np.concatenate(values), columns=list(LOOKED_AT))
    table.insert(0, "path", [f"{index:05d}" for index in range(len(table))])
    return pd.DataFrame({"path": table["path"], "subject": subjects}), table


def test_one_person_under_two_names_is_found_and_others_are_not():
    rows, table = cohort([0, 1, 2, 3, 4, 4])
    found = alike_subjects(rows, table)
    assert {(pair.a, pair.b) for pair in found} <= {("s4", "s5")}
    hits = sum(bool(alike_subjects(*cohort([0, 1, 2, 2], seed=seed))) for seed in range(20))
    assert hits >= 5  # half of all true pairs lie below the median, by its meaning
    assert not any(alike_subjects(*cohort([0, 1, 2, 3], seed=seed)) for seed in range(20))


def test_subjects_of_few_cells_say_nothing():
    rows, table = cohort([0, 0], cells=10)
    assert alike_subjects(rows, table) == []
    assert set(PROFILE) <= set(LOOKED_AT)


def test_images_of_equal_pixels_are_looked_at_once(drawn):
    rows = drawn.rows.copy()
    rows.loc[1, "pixel_sha256"] = rows.loc[0, "pixel_sha256"]
    assert len(look(dataclasses.replace(drawn, rows=rows)).paths) == len(rows) - 1
