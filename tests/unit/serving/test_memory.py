"""What is too large for the memory at hand is refused before it is loaded."""

import dataclasses
import gc
import weakref

import pytest

from blastwatch.errors import TooLarge
from serving import memory
from serving.memory import MIB, available, check_memory, give_back, left_in_container, needed, room_for_all, set_apart


def test_a_version_needs_a_multiple_of_its_graph(package):
    graph = (package.folder / "network.onnx").stat().st_size
    assert 3 * graph < needed(package, 32) < 3.2 * graph + 20 * MIB
    assert needed(package, 64) - needed(package, 32) == 8 * 32 * 3 * 32 * 32 * 4


def test_the_setting_is_what_the_process_may_take_in_all(package, settings):
    check_memory(package, settings)
    small = dataclasses.replace(settings, memory_limit=10.0)
    assert available(small) == 0
    with pytest.raises(TooLarge, match="0 MiB are left"):
        check_memory(package, small)
    assert available(dataclasses.replace(settings, memory_limit=1e6)) > 900_000 * MIB


def test_what_an_engine_at_rest_takes_again_is_no_room_for_another(package, settings, monkeypatch):
    need = needed(package, settings.max_batch_size)
    again = 8 * settings.max_batch_size * 3 * 32 * 32 * 4
    monkeypatch.setattr(memory, "available", lambda _: need + again - 1)
    check_memory(package, settings)
    with pytest.raises(TooLarge):
        check_memory(package, settings, package)
    monkeypatch.setattr(memory, "available", lambda _: need + again)
    check_memory(package, settings, package)


def test_workers_load_at_the_same_time_where_there_is_room_for_all(package, settings, monkeypatch):
    three = dataclasses.replace(settings, workers=3)
    need = needed(package, settings.max_batch_size)
    monkeypatch.setattr(memory, "available", lambda _: 3 * need)
    assert room_for_all(package, three)
    assert not room_for_all(package, dataclasses.replace(three, workers=4))
    assert room_for_all(package, dataclasses.replace(three, workers=4, memory_limit=1e6))  # of each, not of all


def group(folder, limit, used, files=0):
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\n")


def test_limits_of_the_container_and_of_the_groups_around_it(tmp_path):
    membership = tmp_path / "membership"
    membership.write_text("0::/pod/box\n")
    root = tmp_path / "cgroup"
    group(root / "pod", 1000, 900, files=50)
    group(root / "pod" / "box", "max", 300)
    assert left_in_container(root, membership) == [150]
    assert left_in_container(root, tmp_path / "none") == []


def test_giving_memory_back_does_no_harm():
    give_back()


class Version:
    """Holds itself, so that only a collection frees it."""

    def __init__(self):
        self.itself = self


def test_a_version_that_was_set_apart_is_freed_once_it_is_dropped():
    version = Version()
    gone = weakref.ref(version)
    set_apart()
    try:
        del version
        gc.collect()
        assert gone() is not None  # passed over, like all that was there
        give_back()
        assert gone() is None
        assert gc.get_freeze_count()  # the rest stays apart
    finally:
        gc.unfreeze()
