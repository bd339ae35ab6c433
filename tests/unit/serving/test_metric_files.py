"""On a full disk a worker goes on, and what it counted is exported once there is room."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client.mmap_dict import MmapedDict

from serving import metric_files
from serving.metric_files import FILE_BYTES, RoomyFile

WORKER = """
import os, resource
from prometheus_client import CollectorRegistry
from serving.metrics import ServiceMetrics

def room(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def blocks():
    return [os.stat(entry).st_blocks * 512 for entry in os.scandir(os.environ["PROMETHEUS_MULTIPROC_DIR"])]

room(1000)  # as on a disk that is full already
metrics = ServiceMetrics(CollectorRegistry())
metrics.labels.labels("all").inc()
assert not blocks() and b"blastwatch_labels_total{" not in metrics.export()
room(1 << 16)  # for what a file has at first, and no more
for number in range(1000):
    metrics.kept_out.labels(f"problem {number}").inc()
assert len(blocks()) == 1 and blocks()[0] >= 1 << 16
text = metrics.export().decode()
assert 'problem="problem 0"' in text and 'problem="problem 999"' not in text
room(1 << 20)
for number in range(1000):
    metrics.kept_out.labels(f"problem {number}").inc()
metrics.labels.labels("all").inc()
text = metrics.export().decode()
assert 'problem="problem 0"} 2.0' in text and 'problem="problem 999"} 2.0' in text
assert 'blastwatch_labels_total{label="all"} 2.0' in text
"""


def test_a_worker_without_room_counts_on_and_exports_it_later(tmp_path):
    variables = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-c", WORKER], env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "counter_") in done.stderr and "Make room" in done.stderr
    assert {path.suffix for path in tmp_path.iterdir()} == {".db"}


@pytest.fixture
def disk(monkeypatch):
    """Whether there is room, and how many bytes were asked for."""
    state, allocate = {"full": False, "asked": []}, os.posix_fallocate

    def take(file, start, size):
        if state["full"]:
            raise OSError(errno.ENOSPC, "No space left on device")
        state["asked"].append(size)
        allocate(file, start, size)

    monkeypatch.setattr(metric_files.os, "posix_fallocate", take)
    return state


def test_a_file_that_cannot_grow_keeps_its_values_and_takes_the_new_ones_later(tmp_path, disk, caplog):
    path = tmp_path / "counter_1.db"
    file = RoomyFile(str(path))
    file.write_value("old", 1.0, 0.0)
    disk["full"] = True
    for word in ("a", "b"):
        file.write_value(word * FILE_BYTES, 2.0, 0.0)
    file.write_value("old", 3.0, 0.0)
    assert file.read_value("a" * FILE_BYTES) == (0.0, 0.0) and file.read_value("old") == (3.0, 0.0)
    assert caplog.text.count("No space left") == 1
    disk["full"] = False
    file.write_value("a" * FILE_BYTES, 4.0, 0.0)
    file.close()
    assert disk["asked"] == [FILE_BYTES, 2 * FILE_BYTES]
    found = {key.strip(): value for key, value, *_ in MmapedDict.read_all_values_from_file(path)}
    assert found == {"old": 3.0, "a" * FILE_BYTES: 4.0}


def test_what_an_earlier_process_left_is_read_and_gets_its_room(tmp_path, disk):
    path = tmp_path / "counter_1.db"
    for value in (1.0, 2.0):
        file = RoomyFile(str(path))
        assert file.read_value("key") == (value - 1, 0.0)
        file.write_value("key", value, 0.0)
        file.close()
    assert disk["asked"] == [FILE_BYTES, FILE_BYTES]
