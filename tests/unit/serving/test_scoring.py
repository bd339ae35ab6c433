"""A folder is scored to its end, whatever one of its files is."""

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blastwatch.errors import DataError
from serving.live import LiveModel
from serving.scoring import NO_ANSWER, UNREADABLE, find_images, score
from tests.service_packages import write_cell
from tests.unit.serving.test_aside import Quick


@pytest.fixture
def scored(served, settings, tmp_path):
    folder = tmp_path / "cells"
    folder.mkdir()
    write_cell(folder / "a.bmp")

    def run(**changed):
        table, refused = score(folder, LiveModel(served=served, engine=Quick()), replace(settings, **changed))
        return list(table["path"]), {one.path: one for one in refused}

    return folder, run


def test_a_file_that_cannot_be_read_is_one_refused_image(scored):
    folder, run = scored
    (folder / "b.png").symlink_to("/proc/self/mem")  # opens, and gives an error when it is read
    (folder / "c.png").write_bytes(b"")
    paths, refused = run()
    assert paths == ["a.bmp"] and refused["b.png"].reason == UNREADABLE and refused["c.png"].reason == "empty"
    assert "cannot be read" in refused["b.png"].message


def test_a_slide_among_the_cells_is_refused_and_never_read_whole(scored):
    folder, run = scored
    run()  # what is loaded on first use is not counted below
    with (folder / "slide.tif").open("wb") as slide:
        slide.truncate(600 << 20)
    tracemalloc.start()
    try:
        paths, refused = run()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert paths == ["a.bmp"] and refused["slide.tif"].reason == "too-large"
    assert f"but got {600 << 20}" in refused["slide.tif"].message
    assert most < 100 << 20


def test_a_cell_without_an_answer_is_refused_and_the_others_are_scored(scored, served, settings):
    folder, run = scored
    write_cell(folder / "b.bmp", seed=1)

    class Overflowing(Quick):
        def infer(self, crops):
            outputs = super().infer(crops)
            logits = outputs.logits.copy()
            logits[0] = np.nan
            return replace(outputs, logits=logits)

    assert run()[0] == ["a.bmp", "b.bmp"]
    table, [refused] = score(folder, LiveModel(served=served, engine=Overflowing()), settings)
    assert list(table["path"]) == ["b.bmp"] and (refused.path, refused.reason) == ("a.bmp", NO_ANSWER)


def test_an_image_of_more_pixels_than_the_setting_says_is_refused(scored):
    folder, run = scored
    Image.new("RGB", (460, 450)).save(folder / "wide.png")
    paths, refused = run(max_image_pixels=450 * 450)
    assert paths == ["a.bmp"] and refused["wide.png"].reason == "too-large"
    assert f"at most {450 * 450} pixels but got 460x450" in refused["wide.png"].message
    assert run(max_image_pixels=460 * 450) == (["a.bmp", "wide.png"], {})


def test_a_name_that_is_not_utf8_costs_no_other_cell_its_row(scored):
    folder, run = scored
    write_cell(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.bmp")))
    write_cell(folder / "Müller 細胞.bmp")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"")
    paths, refused = run()
    assert paths == ["Müller 細胞.bmp", "a.bmp", "caf\\xe9.bmp"]
    assert refused["\\xff.png"].reason == "empty"


def test_a_folder_below_that_cannot_be_read_is_no_empty_one(scored, monkeypatch):
    folder, run = scored
    (folder / "ward").mkdir()
    scan = os.scandir

    def refusing(path):
        if str(path).endswith("ward"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", refusing)
    with pytest.raises(DataError, match="Expected a folder that can be read but .*ward cannot: Permission denied"):
        run()


def test_linked_folders_are_scored_once_and_hidden_files_are_none(scored, tmp_path):
    folder, run = scored
    (tmp_path / "disk" / "ward").mkdir(parents=True)
    for seed, name in enumerate(("disk/ward/b.JFIF", "disk/c.jpe", "cells/d.dib")):
        write_cell(tmp_path / "cell.png", seed).rename(tmp_path / name)
    (folder / "0").symlink_to(tmp_path / "disk" / "ward")
    (folder / "1").symlink_to(tmp_path / "disk")  # which holds the one before
    (folder / "._a.bmp").write_bytes(b"of a Mac")
    (folder / ".old").mkdir()
    write_cell(folder / ".old" / "e.bmp")
    (folder / "f.gif").write_bytes(b"")
    assert run() == (["0/b.JFIF", "1/c.jpe", "a.bmp", "d.dib"], {})
    aside = []
    find_images(folder, aside.append)
    assert sorted(aside) == [
        "files ending in '.gif'",
        "hidden folders",
        "links to folders that are read by another name",
    ]


def test_a_link_to_nothing_and_a_pipe_are_refused_by_name(scored):
    folder, run = scored
    (folder / "gone.bmp").symlink_to(folder / "nowhere.bmp")
    (folder / "round.bmp").symlink_to(folder / "round.bmp")
    os.mkfifo(folder / "pipe.bmp")
    (folder / "zero.bmp").symlink_to("/dev/zero")
    paths, refused = run()
    assert paths == ["a.bmp"] and {one.reason for one in refused.values()} == {UNREADABLE}
    assert "No such file" in refused["gone.bmp"].message and "symbolic links" in refused["round.bmp"].message
    assert "pipe" in refused["pipe.bmp"].message and "device" in refused["zero.bmp"].message


def test_where_there_are_none_it_is_said_what_was_passed_over(tmp_path):
    (tmp_path / ".cells").mkdir()
    for name in (".cells/1.png", "a.gif", "b.gif"):
        (tmp_path / name).touch()
    told = []
    with pytest.raises(
        DataError, match=r"but found none\. Left aside were 1 of the hidden folders, 2 of the files end"
    ):
        find_images(tmp_path, told.append)
    assert len(told) == 3


def test_a_linked_folder_that_is_not_there_is_refused_by_name_and_the_others_are_scored(scored, tmp_path):
    folder, run = scored
    (folder / "old").mkdir()
    (folder / "old" / "mount").symlink_to(tmp_path / "gone")
    paths, refused = run()
    assert paths == ["a.bmp"] and list(refused) == ["old/mount"]
    assert refused["old/mount"].reason == UNREADABLE and "No such file" in refused["old/mount"].message
