"""A scoring that was stopped goes on with what it had, and takes nothing that is of another file or version."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from blastwatch.errors import BlastwatchError
from serving.kept_scores import open_kept
from serving.live import LiveModel
from serving.scoring import score
from tests.service_packages import write_cell
from tests.unit.serving.test_aside import Quick

BY = {"folder": "cells", "package": "d", "version": "7", "program": "1"}
CELLS = 5


class Counting(Quick):
    """Counts the cells that it is asked about."""

    asked = 0

    def infer(self, crops):
        self.asked += len(crops)
        return super().infer(crops)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "cells"
    place.mkdir()
    for seed in range(CELLS):
        write_cell(place / f"{seed}.bmp", seed)
    return place


@pytest.fixture
def run(folder, served, settings, tmp_path):
    """Scores with what is kept; stops before the batch of that number. Gives the rows and how many were asked for."""

    def go(*, stop=None, by=BY):
        engine = Counting()

        def watched(parts):
            for number, part in enumerate(parts):
                if number == stop:
                    raise KeyboardInterrupt
                yield part

        live, wanted = LiveModel(served=served, engine=engine), replace(settings, max_batch_size=2)
        with open_kept(tmp_path / "out.parquet", by) as kept:
            if stop is not None:
                with pytest.raises(KeyboardInterrupt):
                    score(folder, live, wanted, watched=watched, kept=kept)
                return engine.asked
            rows, refused = score(folder, live, wanted, kept=kept)
            assert not refused
            return rows, engine.asked

    return go


def test_who_was_stopped_goes_on_and_ends_with_the_same_rows(run, folder, served, settings):
    assert run(stop=2) == 4
    rows, asked = run()
    assert asked == 1
    whole, _ = score(folder, LiveModel(served=served, engine=Quick()), settings)
    pd.testing.assert_frame_equal(rows, whole)
    assert run()[1] == 0


def test_a_file_that_changed_or_came_is_scored(run, folder):
    run(stop=2)
    write_cell(folder / "1.bmp", 77)
    os.utime(folder / "2.bmp", ns=(1, 1))
    write_cell(folder / "new.bmp", 8)
    (folder / "0.bmp").unlink()
    rows, asked = run()
    assert list(rows["path"]) == ["1.bmp", "2.bmp", "3.bmp", "4.bmp", "new.bmp"] and asked == 4


def test_files_of_one_size_and_time_that_changed_places_are_scored(run, folder):
    """As names in an archive do that is sorted anew, and copies that keep the time of what they were made of."""
    for seed in range(CELLS):
        os.utime(folder / f"{seed}.bmp", ns=(1, 1))
    run(stop=2)
    for old, new in (("0", "aside"), ("1", "0"), ("aside", "1")):
        (folder / f"{old}.bmp").rename(folder / f"{new}.bmp")
    assert run()[1] == CELLS - 2


def test_another_version_begins_anew(run, tmp_path):
    run(stop=2)
    with open_kept(tmp_path / "out.parquet", BY | {"version": "8"}) as kept:
        assert len(kept) == 0 and kept.of_another
    with open_kept(tmp_path / "out.parquet", BY | {"version": "8"}) as kept:
        assert not kept.of_another
    assert run()[1] == CELLS


def test_what_another_release_kept_begins_anew(run, tmp_path):
    """With fewer names in its first line, or more, and other marks."""
    for by in ({name: BY[name] for name in BY if name != "program"}, BY | {"later": 1}):
        lines = (by, [{"path": "0.bmp", "mark": [1, 2]}])
        (tmp_path / "out.parquet.part").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        with open_kept(tmp_path / "out.parquet", BY) as kept:
            assert len(kept) == 0 and kept.of_another
        assert run()[1] == CELLS
        (tmp_path / "out.parquet.part").unlink()


def test_a_line_that_was_cut_off_is_left_out(run, tmp_path):
    run(stop=2)
    part = tmp_path / "out.parquet.part"
    part.write_bytes(part.read_bytes()[:-10])
    assert run()[1] == 3
    first, *batches = part.read_text().splitlines()
    assert json.loads(first) == BY and [len(json.loads(line)) for line in batches] == [2, 2, 1]


@pytest.mark.parametrize("begun", [*range(0, 8), 24])
def test_a_first_line_that_was_cut_off_is_begun_anew(tmp_path, begun):
    part = tmp_path / "out.parquet.part"
    part.write_text(json.dumps(BY)[:begun])
    with open_kept(tmp_path / "out.parquet", BY) as kept:
        assert len(kept) == 0 and not kept.of_another
    assert part.read_text() == f"{json.dumps(BY)}\n"


def test_two_at_once_and_what_is_none_of_ours(tmp_path):
    out = tmp_path / "out.parquet"
    with (
        open_kept(out, BY),
        pytest.raises(BlastwatchError, match="Another `blastwatch score` writes"),
        open_kept(out, BY),
    ):
        pass
    for content in (
        "somebody's notes\n",
        '{"name": 1}\n',
        '["folder"]\n',
        "3\n",
        f"{json.dumps(BY)}\n3\n",
        "notes of one line",
        '{"name',
    ):
        (tmp_path / "out.parquet.part").write_text(content)
        with pytest.raises(BlastwatchError, match="holds something else"), open_kept(out, BY):
            pass
        assert (tmp_path / "out.parquet.part").read_text() == content
    with pytest.raises(BlastwatchError, match="cannot be kept in"), open_kept(tmp_path / "none/out.parquet", BY):
        pass


def test_a_full_disk_is_told(tmp_path):
    with open_kept(tmp_path / "out.parquet", BY) as kept:
        with Path("/dev/full").open("wb", buffering=0) as full:
            kept._file = full
            with pytest.raises(BlastwatchError, match=r"cannot be kept in .*\.part: No space left"):
                kept.add([{"path": "a"}], [(1, 2, 3)])
        kept._file = SimpleNamespace(write=lambda line: len(line) - 1)
        with pytest.raises(BlastwatchError, match="No space left"):
            kept.add([{"path": "a"}], [(1, 2, 3)])
        assert len(kept) == 0
