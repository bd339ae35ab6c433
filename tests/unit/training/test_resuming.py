"""Training is killed, stopped or shared between processes, and comes to the same weights."""

import json
import subprocess
import time

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import nn

from tests.trainings import in_process, save_with_little_room, train_small
from training.checkpoint import load_checkpoint, save_checkpoint

KILLS = 10
MOST_SECONDS = 60


def test_killed_at_ten_random_moments_the_weights_are_the_same(cohort, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    # In a process of its own as well: how many threads another test has set would show in the last bits.
    undisturbed = in_process(train_small, cohort, whole)
    _wait_for_a_step(whole, undisturbed)
    began = time.monotonic()
    undisturbed.join(MOST_SECONDS)
    assert undisturbed.exitcode == 0
    seconds = time.monotonic() - began  # a fast machine must not be done before it was killed ten times
    random = np.random.default_rng(8)
    killed = 0
    for _ in range(KILLS):
        before = _mark(cut)
        process = in_process(train_small, cohort, cut)
        # Not before it has gone on by a step at least, so that ten kills do not keep it at the beginning.
        _wait_for_a_step(cut, process, before)
        time.sleep(random.uniform(0, seconds / (2 * KILLS)))
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed == KILLS, "the training ended before it was killed ten times"
    last = in_process(train_small, cohort, cut)
    last.join(MOST_SECONDS)
    assert last.exitcode == 0
    assert (cut / "curves.json").read_text() == (whole / "curves.json").read_text()
    ours, theirs = load_file(cut / "weights.safetensors"), load_file(whole / "weights.safetensors")
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)


def _wait_for_a_step(folder, process, before=0):
    end = time.monotonic() + MOST_SECONDS
    while _mark(folder) == before and process.is_alive():
        assert time.monotonic() < end
        time.sleep(0.002)


def _mark(folder):
    path = folder / "checkpoint.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


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
    for name in ("train_loss", "validation_loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=2e-5)


def test_where_the_disk_takes_no_more_the_last_checkpoint_stays(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"epoch": 1})
    process = in_process(save_with_little_room, path, 4096)
    process.join(MOST_SECONDS)
    assert process.exitcode == 0 and "The one before it stays usable" in (tmp_path / "said").read_text()
    assert load_checkpoint(path) == {"epoch": 1}
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "said"}
