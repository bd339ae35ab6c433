"""Predictions wait on disk while their database is away: none is lost to a kill, none is stored twice."""

import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from blastwatch.settings import load
from monitoring import waiting
from monitoring.capture import Capture, HandedOver
from monitoring.database import StoreError, StoreUnavailable
from monitoring.statistics import STATISTICS
from monitoring.store import open_store
from monitoring.waiting import WaitingPredictions, open_waiting
from tests.cohorts import NOON, record
from tests.running import environment, until

MUCH = 1 << 30
PATIENCE = 20  # seconds


@pytest.fixture
def away(tmp_path):
    """A database that cannot be opened until the folder in its place is gone."""
    blocked = tmp_path / "predictions.db"
    blocked.mkdir()
    return blocked, f"sqlite:///{blocked}"


@pytest.fixture
def disk(tmp_path):
    return tmp_path / "waiting.db"


def records(count, first=0):
    draw = np.random.default_rng(0)
    return [
        record(
            f"{number:04d}", time=NOON + timedelta(milliseconds=number), patient="p" * 64,
            statistics=dict(zip(STATISTICS, draw.normal(size=len(STATISTICS)).tolist(), strict=True)),
            embedding=draw.normal(size=32).astype(np.float32),
        )
        for number in range(first, first + count)
    ]  # fmt: skip


def rows_of(url):
    with open_store(url) as store:
        return store.read()


def test_what_waited_is_stored_as_if_it_had_not(away, disk, tmp_path):
    blocked, url = away
    heard, drawn = [], records(1300)
    with Capture(url, queue_size=2000, aside=WaitingPredictions(disk, MUCH), on_aside=heard.append) as capture:
        for one in drawn:
            assert capture.submit(one)
        until(lambda: 1300 in heard, PATIENCE)
        assert (capture.counts().waiting, capture.counts().stored) == (0, 0)  # none of them in memory
        shutil.rmtree(blocked)
        until(lambda: capture.counts().stored == 1300, PATIENCE)
        until(lambda: heard[-1] == 0, PATIENCE)
        capture.submit(record("afterwards", time=NOON + timedelta(days=1)))
    assert (capture.counts().stored, capture.counts().dropped) == (1301, 0)
    at_once = f"sqlite:///{tmp_path / 'at-once.db'}"
    with open_store(at_once) as store:
        store.add([*drawn, record("afterwards", time=NOON + timedelta(days=1))])
    pd.testing.assert_frame_equal(rows_of(url), rows_of(at_once))


def test_a_damaged_database_drops_nothing_and_a_good_one_gets_all_at_the_next_start(disk, tmp_path):
    file, spare = tmp_path / "predictions.db", tmp_path / "spare.db"
    url = f"sqlite:///{file}"
    with open_store(url) as store:
        store.add(records(1000))
    shutil.copy(file, spare)
    with Capture(url, aside=WaitingPredictions(disk, MUCH)) as capture:
        capture.submit(record("before"))
        until(lambda: capture.counts().stored == 1, PATIENCE)
        with file.open("r+b") as written:
            written.seek(3 * 4096)
            written.write(b"\xa5" * (file.stat().st_size - 3 * 4096))
        for one in records(40, first=2000):
            capture.submit(one)
        until(lambda: capture.counts().failed and capture.counts().waiting == 0, PATIENCE)
    assert (capture.counts().stored, capture.counts().dropped) == (1, 0)
    for path in tmp_path.glob("predictions.db*"):
        path.unlink()
    shutil.copy(spare, file)
    with Capture(url, aside=WaitingPredictions(disk, MUCH)) as capture:
        until(lambda: capture.counts().stored == 40, PATIENCE)
    assert len(rows_of(url)) == 1040


def test_a_short_queue_empties_itself_onto_the_disk(away, disk):
    blocked, url = away
    with Capture(url, queue_size=5, aside=WaitingPredictions(disk, MUCH)) as capture:
        for number in range(40):
            until(lambda number=number: capture.submit(record(f"{number:02d}")), PATIENCE)
        assert capture.counts().failed
        shutil.rmtree(blocked)
        until(lambda: capture.counts().stored == 40, PATIENCE)


CAPTURES = """
import sys, time
from pathlib import Path
from monitoring.capture import Capture
from monitoring.waiting import WaitingPredictions
from tests.cohorts import record
aside = WaitingPredictions(Path(sys.argv[2]), 1 << 30)
capture = Capture(sys.argv[1], aside=aside, on_aside=lambda count: print(count, flush=True))
for number in range(20):
    capture.submit(record(f"{number:02d}"))
time.sleep(60)
"""


def test_a_kill_leaves_it_to_whoever_starts_next(away, disk):
    blocked, url = away
    words = [sys.executable, "-c", CAPTURES, url, str(disk)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        # Where the process ends before, so do its lines.
        assert any(line.strip() == "20" for line in process.stdout)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    shutil.rmtree(blocked)
    with Capture(url, aside=WaitingPredictions(disk, MUCH)) as capture:
        until(lambda: capture.counts().stored == 20, PATIENCE)
    assert list(rows_of(url)["id"]) == [f"{number:02d}" for number in range(20)]


def test_closing_while_the_database_is_away_drops_nothing(away, disk):
    blocked, url = away
    capture = Capture(url, aside=WaitingPredictions(disk, MUCH))
    capture.submit(record("a"))
    started = time.monotonic()
    counts = capture.close()
    assert (counts.stored, counts.dropped, counts.waiting) == (0, 0, 0) and time.monotonic() - started < 8
    shutil.rmtree(blocked)
    with Capture(url, aside=WaitingPredictions(disk, MUCH)):  # the end tries once more, before any pause
        pass
    assert list(rows_of(url)["id"]) == ["a"]


def test_workers_that_hand_over_the_same_rows_count_each_once(disk, tmp_path):
    first, second = WaitingPredictions(disk, MUCH), WaitingPredictions(disk, MUCH)
    assert first.keep(records(300)) and second.keep(records(300, first=300))

    class Slow:
        """The other worker is faster, each time."""

        def __init__(self, store):
            self.store, self.others = store, []

        def add(self, rows):
            self.store.add(rows)
            self.others.append(second.hand_over(self.store))

    with open_store(f"sqlite:///{tmp_path / 'predictions.db'}") as store:
        slow = Slow(store)
        given = [first.hand_over(slow) for _ in range(3)]
        assert store.count() == 600
    assert sum(one.stored for one in (*given, *slow.others)) == 600
    assert given[0] == HandedOver(found=500, stored=0, refused=0) and given[-1].found == 0
    assert first.count() == 0


def test_one_row_that_is_refused_does_not_hold_up_the_others(disk, tmp_path):
    lying = WaitingPredictions(disk, MUCH)
    assert lying.keep(records(5))

    class Choosy:
        def __init__(self, store):
            self.store = store

        def add(self, rows):
            if any(row.id == "0003" for row in rows):
                raise StoreError("refused")
            self.store.add(rows)

    with open_store(f"sqlite:///{tmp_path / 'predictions.db'}") as store:
        assert lying.hand_over(Choosy(store)) == HandedOver(found=5, stored=4, refused=1)
        assert store.count() == 4 and lying.count() == 0


def test_a_database_that_cannot_be_opened_condemns_no_row(disk, tmp_path):
    """Its tables are of another Blastwatch, as while the parts of a cluster are renewed one by one."""
    url = f"sqlite:///{tmp_path / 'predictions.db'}"
    open_store(url).close()
    with sqlite3.connect(tmp_path / "predictions.db") as newer:
        newer.execute("UPDATE blastwatch_schema SET version = 99")
    with Capture(url, aside=WaitingPredictions(disk, MUCH)) as capture:
        for number in range(10):
            capture.submit(record(str(number)))
        until(lambda: capture.counts().failed, PATIENCE)
        until(lambda: capture.counts().waiting == 0, PATIENCE)
        assert capture.counts().dropped == 0
        with sqlite3.connect(tmp_path / "predictions.db") as newer:
            newer.execute("UPDATE blastwatch_schema SET version = 1")
        until(lambda: capture.counts().stored == 10, PATIENCE)
    assert len(rows_of(url)) == 10 and capture.counts().dropped == 0


def test_a_database_that_goes_away_meanwhile_takes_nothing_out(disk):
    lying = WaitingPredictions(disk, MUCH)
    assert lying.keep(records(5))

    class Away:
        def add(self, _rows):
            raise StoreUnavailable("away")

    with pytest.raises(StoreUnavailable):
        lying.hand_over(Away())
    assert lying.count() == 5


@pytest.mark.parametrize("obstacle", ["no room", "a folder in its place", "another kind of file"])
def test_without_the_disk_it_waits_in_memory(away, disk, obstacle, caplog):
    blocked, url = away
    if obstacle == "a folder in its place":
        disk.mkdir()
    if obstacle == "another kind of file":
        disk.write_bytes(b"no database at all" * 1000)
    with Capture(url, aside=WaitingPredictions(disk, 1 if obstacle == "no room" else MUCH)) as capture:
        for number in range(10):
            capture.submit(record(str(number)))
        until(lambda: capture.counts().failed, PATIENCE)
        until(lambda: capture.counts().waiting == 10, PATIENCE)
        shutil.rmtree(blocked)
        until(lambda: capture.counts().stored == 10, PATIENCE)
    assert "on disk" in caplog.text
    assert len(rows_of(url)) == 10


def test_room_that_was_used_once_is_free_again(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(waiting, "HAND_OVER_ROWS", 5000)
    small = WaitingPredictions(disk, 200_000)
    with open_store(f"sqlite:///{tmp_path / 'predictions.db'}") as store:
        for round_ in range(3):
            kept = 0
            while small.keep(records(100, first=10_000 * round_ + kept)):
                kept += 100
            assert 100 <= kept <= 400
            while small.hand_over(store).found:
                pass


def test_the_oldest_are_found_without_a_look_at_all(disk):
    """Also in a file that an older Blastwatch left: of a million each look took as long as it took to sort them."""
    with open_store(f"sqlite:///{disk}") as older:
        older.add(records(3))
    lying, plans = WaitingPredictions(disk, MUCH), []
    assert lying.count() == 3

    def explain(_connection, cursor, statement, parameters, *_):
        if statement.startswith("SELECT"):
            plans.extend(row[-1] for row in cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters))

    sa.event.listen(lying._waiting._engine, "before_cursor_execute", explain)
    assert [one.id for one in lying._waiting.oldest()] == ["0000", "0001", "0002"]
    lying.close()
    assert plans == ["SCAN predictions USING INDEX waiting_by_time"]
    WaitingPredictions(disk, MUCH).count()


def test_what_was_handed_over_is_not_in_the_file(disk, tmp_path):
    lying = WaitingPredictions(disk, MUCH)
    assert lying.keep([record("a", patient="secret" * 10)])
    assert any(b"secretsecret" in path.read_bytes() for path in tmp_path.glob("waiting.db*"))
    with open_store(f"sqlite:///{tmp_path / 'predictions.db'}") as store:
        while lying.hand_over(store).found:
            pass
    assert not any(b"secretsecret" in path.read_bytes() for path in tmp_path.glob("waiting.db*"))


def test_the_setting_turns_it_off(tmp_path):
    home = {"BLASTWATCH_HOME": str(tmp_path)}
    assert open_waiting(load(home | {"BLASTWATCH_CAPTURE_DISK_MIB": "0"})) is None
    assert open_waiting(load(home)) is not None
    assert not list(tmp_path.iterdir())  # the file is made when something has to wait


def test_what_comes_while_the_rest_is_handed_over_is_stored_at_the_end(away, disk, monkeypatch):
    blocked, url = away
    handing, going, hand_over = threading.Event(), threading.Event(), WaitingPredictions.hand_over

    def slowly(self, database):
        handing.set()
        assert going.wait(PATIENCE)
        return hand_over(self, database)

    monkeypatch.setattr(WaitingPredictions, "hand_over", slowly)
    shutil.rmtree(blocked)
    waiting = WaitingPredictions(disk, MUCH)
    assert waiting.keep([record("waited")])
    waiting.close()
    capture = Capture(url, aside=WaitingPredictions(disk, MUCH))
    assert handing.wait(PATIENCE)
    assert capture.submit(record("late"))
    ending = threading.Thread(target=capture.close)
    ending.start()
    until(capture._closing.is_set, PATIENCE)
    going.set()
    ending.join(PATIENCE)
    assert (capture.counts().stored, capture.counts().waiting) == (2, 0)
