"""Training is killed, stopped or shared between processes, and comes to the same weights."""

import json
import signal
import subprocess

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import nn
from torch.distributed import TCPStore

from tests.trainings import (
    DEATHS,
    QUICK,
    in_process,
    parts_of,
    save_with_little_room,
    train_and_die,
    train_apart,
    train_small,
)
from training.checkpoint import load_checkpoint, save_checkpoint

KILLS = 10
MOST_SECONDS = 60


def test_killed_at_ten_random_points_the_weights_are_the_same(cohort, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    # In a process of its own as well: how many threads another test has set would show in the last bits.
    assert ended(in_process(train_small, cohort, whole)) == 0
    steps = -(-len(parts_of(cohort)[1].rows) // QUICK.batch_size)
    random = np.random.default_rng(8)
    reached = 0
    # A checkpoint follows each step. One is left to do after the last kill, which may be between two checkpoints.
    for point in sorted(random.choice(np.arange(1, steps * QUICK.epochs), KILLS, replace=False)):
        death = str(random.choice(DEATHS))
        killed = in_process(train_and_die, cohort, cut, int(point - reached), death)
        assert ended(killed) == -signal.SIGKILL, (point, death)
        state = load_checkpoint(cut / "checkpoint.pt")
        assert state["epoch"] * steps + state["step"] == point
        assert (cut / "checkpoint.partial").exists() == (death == "writing")
        reached = point
    assert ended(in_process(train_small, cohort, cut)) == 0
    assert (cut / "curves.json").read_text() == (whole / "curves.json").read_text()
    ours, theirs = load_file(cut / "weights.safetensors"), load_file(whole / "weights.safetensors")
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)


def ended(process):
    """The exit code of a process; one that does not end in time is killed."""
    process.join(MOST_SECONDS)
    if late := process.is_alive():
        process.kill()
        process.join()
    assert not late, f"not done within {MOST_SECONDS} s"
    return process.exitcode


def test_two_processes_come_to_the_losses_of_one(cohort, tmp_path, monkeypatch, commands):
    monkeypatch.setattr(nn.Dropout, "forward", lambda _self, values: values)
    (tmp_path / "one").mkdir()
    one = train_small(cohort, tmp_path / "one").curves
    module = str(commands / "module")
    words = [module, "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python", module,
             "tests.trainings", str(cohort), str(tmp_path / "two")]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two" / "curves.json").read_text())
    for name in ("train_loss", "validation_loss"):  # 5e-5 on cores with AVX2 alone, less on others
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=1e-4)


@pytest.fixture
def train_on_two(cohort, tmp_path):
    """Trains on two machines of these names and returns their folders."""

    def train(name):
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        machines = [tmp_path / f"{name}-{rank}" for rank in (0, 1)]
        for place in machines:
            place.mkdir(exist_ok=True)
        both = [in_process(train_apart, cohort, place, rank, store.port) for rank, place in enumerate(machines)]
        assert [ended(process) for process in both] == [0, 0]
        return machines

    return train


def test_a_damaged_checkpoint_of_the_first_machine_is_told_on_both(train_on_two, tmp_path):
    (tmp_path / "damaged-0").mkdir()
    (tmp_path / "damaged-0" / "checkpoint.pt").write_bytes(b"nonsense")
    first, second = ((place / "said").read_text() for place in train_on_two("damaged"))
    assert first == second and "damaged-0/checkpoint.pt cannot be read" in first and "Remove it to start" in first


def test_two_machines_go_on_from_the_checkpoint_of_the_first(train_on_two, tmp_path):
    """The second has none, since only the first writes them."""
    whole, cut = train_on_two("whole")[0], tmp_path / "cut-0"
    cut.mkdir()
    (whole / "first.pt").rename(cut / "checkpoint.pt")
    assert load_checkpoint(cut / "checkpoint.pt")["epoch"] == 1
    assert train_on_two("cut")[0] == cut and not (cut / "said").exists()
    ours, theirs = load_file(cut / "weights.safetensors"), load_file(whole / "weights.safetensors")
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    assert (cut / "curves.json").read_text() == (whole / "curves.json").read_text()


def test_where_the_disk_takes_no_more_the_last_checkpoint_stays(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    process = in_process(save_with_little_room, path, 4096)
    assert ended(process) == 0 and "The one before it stays usable" in (tmp_path / "said").read_text()
    assert load_checkpoint(path) == {"epoch": 1}
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "said"}
