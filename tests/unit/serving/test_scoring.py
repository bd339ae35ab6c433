"""A folder is scored to its end, whatever one of its files is."""

import resource

import pytest

from serving.live import LiveModel
from serving.scoring import UNREADABLE, score
from tests.service_packages import write_cell
from tests.unit.serving.test_aside import Quick


@pytest.fixture
def scored(served, settings, tmp_path):
    folder = tmp_path / "cells"
    folder.mkdir()
    write_cell(folder / "a.bmp")

    def run():
        table, refused = score(folder, LiveModel(served=served, engine=Quick()), settings)
        return list(table["path"]), {one.path: one for one in refused}

    return folder, run


def test_a_file_that_cannot_be_read_is_one_refused_image(scored):
    folder, run = scored
    (folder / "b.png").symlink_to("/proc/self/mem")  # opens, and gives an error when it is read
    (folder / "c.png").write_bytes(b"")
    paths, refused = run()
    assert paths == ["a.bmp"] and refused["b.png"].reason == UNREADABLE and refused["c.png"].reason == "empty"
    assert "cannot be read" in refused["b.png"].message


def test_a_slide_among_the_cells_is_refused_before_it_fills_the_memory(scored):
    folder, run = scored
    run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (folder / "slide.tif").open("wb") as slide:
        slide.truncate(600 << 20)
    paths, refused = run()
    assert paths == ["a.bmp"] and refused["slide.tif"].reason == "too-large"
    assert f"but got {600 << 20}" in refused["slide.tif"].message
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
