"""A file that cannot be written to its end leaves what stood there before, and says so."""

import resource

import numpy as np
import pytest
import torch

from blastwatch.errors import DataError
from blastwatch.golden import write_golden
from blastwatch.network import build, load_weights, save_weights
from blastwatch.package import GOLDEN, PROJECTION, WEIGHTS, Projection
from blastwatch.state_files import write_state, write_whole

ROOM = 1 << 16


@pytest.fixture
def little_room():
    """The system lets a file of this process grow to `ROOM` bytes alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def weights(folder):
    save_weights(build("mobilenet_v3_large"), folder / WEIGHTS)


def golden(folder):
    write_golden(folder, np.zeros((2, 224, 224, 3), np.uint8), np.zeros((2, 2), np.float32))


def projection(folder):
    Projection(mean=np.zeros(1024, np.float32), components=np.zeros((64, 1024), np.float32)).save(folder / PROJECTION)


@pytest.mark.parametrize(
    ("write", "name"),
    [(weights, WEIGHTS), (golden, GOLDEN), (projection, PROJECTION)],
    ids=["weights", "golden", "projection"],
)
def test_tensors_that_find_no_room_leave_what_stood_there(tmp_path, little_room, write, name):
    (tmp_path / name).write_bytes(b"of before")
    with pytest.raises(DataError, match=rf"bytes to .*{name} but the machine refused: File too large\. .*Make room"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"of before"


def test_a_state_that_finds_no_room_leaves_no_part_of_it(tmp_path, little_room):
    write_state(tmp_path / "state.json", {"seen": "a"})
    with pytest.raises(OSError, match="File too large"):
        write_state(tmp_path / "state.json", {"seen": "b" * 2 * ROOM})
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]
    assert (tmp_path / "state.json").read_text() == '{\n  "seen": "a"\n}\n'


def test_what_was_written_is_read(tmp_path):
    write_whole(tmp_path / "file", b"one")
    write_whole(tmp_path / "file", b"other")
    assert (tmp_path / "file").read_bytes() == b"other" and len(list(tmp_path.iterdir())) == 1
    torch.manual_seed(1)
    network, again = build("resnet18"), build("resnet18")
    save_weights(network, tmp_path / WEIGHTS)
    load_weights(again, tmp_path / WEIGHTS)
    assert all(torch.equal(ours, own) for ours, own in zip(
        network.state_dict().values(), again.state_dict().values(), strict=True
    ))  # fmt: skip
