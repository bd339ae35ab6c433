"""Capture never makes the caller wait, loses nothing silently, and flushes when closed."""

import shutil
import threading
import time

import pytest

from monitoring.capture import Capture
from monitoring.store import Store, StoreError, StoreUnavailable, open_store
from monitoring.waiting import WaitingPredictions
from tests.cohorts import record


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'predictions.db'}"


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_stores_within_a_moment_and_flushes_on_close(url):
    heard = []
    capture = Capture(url, on_stored=heard.append)
    assert capture.submit(record("first"))
    wait_for(lambda: capture.counts().stored == 1, 5)
    for number in range(1200):
        capture.submit(record(str(number)))
    counts = capture.close()
    assert (counts.stored, counts.dropped, counts.failed, counts.waiting) == (1201, 0, 0, 0)
    assert sum(heard) == 1201
    with open_store(url) as store:
        assert store.count() == 1201


def test_a_full_queue_drops_and_counts(url, monkeypatch):
    def away(_url):
        raise StoreUnavailable("away")

    monkeypatch.setattr("monitoring.capture.open_store", away)
    heard = []
    capture = Capture(url, queue_size=5, on_dropped=heard.append)
    capture.submit(record("in hand"))
    wait_for(lambda: capture.counts().failed)
    started = time.monotonic()
    taken = [capture.submit(record(str(number))) for number in range(20)]
    assert time.monotonic() - started < 0.5
    assert taken == [True] * 5 + [False] * 15
    counts = capture.close(timeout=0.1)
    assert counts.stored == 0 and counts.dropped == sum(heard) == 21 and counts.waiting == 0


def test_a_database_that_comes_back_gets_everything(tmp_path, url):
    blocked = tmp_path / "predictions.db"
    blocked.mkdir()  # a folder in the file's place: it cannot be opened
    with Capture(url) as capture:
        for number in range(10):
            capture.submit(record(str(number)))
        wait_for(lambda: capture.counts().failed >= 1, 20)
        shutil.rmtree(blocked)
        wait_for(lambda: capture.counts().stored == 10, 20)
    assert capture.counts().dropped == 0
    with open_store(url) as store:
        assert store.count() == 10


def test_an_error_that_nobody_thought_of_does_not_end_the_writer(url, monkeypatch, caplog):
    def broken(_url):
        raise ModuleNotFoundError("No module named 'alembic'")

    with monkeypatch.context() as patched:
        patched.setattr("monitoring.capture.open_store", broken)
        capture = Capture(url)
        capture.submit(record("lost"))
        wait_for(lambda: capture.counts().dropped == 1)
    capture.submit(record("kept"))
    wait_for(lambda: capture.counts().stored == 1)
    counts = capture.close()
    assert (counts.dropped, counts.failed, counts.waiting) == (1, 1, 0)
    assert "No module named 'alembic'" in caplog.text
    with open_store(url) as store:
        assert store.count() == 1


def test_one_bad_record_does_not_take_the_others(url):
    bad = record("bad", statistics={"cell_area": 1.0})
    with Capture(url) as capture:
        for one in (record("a"), bad, record("b")):
            capture.submit(one)
    counts = capture.counts()
    assert (counts.stored, counts.dropped) == (2, 1) and counts.failed >= 1


def test_nothing_is_taken_after_closing(url):
    capture = Capture(url)
    capture.close()
    assert not capture.submit(record())
    assert capture.counts().dropped == 1


def test_a_refusing_database_is_no_endless_loop(url, monkeypatch):
    def refuse(_url):
        raise StoreError("tables of another version")

    monkeypatch.setattr("monitoring.capture.open_store", refuse)
    with Capture(url) as capture:
        capture.submit(record())
        wait_for(lambda: capture.counts().dropped == 1)


def test_the_queue_holds_at_least_one(url):
    with pytest.raises(ValueError, match="`queue_size`"):
        Capture(url, queue_size=0)


@pytest.fixture
def stuck(monkeypatch):
    """A database that answers nothing until it is let go; then it takes everything after all."""
    asked, let_go, add = threading.Event(), threading.Event(), Store.add

    def wait(self, records):
        if "waiting.db" not in str(self._engine.url):
            asked.set()
            assert let_go.wait(20)
        add(self, records)

    monkeypatch.setattr(Store, "add", wait)
    monkeypatch.setattr("monitoring.capture.GATHER_SECONDS", 0.01)
    monkeypatch.setattr("monitoring.capture._CLOSING_SECONDS", 0.1)
    yield asked, let_go
    let_go.set()


@pytest.mark.parametrize("disk", [True, False])
def test_what_a_stuck_database_holds_up_at_the_end_lies_on_disk_or_is_counted(tmp_path, url, stuck, caplog, disk):
    asked, let_go = stuck
    lost, waiting = [], WaitingPredictions(tmp_path / "waiting.db", 1 << 30)
    capture = Capture(url, aside=waiting if disk else None, on_dropped=lost.append)
    capture.submit(record("in hand"))
    assert asked.wait(10)
    for number in range(3):
        capture.submit(record(f"queued {number}"))
    counts = capture.close(timeout=0.1)
    assert (counts.stored, counts.dropped, counts.waiting) == (0, 0 if disk else 4, 0)
    assert sum(lost) == counts.dropped and ("4 rows are lost" in caplog.text) is not disk
    assert not disk or waiting.count() == 4
    let_go.set()
    capture._thread.join(10)
    assert capture.counts().waiting == 0 and capture.counts().dropped == counts.dropped
