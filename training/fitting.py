"""From the first epoch to the best one: validation after each epoch, early stopping, and checkpoints on the way."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from blastwatch.console import say
from blastwatch.decision import POSITIVE
from blastwatch.errors import DataError
from training.calibration import patient_weights
from training.checkpoint import load_checkpoint, save_checkpoint
from training.distributed import World
from training.loop import Trainer, TrainingDiverged, predict_logits
from training.precision import Precision
from training.sampling import Side

SECONDS = 120.0  # between two checkpoints within an epoch
TELL_SECONDS = 60.0  # between two lines within an epoch


@dataclass
class Progress:
    """How far training came; all of it is in the checkpoint.

    epoch: whole epochs done; step: steps of the next one that were done, total: the sum of their losses.
    """

    epoch: int = 0
    step: int = 0
    total: float = 0.0
    best_epoch: int = 0
    best_loss: float = math.inf
    best_state: dict[str, Tensor] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)


def validate(logits: NDArray[Any], cells: Side) -> dict[str, float]:
    """Loss with every patient weighing the same, accuracy as the mean over patients and over the worst quarter of
    them, and AUROC over cells; as `training.search.judge`. Subjects whom the split ties together are one patient.

    Args:
        logits: what a network answers to the cells, in the numbers that it is trained in, shape (n, classes).

    Raises:
        TrainingDiverged: where an answer is no number.
    """
    from sklearn.metrics import roc_auc_score

    if not np.isfinite(logits).all():
        raise TrainingDiverged(
            "The network answers to validation cells with values that are no numbers. Lower train.learning_rate or set "
            "train.precision=fp32. The last checkpoint stays."
        )
    losses = functional.cross_entropy(torch.tensor(logits), torch.tensor(cells.labels), reduction="none")
    right = pd.Series(logits.argmax(1) == cells.labels).groupby([cells.labels, cells.patients]).mean().sort_values()
    return {
        "validation_loss": float((losses.numpy() * patient_weights(cells.labels, cells.patients)).sum()),
        "validation_subject_accuracy": float(right.mean()),
        "validation_worst_quarter": float(right.iloc[: max(1, round(len(right) / 4))].mean()),
        "validation_auroc": float(
            roc_auc_score(cells.labels == POSITIVE, logits[:, POSITIVE] - logits[:, 1 - POSITIVE])
        ),
    }


class Fit:
    """A training with its validation patients and its checkpoint."""

    def __init__(
        self, trainer: Trainer, validation: Side, checkpoint: Path, *, seconds: float = SECONDS, name: str = ""
    ) -> None:
        """Take up the checkpoint where there is one; `seconds` lie between two within an epoch. `name` begins what is
        said on the way.

        The first process writes checkpoints, so it alone reads one: another machine has none, or an old one.

        Raises:
            DataError: in every process, where the first one cannot read it or it is of another precision.
        """
        self.trainer, self.validation = trainer, validation
        self.checkpoint, self.seconds, self.name = checkpoint, seconds, name
        self.done = Progress()
        self.saved = self.told = time.monotonic()
        state = _told_of(checkpoint, trainer.world)
        if state is not None:
            trainer.restore(state.pop("trainer"))
            self.done = Progress(**state)

    @property
    def precision(self) -> Precision:
        return self.trainer.precision

    def run(self, on_epoch: Callable[[dict[str, float]], None]) -> Progress:
        """Train until the last epoch or until validation patients no longer gain.

        The best epoch is the one with the lowest validation loss, every patient weighing the same; with `keep` last it
        is the last one. Epochs of a linear probe do not count against the patience.

        Raises:
            TrainingDiverged: where the loss is no longer a number or hopeless.
        """
        parameters, done = self.trainer.parameters, self.done
        while done.epoch < parameters.epochs and not self._tired():
            self.told = time.monotonic()
            row = {"epoch": float(done.epoch + 1), "learning_rate": self.trainer.rate_at(done.epoch)}
            row["train_loss"] = self.trainer.train_one_epoch(
                done.epoch, start=done.step, total=done.total, on_step=self._step, tell=self._tell
            )
            row |= self.trainer.world.told_by_first(self._validate())
            self._keep(row)
            if self.trainer.world.first:
                self._save()
                on_epoch(row)
        return done

    def _tired(self) -> bool:
        if self.trainer.parameters.keep == "last":
            return False
        began = max(self.done.best_epoch, self.trainer.parameters.probe_epochs)
        return self.done.epoch - began >= self.trainer.parameters.patience

    def _validate(self) -> dict[str, float]:
        if not self.trainer.world.first:
            return {}
        trainer = self.trainer
        with trainer.precision.autocast():
            logits = predict_logits(trainer.judged, trainer.packed, self.validation.rows)
        return validate(logits, self.validation)

    def _keep(self, row: dict[str, float]) -> None:
        done = self.done
        done.epoch, done.step, done.total = done.epoch + 1, 0, 0.0
        done.curves.append(row)
        if row["validation_loss"] < done.best_loss or self.trainer.parameters.keep == "last":
            state = self.trainer.judged.state_dict()
            done.best_state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
            done.best_loss, done.best_epoch = row["validation_loss"], done.epoch

    def _tell(self, step: int) -> None:
        """Say once in a while how far a long epoch came; its end is said by itself."""
        due = time.monotonic() - self.told >= TELL_SECONDS
        if due and step < self.trainer.steps and self.trainer.world.first:
            epochs = self.trainer.parameters.epochs
            named = f"{self.name}: " if self.name else ""
            say(f"{named}epoch {self.done.epoch + 1} of {epochs}: {step} of {self.trainer.steps} steps")
            self.told = time.monotonic()

    def _step(self, step: int, total: float) -> None:
        """Save within an epoch once in a while; the epoch's end saves by itself."""
        due = time.monotonic() - self.saved >= self.seconds
        if due and step < self.trainer.steps and self.trainer.world.first:
            self.done.step, self.done.total = step, total
            self._save()

    def _save(self) -> None:
        state: dict[str, Any] = {"trainer": self.trainer.state(), **vars(self.done)}
        save_checkpoint(self.checkpoint, state)
        self.saved = time.monotonic()


def _told_of(checkpoint: Path, world: World) -> dict[str, Any] | None:
    """What the first process reads; that it cannot is told, too, or the others would end without a word of why."""
    state, refusal = None, ""
    if world.first:
        try:
            state = load_checkpoint(checkpoint)
        except DataError as error:
            refusal = str(error)
    state, refusal = world.told_by_first((state, refusal))
    if refusal:
        raise DataError(refusal)
    return state
