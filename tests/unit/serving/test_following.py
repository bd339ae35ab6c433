"""A worker moves to what was fetched, and stays where that must not serve."""

import dataclasses
import errno
import os
import time
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.errors import GoldenMismatch
from blastwatch.golden import write_golden
from blastwatch.package import DIGESTS, GOLDEN, open_package, seal
from serving import following, memory
from serving.following import FAILED_SECONDS, Pursuit
from serving.lane import Lane, Slot
from serving.live import Served, hand_over, open_first, open_live, read_handover, settle, source_of
from serving.live_folder import LiveFolder, Refusal
from serving.memory import RETRY_SECONDS
from serving.metrics import ServiceMetrics
from tests.running import until
from tests.service_packages import make_servable


@pytest.fixture(scope="session")
def other(tmp_path_factory, served):
    """Another version."""
    package = open_package(make_servable(tmp_path_factory.mktemp("other") / "package", seed=3))
    entry = dataclasses.replace(served.entry, version="8", digest=package.digest)
    return Served(entry=entry, package=package, alias="champion")


@pytest.fixture(scope="session")
def wrong(tmp_path_factory, served):
    """A version whose network does not give the answers in its golden file."""
    folder = make_servable(tmp_path_factory.mktemp("wrong") / "package", seed=4)
    (folder / DIGESTS).unlink()
    (folder / GOLDEN).unlink()
    write_golden(folder, np.full((2, 32, 32, 3), 90, np.uint8), np.array([[9, -9], [9, -9]], np.float32))
    seal(folder)
    package = open_package(folder)
    return Served(
        entry=dataclasses.replace(served.entry, version="9", digest=package.digest), package=package, alias="champion"
    )


@pytest.fixture
def worker(settings, served):
    """A pursuit with its slot, folder and metrics, serving version 7."""
    folder, metrics = LiveFolder(settings.home), ServiceMetrics(CollectorRegistry())
    hand_over(served, folder.wanted("champion"))

    def open_lane(live):
        return Lane(live, settings)

    slot = Slot("champion", open_lane(open_live(served, settings)))
    pursuit = Pursuit(slot, folder, settings, metrics, open_lane, None)
    yield SimpleNamespace(pursuit=pursuit, slot=slot, folder=folder, metrics=metrics, settings=settings)
    slot.lane.close()


def swaps(worker, outcome):
    return worker.metrics.registry.get_sample_value("blastwatch_model_swaps_total", {"outcome": outcome}) or 0


def refused(worker, reason):
    labels = {"alias": "champion", "reason": reason}
    return worker.metrics.registry.get_sample_value("blastwatch_follow_refused", labels)


def test_nothing_happens_while_nothing_changes(worker):
    lane = worker.slot.lane
    for _ in range(3):
        worker.pursuit.look()
    assert worker.slot.lane is lane
    assert swaps(worker, "swapped") == 0


def test_another_version_is_swapped_in_and_remembered_as_good(worker, other):
    old = worker.slot.lane
    hand_over(other, worker.folder.wanted("champion"))
    worker.pursuit.look()
    assert (worker.slot.lane.version, old.ended.is_set()) == ("8", True)
    assert read_handover(worker.folder.good("champion"))[0].version == "8"
    assert swaps(worker, "swapped") == 1
    worker.pursuit.look()
    assert worker.pursuit._leaving == []


@pytest.mark.parametrize("moment", ["start", "swap"])
def test_a_full_disk_stops_no_worker_and_the_good_version_is_written_later(
    worker, other, monkeypatch, caplog, moment
):  # fmt: skip
    at, good = SimpleNamespace(now=time.monotonic()), worker.folder.good("champion")
    monkeypatch.setattr(following.time, "monotonic", lambda: at.now)
    good.unlink()
    pursuit, expected = worker.pursuit, "8"
    with monkeypatch.context() as full:
        full.setattr(following, "hand_over", failing(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
        if moment == "start":
            pursuit, expected = (
                Pursuit(worker.slot, worker.folder, worker.settings, worker.metrics, worker.pursuit._open_lane, None),
                "7",
            )
        else:
            hand_over(other, worker.folder.wanted("champion"))
        for _ in range(3):
            pursuit.look()
            at.now += FAILED_SECONDS + 1
        assert worker.slot.lane.version == expected
        assert caplog.text.count(f"Version {expected} serves; that could not be written down") == 1
    assert not good.exists()
    pursuit.look()
    assert read_handover(good)[0].version == expected
    good.unlink()
    at.now += FAILED_SECONDS + 1
    pursuit.look()
    assert not good.exists()  # it is written once


def test_newer_facts_of_the_same_version_are_told_without_a_swap(worker, served):
    lane = worker.slot.lane
    again = dataclasses.replace(served.entry, promoted_by="another")
    hand_over(dataclasses.replace(served, entry=again), worker.folder.wanted("champion"))
    worker.pursuit.look()
    assert worker.slot.lane is lane
    assert lane.served.entry.promoted_by == "another"


def test_wrong_golden_cells_never_serve_and_are_tried_once(worker, wrong, other, monkeypatch, caplog):
    opened = []
    monkeypatch.setattr(following, "open_live", lambda *a: opened.append(a) or open_live(*a))
    hand_over(wrong, worker.folder.wanted("champion"))
    for _ in range(3):
        worker.pursuit.look()
    assert (worker.slot.lane.version, len(opened)) == ("7", 1)
    assert (swaps(worker, "refused"), refused(worker, "golden")) == (1, 1)
    facts = worker.pursuit.facts()["refused"]
    assert (facts["version"], facts["reason"], set(facts)) == ("9", "golden", {"version", "reason", "since"})
    assert caplog.text.count("Version 9 does not serve, version 7 stays") == 1
    hand_over(other, worker.folder.wanted("champion"))
    worker.pursuit.look()
    assert (worker.slot.lane.version, refused(worker, "golden")) == ("8", 0)


def test_a_package_that_was_changed_on_the_disk_never_serves(worker, other, tmp_path):
    import shutil

    copy = shutil.copytree(other.package.folder, tmp_path / "copy")
    (copy / "card.md").write_text("changed")
    hand_over(other, worker.folder.wanted("champion"), package=copy)
    worker.pursuit.look()
    assert (worker.slot.lane.version, refused(worker, "corrupt")) == ("7", 1)


@pytest.mark.parametrize("obstacle", ["no room on the GPU", "a policy that cannot be read"])
def test_whatever_stands_in_the_way_ends_no_following(worker, other, tmp_path, monkeypatch, obstacle):
    """The version before it goes on, `/v1/model` and the metrics say so, and it is tried again."""
    at = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(following.time, "monotonic", lambda: at.now)
    with monkeypatch.context() as broken:
        if obstacle == "no room on the GPU":
            broken.setattr("serving.live.open_engine", failing(RuntimeError("CUDA out of memory")))
        else:
            (tmp_path / "policy.yaml").write_text("engine: [")
            policy = dataclasses.replace(worker.settings, policy=tmp_path / "policy.yaml")
            broken.setattr(worker.pursuit, "_settings", policy)
        hand_over(other, worker.folder.wanted("champion"))
        worker.pursuit.look()
        assert (worker.slot.lane.version, refused(worker, "not-opened"), swaps(worker, "refused")) == ("7", 1, 1)
        assert worker.pursuit.facts()["refused"]["reason"] == "not-opened"
    worker.pursuit.look()
    assert worker.slot.lane.version == "7"  # not before its time
    at.now += RETRY_SECONDS + 1
    worker.pursuit.look()
    assert (worker.slot.lane.version, refused(worker, "not-opened")) == ("8", 0)


def failing(error):
    def fail(*_arguments, **_named):
        raise error

    return fail


def test_a_look_that_fails_in_a_way_nobody_thought_of_is_not_the_last(worker, monkeypatch, caplog):
    looks = []
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(following, "FAILED_SECONDS", 0.01)
    monkeypatch.setattr(worker.pursuit, "look", lambda: looks.append(1) or failing(ZeroDivisionError("what"))())
    child = SimpleNamespace(tend=lambda: None, close=lambda: None)
    followed = following.Following(worker.pursuit, worker.folder, child)
    followed.start()
    until(lambda: len(looks) > 3, 10)
    followed.close()
    assert "A look at the followed version failed" in caplog.text


def test_memory_that_was_short_is_asked_for_again_later(worker, other, monkeypatch):
    real, at = worker.pursuit._settings, SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr(following.time, "monotonic", lambda: at.now)
    worker.pursuit._settings = dataclasses.replace(real, memory_limit=1.0)
    hand_over(other, worker.folder.wanted("champion"))
    worker.pursuit.look()
    assert (worker.slot.lane.version, refused(worker, "too-large")) == ("7", 1)
    worker.pursuit._settings = real
    worker.pursuit.look()
    assert worker.slot.lane.version == "7"
    at.now += RETRY_SECONDS + 1
    worker.pursuit.look()
    assert (worker.slot.lane.version, refused(worker, "too-large")) == ("8", 0)


def test_a_worker_starts_with_the_good_version_where_the_wanted_one_must_not_serve(settings, served, wrong):
    folder = LiveFolder(settings.home)
    hand_over(wrong, folder.wanted("champion"))
    hand_over(served, folder.good("champion"))
    live, refusal = open_first(settings, {})
    assert (live.served.entry.version, refusal.version, refusal.reason) == ("7", "9", "golden")


def test_a_worker_starts_with_no_good_version_of_another_model(settings, served, wrong):
    folder, other = LiveFolder(settings.home), dataclasses.replace(settings, model_name="blood-b")
    hand_over(dataclasses.replace(wrong, source=source_of(other)), folder.wanted("champion"))
    hand_over(served, folder.good("champion"))
    with pytest.raises(GoldenMismatch):
        open_first(other, {})


def test_newer_facts_leave_what_the_version_is_of(worker, served):
    worker.slot.lane.tell(dataclasses.replace(served.entry, promoted_by="pat"))
    assert worker.slot.lane.served.source == served.source


@pytest.mark.parametrize("room", [True, False])
def test_a_worker_waits_for_others_at_its_start_where_memory_is_short_alone(settings, served, monkeypatch, room):
    folder, waited = LiveFolder(settings.home), []
    hand_over(served, folder.wanted("champion"))
    monkeypatch.setattr(memory, "available", lambda _: (2 if room else 1) * memory.needed(served.package, 1))
    monkeypatch.setattr(LiveFolder, "loading", lambda _: nullcontext(waited.append(True)))
    live, refusal = open_first(dataclasses.replace(settings, workers=2, max_batch_size=1), {})
    assert (live.served.entry.version, refusal, waited) == ("7", None, [] if room else [True])


def test_a_start_without_a_registry_takes_the_last_verified_copy(settings, served, free_port):
    away = dataclasses.replace(settings, tracking_uri=f"http://127.0.0.1:{free_port()}")
    folder = LiveFolder(settings.home)
    hand_over(dataclasses.replace(served, source=source_of(away)), folder.good("champion"))
    found, variables = settle(away, {})
    assert (found.entry.version, variables) == ("7", {})
    assert folder.read_status("champion").refused.reason == "unreachable"


def test_a_refusal_of_the_start_is_not_tried_again(settings, served, wrong, monkeypatch):
    folder, metrics = LiveFolder(settings.home), ServiceMetrics(CollectorRegistry())
    hand_over(wrong, folder.wanted("champion"))
    slot = Slot("champion", Lane(open_live(served, settings), settings))
    refusal = Refusal(reason="golden", version="9", message="why", since="")
    pursuit = Pursuit(slot, folder, settings, metrics, lambda live: Lane(live, settings), refusal)
    monkeypatch.setattr(following, "open_live", lambda *_: pytest.fail("tried again"))
    pursuit.look()
    assert slot.lane.version == "7"
    assert not folder.good("champion").exists()
    slot.lane.close()
