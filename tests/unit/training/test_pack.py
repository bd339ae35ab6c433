"""A pack that is made anew: whoever has the old one open keeps it, and it is usable until the new one is whole. And a
pack that is not what it should be, or for which there is no room, is told."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blastwatch.errors import DataError, UsageError
from blastwatch.images import Preprocessing
from blastwatch.manifest import read_cells
from training import pack
from training.pack import CROPS, FACTS, INDEX, open_pack, write_pack

SMALL, LARGE = Preprocessing(crop=320, size=32), Preprocessing(crop=320, size=48)
WHOLE = {CROPS, INDEX, FACTS}


@pytest.fixture
def cells(cohort):
    return read_cells(cohort / "cells")


@pytest.fixture
def packed(cells, tmp_path):
    write_pack(cells, SMALL, tmp_path)
    return open_pack(tmp_path, cells)


def test_who_has_a_pack_open_keeps_it(cells, packed, tmp_path):
    before = np.array(packed.crops)
    # Larger, since reading behind the end of a file that has shrunk ends a process.
    facts = write_pack(cells, LARGE, tmp_path)
    assert np.array_equal(packed.crops, before)
    again = open_pack(tmp_path, cells)
    assert again.preprocessing == LARGE and again.digest == facts["digest"] != packed.digest
    assert {path.name for path in tmp_path.iterdir()} == WHOLE


def test_what_a_killed_one_left_is_removed(cells, packed, tmp_path):
    (tmp_path / ".pack-killed").mkdir()
    (tmp_path / ".pack-killed" / CROPS).write_bytes(b"half")
    write_pack(cells, LARGE, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == WHOLE


def test_a_pack_that_fails_leaves_the_one_before(cells, packed, tmp_path):
    wrong = cells.rows.sort_values("path").reset_index(drop=True)
    wrong.loc[len(wrong) - 1, "pixel_sha256"] = "0" * 64
    with pytest.raises(DataError, match="has other pixels"):
        write_pack(replace(cells, rows=wrong), LARGE, tmp_path)
    again = open_pack(tmp_path, cells)
    assert again.preprocessing == SMALL and np.array_equal(again.crops, packed.crops)
    assert {path.name for path in tmp_path.iterdir()} == WHOLE


def test_an_image_that_became_none_is_named(cells, tmp_path):
    shutil.copytree(cells.root, tmp_path / "source")
    path = sorted(cells.rows["path"])[0]
    (tmp_path / "source" / path).write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{path} is no usable image any more: .* Import the source anew"):
        write_pack(replace(cells, facts=cells.facts | {"root": str(tmp_path / "source")}), SMALL, tmp_path / "packed")
    assert not list((tmp_path / "packed").iterdir())


def test_a_second_pack_into_the_folder_is_refused_and_the_first_is_whole(cells, tmp_path, monkeypatch):
    fill, refused = pack._fill, []

    def meanwhile(*asked):
        with pytest.raises(UsageError, match="Another process packs cells into") as told:
            write_pack(cells, LARGE, tmp_path)
        refused.append(told)
        return fill(*asked)

    monkeypatch.setattr(pack, "_fill", meanwhile)
    write_pack(cells, SMALL, tmp_path)
    assert len(refused) == 1 and open_pack(tmp_path, cells).preprocessing == SMALL
    assert {path.name for path in tmp_path.iterdir()} == WHOLE


@pytest.mark.parametrize("last", [INDEX, FACTS])
def test_a_pack_that_is_half_in_place_is_no_pack(cells, packed, tmp_path, monkeypatch, last):
    move = Path.replace

    def stopped(self, target):
        if Path(target).name == last:
            raise OSError("no room")
        return move(self, target)

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(OSError, match="no room"):
        write_pack(cells, LARGE, tmp_path)
    with pytest.raises(DataError, match=r"crops\.npy is missing or was changed"):
        open_pack(tmp_path, cells)
    assert {path.name for path in tmp_path.iterdir()} == WHOLE


def test_an_index_that_gives_crops_to_other_cells_is_refused(cells, packed, tmp_path):
    rows, told = pd.read_parquet(tmp_path / INDEX), r"index\.parquet, sorted by path, but got \d+, .*Make it anew"
    for changed in (rows[::-1], rows[1:], rows.assign(path="x")):
        changed.to_parquet(tmp_path / INDEX, index=False)
        with pytest.raises(DataError, match=told):
            open_pack(tmp_path, cells)
    rows.to_parquet(tmp_path / INDEX, index=False)
    assert open_pack(tmp_path, cells).paths == packed.paths


def test_an_index_that_cannot_be_read_is_told(cells, packed, tmp_path):
    for damage in (lambda path: path.write_bytes(b"PAR1"), lambda path: path.write_text(""), Path.unlink):
        damage(tmp_path / INDEX)
        with pytest.raises(DataError, match=r"index\.parquet is missing or cannot be read"):
            open_pack(tmp_path, cells)


def test_a_disk_without_room_is_told_before_a_crop_is_written(cells, packed, tmp_path, monkeypatch):
    def full(descriptor, start, length):
        assert length == os.fstat(descriptor).st_size > len(cells.rows) * 48 * 48 * 3
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"Expected 0\.\d+ GB free in .* but got [\d.]+ GB \(No space left on device\)"):
        write_pack(cells, LARGE, tmp_path)
    again = open_pack(tmp_path, cells)
    assert again.preprocessing == SMALL and {path.name for path in tmp_path.iterdir()} == WHOLE


def test_the_first_crop_is_written_to_blocks_that_are_taken(cells, tmp_path, monkeypatch):
    crop, seen = pack.crop_cell, []

    def watched(image, preprocessing):
        seen.append(next(tmp_path.glob(f".pack-*/{CROPS}")).stat())
        return crop(image, preprocessing)

    monkeypatch.setattr(pack, "crop_cell", watched)
    write_pack(cells, Preprocessing(crop=320, size=96), tmp_path)  # of many pages, so that one does not fill them all
    assert len(seen) == len(cells.rows)
    assert all(512 * file.st_blocks >= file.st_size for file in seen)
