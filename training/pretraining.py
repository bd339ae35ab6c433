"""Self-supervised pretraining: first weights for those who have none, from cells without their labels.

Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230): two augmented views of a cell shall have the same embedding, and
its components shall not repeat one another. It needs neither negative pairs nor large batches. The libraries that hold
it bring a training framework and a client of their own along; the loss is ten lines.

Only patients of the training side are shown: an embedding that has seen a test patient's cells, even without a label,
knows that patient.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blastwatch.console import say
from blastwatch.digests import file_digest, json_digest
from blastwatch.errors import DataError, LeakFound
from blastwatch.manifest import SPLIT_FACTS, read_cells, read_json, read_split, write_json
from blastwatch.network import build, forward_with_embedding, save_weights
from blastwatch.settings import Settings
from training.augmentation import draw
from training.checkpoint import alone_with, load_checkpoint, save_checkpoint
from training.feeding import Feeder
from training.initial_weights import facts_beside, strangers
from training.loop import TrainingDiverged, alone, step_seed
from training.memory import keep_freed_memory
from training.optimizing import schedule
from training.pack import Packed, check_image, open_pack
from training.parameters import Parameters, PretrainParameters
from training.precision import check_going_on, choose_precision

WEIGHTS, FACTS = "weights.safetensors", "weights.json"
LAMBDA = 5e-3  # weight of the off-diagonal terms, as in the paper
WARMUP = 0.1  # share of the steps


def redundancy_loss(first: Tensor, second: Tensor) -> Tensor:
    """The loss of Barlow Twins of two views.

    Args:
        first, second: projected embeddings, float32, shape (n, d), n at least 2.
    """
    count = len(first)
    views = [(view - view.mean(0)) / view.std(0, unbiased=False).clamp(min=1e-5) for view in (first, second)]
    correlation = views[0].T @ views[1] / count
    diagonal = correlation.diagonal()
    off = (correlation**2).sum() - (diagonal**2).sum()
    return ((1 - diagonal) ** 2).sum() + LAMBDA * off


class Pretrainer:
    """A network with its projector, trained on pairs of views; every choice of a step is drawn from its number."""

    def __init__(
        self, network: nn.Module, parameters: PretrainParameters, packed: Packed, rows: NDArray[np.int64]
    ) -> None:
        if len(rows) < parameters.batch_size:
            raise DataError(
                f"Expected at least pretrain.batch_size ({parameters.batch_size}) cells but got {len(rows)}."
            )
        self.parameters, self.packed, self.rows = parameters, packed, rows
        self.device = alone().device
        self.precision = choose_precision(parameters.precision, self.device)
        size = packed.preprocessing.size
        with torch.no_grad():
            width = forward_with_embedding(network.eval(), torch.zeros(1, 3, size, size))[1].shape[1]
        wide = parameters.projector
        torch.manual_seed(parameters.seed)
        projector = nn.Sequential(
            nn.Linear(width, wide, bias=False),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Linear(wide, wide, bias=False),
            nn.BatchNorm1d(wide),
            nn.ReLU(),
            nn.Linear(wide, wide, bias=False),
        )
        self.network: Any = network.to(self.device).to(memory_format=torch.channels_last)
        self.parts = nn.ModuleDict({"network": self.network, "projector": projector.to(self.device)})
        self.feeder = Feeder(packed, self.device, channels_last=True)
        self.steps = len(rows) // parameters.batch_size
        self.optimizer = torch.optim.AdamW(
            self.parts.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, schedule(self.steps * parameters.epochs, WARMUP)
        )

    def train_one_epoch(self, epoch: int) -> float:
        """Go once through the cells; returns the mean loss.

        Raises:
            TrainingDiverged: where it is no number.
        """
        parameters = self.parameters
        self.parts.train()
        order = np.random.default_rng((parameters.seed, epoch)).permutation(self.rows)
        batches = order[: self.steps * parameters.batch_size].reshape(self.steps, parameters.batch_size)
        total = 0.0
        for step, crops in self.feeder.batches(batches):
            seed = step_seed(parameters.seed, epoch * self.steps + step)
            torch.manual_seed(seed)  # what dropout draws from
            total += float(self._step(crops, torch.Generator().manual_seed(seed)))
        if not np.isfinite(total):
            raise TrainingDiverged(
                f"The pretraining loss became {total} in epoch {epoch + 1}. Lower pretrain.learning_rate "
                f"(now {parameters.learning_rate:g}). The last checkpoint stays."
            )
        return total / self.steps

    def _step(self, crops: NDArray[np.uint8], generator: torch.Generator) -> Tensor:
        parameters, size = self.parameters, self.packed.preprocessing.size
        views = [
            self.feeder.inputs(
                crops, draw(len(crops), generator, strength=parameters.augment, erase=parameters.erase), size
            )
            for _ in range(2)
        ]
        projected = []
        for view in views:
            with self.precision.autocast():
                embedding = forward_with_embedding(self.network, view)[1]
                projected.append(self.parts["projector"](embedding).float())
        loss = redundancy_loss(*projected)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {
            "parts": self.parts.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.precision.kind,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; raises `DataError` for one of another precision."""
        check_going_on(
            state.get("precision"), self.precision, wanted=self.parameters.precision, key="pretrain.precision"
        )
        self.parts.load_state_dict(state["parts"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def run_pretraining(
    parameters: Parameters, settings: Settings, *, cells: Path, split: Path, pack: Path, out: Path
) -> dict[str, Any]:
    """Pretrain on the cells of the training side and write `weights.safetensors` and, beside it, `weights.json`.

    Goes on where a stopped pretraining was.

    Raises:
        UsageError: where another process is at the same pretraining.
        DataError: where there are fewer cells than a batch takes, the pack is of another crop or size than the
            parameters say, or a checkpoint is of another precision.
    """
    keep_freed_memory()
    manifest = read_cells(cells)
    rows = read_split(cells, split)
    shown = rows[rows["side"] == "train"].sort_values("path")
    packed = open_pack(pack, manifest)
    check_image(packed, parameters.image, pack)
    split_digest = read_json(split / SPLIT_FACTS, made_by=f"blastwatch data split {cells}")["digest"]
    facts: dict[str, Any] = {
        "architecture": parameters.train.architecture,
        "parameters": asdict(parameters.pretrain),
        "split_digest": split_digest,
        "data_digest": manifest.digest,
        "pack_digest": packed.digest,
        "synthetic": manifest.synthetic,
        "subjects": sorted(set(shown["subject"])),
        "cells": len(shown),
    }
    checkpoint = settings.home / "checkpoints" / f"pretrain-{json_digest(facts)}.pt"
    with alone_with(checkpoint):
        torch.manual_seed(parameters.pretrain.seed)
        network = build(parameters.train.architecture)
        trainer = Pretrainer(network, parameters.pretrain, packed, packed.rows_of(shown["path"].tolist()))
        losses = _train(trainer, checkpoint)
        out.mkdir(parents=True, exist_ok=True)
        save_weights(network, out / WEIGHTS)
        facts |= {"losses": losses, "weights_digest": file_digest(out / WEIGHTS)}
        write_json(out / FACTS, facts)
        checkpoint.unlink(missing_ok=True)
    return facts


def _train(trainer: Pretrainer, checkpoint: Path) -> list[float]:
    losses: list[float] = []
    state = load_checkpoint(checkpoint)
    if state is not None:
        losses = state.pop("losses")
        trainer.restore(state)
    for epoch in range(len(losses), trainer.parameters.epochs):
        losses.append(trainer.train_one_epoch(epoch))
        save_checkpoint(checkpoint, trainer.state() | {"losses": losses})
        say(f"epoch {epoch + 1}  loss {losses[-1]:.3f}")
    return losses


def check_unseen(weights_file: Path, rows: pd.DataFrame) -> None:
    """Refuse pretrained weights that have seen patients who now stand on another side than that of training, or may
    have: names are all that is known of them, and another import may spell a name otherwise. A promotion asks the same.

    Args:
        weights_file: what `pretrain` wrote has its facts beside it; about other files nothing is known.
        rows: of the split, with `subject` and `side`.

    Raises:
        LeakFound: naming the subjects.
    """
    known = facts_beside(weights_file)
    seen = set(known.get("subjects", []))
    # Facts of other weights, left beside these, tell nothing of them: they are of unknown origin, as all of a file are.
    own = weights_file.is_file() and known.get("weights_digest") == file_digest(weights_file)
    strange = strangers(seen, rows) if own else []
    held = sorted(set(rows.loc[rows["side"] != "train", "subject"]) & seen)
    if held:
        raise LeakFound(
            f"The weights in {weights_file} were pretrained on {len(held)} patients who are held out in this split, "
            f"among them {', '.join(held[:5])}. Pretrain on this split's training side: blastwatch pretrain"
        )
    if strange:
        raise LeakFound(
            f"Expected weights that were pretrained on this split's training side, but {len(strange)} of the "
            f"{len(seen)} subjects of {weights_file} are unknown here, among them {', '.join(strange[:5])}: held-out "
            "patients may have had these names in another import. Pretrain on this split's training side: blastwatch "
            "pretrain. "
            f"Where they surely are other people, remove {weights_file.with_suffix('.json')}: the weights are then of "
            "unknown origin, and so is all that rests on them."
        )
