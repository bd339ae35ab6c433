"""A folder is tried before the work whose result goes there."""

import pytest

from blastwatch.errors import UsageError
from blastwatch.folders import check_folder


def test_a_folder_that_could_be_made_is_not_left_behind(tmp_path):
    check_folder(tmp_path / "a" / "b", "--out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there_stays_as_it_is(tmp_path):
    (tmp_path / "file").touch()
    check_folder(tmp_path, "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match="made and written to as --out but got .*file"):
            check_folder(place, "--out")
