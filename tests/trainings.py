"""A training of a network of a few thousand weights, for tests that train it many times or in many processes.

    python -m torch.distributed.run --nproc-per-node 2 -m tests.trainings DATA OUT

trains it on the cohort in DATA and writes OUT/weights.safetensors and OUT/curves.json.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

import numpy as np

# What a training imports on the way: before the processes part, each would take seconds for it.
import pyarrow.parquet  # noqa: F401
import sklearn.metrics  # noqa: F401
import torch
import torch._dynamo
from numpy.typing import NDArray
from torch import Tensor, nn

from blastwatch.digests import file_digest
from blastwatch.errors import DataError
from blastwatch.manifest import SPLIT_FACTS, read_cells, read_json, read_split, write_json
from blastwatch.network import build, save_weights
from tests.forkserver import forkserver
from training import fitting, loop
from training.augmentation import Draws
from training.checkpoint import save_checkpoint
from training.distributed import world_of_torchrun
from training.fitting import Fit
from training.loop import Trainer
from training.out_of_fold import OUT_OF_FOLD, write_out_of_fold
from training.pack import open_pack
from training.parameters import TrainParameters
from training.sampling import side_of

QUICK = TrainParameters(epochs=3, batch_size=12, average=0.9, precision="fp32", patience=9, balance_by="sampling")


def small_network(seed: int = 1) -> nn.Module:
    """Convolutions, batch normalisation, dropout and a last linear layer: one of each kind that matters."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(16, 2),
    )  # fmt: skip


def still(count=1, **changed: Tensor) -> Draws:
    """Draws that change nothing, but for what is named."""
    plain = {
        "affine": torch.eye(2, 3).repeat(count, 1, 1),
        "density": torch.eye(3).repeat(count, 1, 1),
        "added": torch.zeros(count, 3),
        "light": torch.zeros(count, 2),
        "sigma": torch.zeros(count),
        "erased": torch.zeros(count, 3),
    }
    return Draws(**plain | changed)


def leave_untrained(data: Path, out: Path, **changed: object) -> dict[str, object]:
    """Leave a ResNet-18 as it was drawn in `out`, as a training on a cohort at 32 px leaves one; returns its facts."""
    torch.manual_seed(1)
    out.mkdir()
    save_weights(build("resnet18"), out / "weights.safetensors")
    split = read_json(data / "split" / SPLIT_FACTS, made_by="")
    facts = {
        "architecture": "resnet18", "leaky": False, "synthetic": True, "run_id": "run-1", "created": "2026-01-01",
        "best_epoch": 3, "epochs": 4, "data_digest": split["data_digest"], "split_digest": split["digest"],
        "pack_digest": read_json(data / "pack" / "pack.json", made_by="")["digest"],
        "image": {"crop": 320, "size": 32}, "git_commit": "", "lock_digest": "",
        "parameters": {"epochs": 4, "weights": "scratch", "weights_file": ""},
    } | changed  # fmt: skip
    write_json(out / "train.json", facts)
    return facts


def leave_out_of_fold(trained: Path, paths: Sequence[str], logits: NDArray[np.float64]) -> None:
    """Leave answers to training patients as a training of the last layer does, and the facts of one."""
    write_out_of_fold(trained, paths, logits)
    digest = file_digest(trained / OUT_OF_FOLD)
    write_json(trained / "train.json", {"run_id": "run-1", "weights_sha256": "", "out_of_fold_sha256": digest})


def parts_of(data: Path, balance: str = "subject"):
    """Pack, training side and validation side of a cohort."""
    packed = open_pack(data / "pack", read_cells(data / "cells"))
    rows = read_split(data / "cells", data / "split")
    return packed, side_of(rows, packed, "train", balance), side_of(rows, packed, "validation", "subject")


def train_small(data: Path, out: Path, *, seconds: float = 0.0, look: int = 1, **changed):
    """Train it, going on where a checkpoint in `out` lies; writes weights and curves, returns the progress."""
    loop.LOOK = look  # a checkpoint may follow every look
    packed, train, validation = parts_of(data)
    with world_of_torchrun() as world:
        trainer = Trainer(small_network(), replace(QUICK, **changed), packed, train, world)
        done = Fit(trainer, validation, out / "checkpoint.pt", seconds=seconds).run(lambda row: None)
        if world.first:
            save_weights(trainer.network, out / "weights.safetensors")
            (out / "curves.json").write_text(json.dumps(done.curves))
    return done


def train_apart(data: Path, out: Path, rank: int, port: int) -> None:
    """Train as one of two processes on two machines, each with a folder of its own; what meets is at a port here. The
    words of an error go into the folder."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    os.environ.update(place, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    save, kept = fitting.save_checkpoint, out / "first.pt"

    def keep_first(path: Path, state: dict[str, object]) -> None:
        save(path, state)
        if not kept.exists():
            kept.write_bytes(path.read_bytes())

    with mock.patch.object(fitting, "save_checkpoint", keep_first):
        try:
            train_small(data, out, seconds=1e9)
        except DataError as error:
            (out / "said").write_text(str(error))


DEATHS = ("saved", "stepped", "writing")
"""Where a training is killed: once a checkpoint is in place, once the next step changed the weights, or with the next
checkpoint written and not in place."""


def train_and_die(data: Path, out: Path, checkpoints: int, death: str) -> None:
    """Train on, and be killed at one of `DEATHS` after so many checkpoints: by what was done and not by the clock, so
    that a machine with other work gets as far as one without."""
    saved, save, step, sync = 0, fitting.save_checkpoint, Trainer.train_step, os.fsync

    def die_if(place: str) -> None:
        if (saved, place) == (checkpoints, death):
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(path: Path, state: dict[str, object]) -> None:
        nonlocal saved
        save(path, state)
        saved += 1
        die_if("saved")

    def stepped(self: Trainer, *arguments, **named) -> Tensor:
        loss = step(self, *arguments, **named)
        die_if("stepped")
        return loss

    def written(file: int) -> None:
        die_if("writing")
        sync(file)

    with (
        mock.patch.object(fitting, "save_checkpoint", counted),
        mock.patch.object(Trainer, "train_step", stepped),
        mock.patch.object(os, "fsync", written),
    ):
        train_small(data, out)


def save_with_little_room(path: Path, room: int) -> None:
    """Write a checkpoint that the system lets grow to `room` bytes alone; the error's words go beside it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        save_checkpoint(path, {"weights": torch.zeros(room)})
    except DataError as error:
        path.with_name("said").write_text(str(error))


def in_process(work: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Some work, started in a process of its own that has torch already."""
    process = forkserver().Process(target=work, args=arguments)
    process.start()
    return process


if __name__ == "__main__":
    place = Path(sys.argv[2])
    place.mkdir(exist_ok=True)
    # Batch normalisation over two shares is the point here, dropout draws in each process for itself.
    nn.Dropout.forward = lambda _self, values: values
    train_small(Path(sys.argv[1]), place)
