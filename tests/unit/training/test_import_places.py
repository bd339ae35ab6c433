"""`blastwatch data import`: no image is read for a place that cannot be written."""

import pytest
from click.testing import CliRunner

from blastwatch.errors import UsageError
from training import importing
from training.data_commands import data


@pytest.mark.parametrize(
    ("out", "home", "named"), [("file/out", "home", "--out"), ("out", "file/home", "BLASTWATCH_HOME")]
)
def test_no_image_is_read_for_a_place_that_cannot_be_written(tmp_path, monkeypatch, out, home, named):
    (tmp_path / "file").touch()
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / home))
    read = []
    monkeypatch.setattr(importing, "import_cells", lambda *_, **__: read.append(True))
    found = CliRunner().invoke(data, ["import", "cells", "--kind", "folder", "--out", str(tmp_path / out)])
    assert isinstance(found.exception, UsageError) and f"written to as {named} but got" in str(found.exception)
    assert not read and [path.name for path in tmp_path.iterdir()] == ["file"]
