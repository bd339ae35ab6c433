"""The database of predictions on a real PostgreSQL server, started for this test."""

import os
import shutil
import subprocess
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import pytest

from monitoring.capture import Capture
from monitoring.statistics import STATISTICS
from monitoring.store import StoreUnavailable, UnknownPredictions, open_store
from tests.cohorts import NOON, record

pytestmark = pytest.mark.system


def binary(name):
    """A program of PostgreSQL, on the path or where Debian keeps it."""
    found = shutil.which(name) or next(map(str, sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))), None)
    if found is None:
        pytest.skip(f"{name} is missing: it comes with the Debian package postgresql")
    return found


def unprivileged(*words):
    """The words of a command as a user other than root, which PostgreSQL refuses to run as."""
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words) if os.getuid() == 0 else words


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def server(tmp_path_factory, free_port):
    """URL of a server on the loopback address, its data in a folder of its own."""
    initdb, control = binary("initdb"), binary("pg_ctl")
    # A server's user must reach its folder, and pytest keeps the ones it gives private.
    folder = Path(tempfile.mkdtemp(prefix="blastwatch-postgres-"))
    if os.getuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()

    def call(*words):
        subprocess.run(unprivileged(*words), check=True, capture_output=True, cwd=folder)

    try:
        call(initdb, "-D", str(folder / "data"), "-U", "tester", "-A", "trust", "--no-sync")
        options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
        call(control, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql://tester@127.0.0.1:{port}/postgres", call, control, folder, options
        finally:
            subprocess.run(
                unprivileged(control, "-D", str(folder / "data"), "-m", "fast", "-w", "stop"),
                check=False, capture_output=True, cwd=folder,
            )  # fmt: skip
    finally:
        shutil.rmtree(folder)


def test_round_trip_labels_and_an_outage(server):
    url, call, control, folder, options = server
    with open_store(url) as store, open_store(url):
        store.add([record(str(n), time=NOON + timedelta(microseconds=n)) for n in range(10)])
        store.add([record("3", probability=0.9), record("10", time=NOON + timedelta(days=1))])
        rows = store.read()
        assert list(rows["id"]) == [str(n) for n in range(11)]
        assert rows["time"].iloc[7] == NOON + timedelta(microseconds=7)
        assert rows["probability"].eq(0.25).all() and rows[STATISTICS[3]].eq(3).all() and rows["e31"].eq(31).all()
        assert store.add_labels([("1", "all", NOON)]) == 1
        assert store.add_labels([("1", "all", NOON)]) == 0
        assert store.add_labels([("1", "hem", NOON)]) == 1
        assert list(store.labelled()["truth"]) == ["hem"]
        with pytest.raises(UnknownPredictions, match="nobody"):
            store.add_labels([("nobody", "hem", NOON)])

        with Capture(url) as capture:
            capture.submit(record("before"))
            wait_for(lambda: capture.counts().stored)
            call(control, "-D", str(folder / "data"), "-m", "immediate", "-w", "stop")
            capture.submit(record("during"))
            wait_for(lambda: capture.counts().failed)
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                store.count()
            call(control, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start")
        assert (capture.counts().stored, capture.counts().dropped) == (2, 0)
        assert store.count() == 13
