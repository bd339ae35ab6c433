"""Which copies of packages go, and which stay."""

import os
import time

import pytest

from blastwatch.registry import SCRATCH
from serving.live import hand_over
from serving.live_folder import LiveFolder, Status
from serving.old_copies import KEPT, LEAST_AGE, LEAVING, remove_old_copies

DAYS = 2 * LEAST_AGE


@pytest.fixture
def copies(settings):
    """Makes copies that were last used some seconds ago."""

    def make(name, age):
        folder = settings.packages / (name * 64)
        (folder / "evidence").mkdir(parents=True)
        (folder / "model.json").write_text("{}")
        os.utime(folder, (time.time() - age,) * 2)
        return folder

    return make


def test_only_old_copies_beyond_the_latest_go(settings, copies):
    folders = [copies(format(number, "x"), DAYS + number) for number in range(KEPT + 3)]
    copies("e", 0)
    (settings.packages / ".scratch").mkdir()
    gone = remove_old_copies(settings.packages, LiveFolder(settings.home))
    # The young copy is one of the latest.
    assert sorted(gone) == [folder.name for folder in folders[KEPT - 1 :]]
    left = {path.name for path in settings.packages.iterdir()}
    assert left == {".scratch", "e" * 64, *(folder.name for folder in folders[: KEPT - 1])}


def test_what_serves_stays_however_old(settings, copies, served):
    live = LiveFolder(settings.home)
    for number in range(KEPT):
        copies(format(number, "x"), DAYS)
    wanted, good, forgotten = copies("a", 9 * DAYS), copies("b", 9 * DAYS), copies("c", 9 * DAYS)
    hand_over(served, live.wanted("champion"), package=wanted)
    hand_over(served, live.good("champion"), package=good)
    live.write_status("champion", Status())
    assert remove_old_copies(settings.packages, live) == [forgotten.name]
    assert wanted.is_dir() and good.is_dir() and not forgotten.exists()


def test_young_copies_stay_however_many(settings, copies):
    for number in range(2 * KEPT):
        copies(format(number, "x"), LEAST_AGE / 2)
    assert remove_old_copies(settings.packages, LiveFolder(settings.home)) == []


def test_without_a_folder_there_is_nothing_to_remove(settings):
    assert remove_old_copies(settings.packages, LiveFolder(settings.home)) == []


@pytest.mark.parametrize("begins", [SCRATCH, LEAVING])
def test_what_a_kill_left_behind_goes_after_a_day(settings, begins):
    old, young = (settings.packages / f"{begins}{name}" for name in ("old", "young"))
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "network.onnx").write_bytes(b"half")
    os.utime(old, times=(0, time.time() - LEAST_AGE - 60))
    remove_old_copies(settings.packages, LiveFolder(settings.home))
    assert not old.exists() and young.is_dir()
