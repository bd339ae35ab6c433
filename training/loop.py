"""The training loop: one epoch, one validation, and what runs them to the best epoch."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from blastwatch.decision import CLASS_NAMES, POSITIVE
from blastwatch.errors import BlastwatchError, DataError
from blastwatch.images import normalise
from training.augmentation import augment, train_transform
from training.checkpoint import load_checkpoint, save_checkpoint
from training.pack import Packed
from training.parameters import TrainParameters


class TrainingDiverged(BlastwatchError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Side:
    """The cells of one side: row in the pack, label (index into CLASS_NAMES), subject, and weight in the loss."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    subjects: NDArray[Any]
    weights: NDArray[np.float32]


@dataclass
class Progress:
    """How far training came; all of it is in the checkpoint."""

    epoch: int = 0
    best_epoch: int = 0
    best_loss: float = math.inf
    best_state: dict[str, Tensor] = field(default_factory=dict)
    curves: list[dict[str, float]] = field(default_factory=list)


def side_of(split: pd.DataFrame, packed: Packed, side: str, balance: str) -> Side:
    """The cells of a side, each with its weight; weights have mean 1.

    Raises:
        DataError: where the side lacks a class.
    """
    rows = split[split["side"] == side].sort_values("path")
    lacking = [name for name in CLASS_NAMES if name not in set(rows["label"])]
    if lacking:
        raise DataError(f"Expected cells of every class on the side {side} but it has no {', '.join(lacking)}.")
    return Side(
        rows=packed.rows_of(rows["path"].tolist()),
        labels=rows["label"].map(CLASS_NAMES.index).to_numpy(np.int64),
        subjects=rows["subject"].to_numpy(),
        weights=loss_weights(rows, balance),
    )


def loss_weights(rows: pd.DataFrame, balance: str) -> NDArray[np.float32]:
    """Weight of each cell: classes weigh the same; with `subject`, so do the subjects within a class."""
    weights = np.ones(len(rows))
    if balance == "subject":
        weights = 1.0 / rows.groupby(["label", "subject"])["path"].transform("size").to_numpy(float)
    if balance != "none":
        weights = weights / pd.Series(weights).groupby(rows["label"].to_numpy()).transform("sum").to_numpy()
    return np.asarray(weights / weights.mean(), dtype=np.float32)


class Trainer:
    """Holds a network, its optimizer and schedule, and trains it one epoch at a time.

    Every random choice of an epoch is drawn from a state seeded by (seed, epoch), so a run that was stopped and
    resumed at an epoch's end goes on exactly as an undisturbed one.
    """

    def __init__(self, network: nn.Module, parameters: TrainParameters, packed: Packed, cells: Side) -> None:
        self.parameters, self.packed, self.cells = parameters, packed, cells
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.low_precision = use_bf16(parameters.precision, self.device)
        moved: Any = network.to(self.device)
        self.network: nn.Module = moved.to(memory_format=torch.channels_last) if parameters.channels_last else moved
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay
        )
        self.steps = math.ceil(len(cells.rows) / parameters.batch_size)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, schedule(self.steps * parameters.epochs, parameters.warmup)
        )
        decaying: Any = torch.optim.swa_utils.get_ema_multi_avg_fn(parameters.average)  # type: ignore[no-untyped-call]
        self.average = torch.optim.swa_utils.AveragedModel(self.network, multi_avg_fn=decaying, use_buffers=True)
        self.transform = train_transform(parameters.augment)

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the averaged one where averaging is on."""
        inner: nn.Module = self.average.module if self.parameters.average > 0 else self.network
        return inner

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])

    def train_one_epoch(self, epoch: int) -> float:
        """Go once through the training cells; returns the mean loss.

        Raises:
            TrainingDiverged: where the loss is not finite.
        """
        torch.manual_seed(self.parameters.seed * 100_003 + epoch)
        self.network.train()
        order = torch.randperm(len(self.cells.rows)).numpy()
        total, size = 0.0, self.parameters.batch_size
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            if len(chosen) == 1:
                continue  # batch normalisation cannot learn from a single cell
            crops = self.packed.crops[self.cells.rows[chosen]]
            inputs = self._to_device(augment(crops, self.transform, self.packed.preprocessing))
            labels = torch.from_numpy(self.cells.labels[chosen]).to(self.device)
            weights = torch.from_numpy(self.cells.weights[chosen]).to(self.device)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.low_precision):
                logits = self.network(inputs)
            losses = functional.cross_entropy(
                logits.float(), labels, reduction="none", label_smoothing=self.parameters.label_smoothing
            )
            loss = (losses * weights).mean()
            if not torch.isfinite(loss):
                raise TrainingDiverged(
                    f"The loss became {loss.item()} in epoch {epoch + 1}. Lower train.learning_rate "
                    f"(now {self.parameters.learning_rate:g}) or set train.precision=fp32. The last checkpoint stays."
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            self.average.update_parameters(self.network)
            total += loss.item() * len(chosen)
        return total / len(order)

    def _to_device(self, inputs: Tensor) -> Tensor:
        moved = inputs.to(self.device, non_blocking=True)
        return moved.contiguous(memory_format=torch.channels_last) if self.parameters.channels_last else moved


def use_bf16(precision: str, device: torch.device) -> bool:
    """`auto` takes bf16 where the device computes in it, and float32 where it would only be emulated."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = Path("/proc/cpuinfo")
    return flags.is_file() and any(word in flags.read_text() for word in ("avx512_bf16", "amx_bf16"))


def schedule(steps: int, warmup: float) -> Callable[[int], float]:
    """Factor of the learning rate at a step: linear to 1 over the warm-up, then half a cosine down to 0."""
    rising = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))

    return factor


@torch.inference_mode()
def predict_logits(network: nn.Module, packed: Packed, rows: NDArray[np.int64], *, batch: int = 64) -> NDArray[Any]:
    """Logits in float32 of cells of the pack, through the one normalisation; shape (n, classes)."""
    device = next(network.parameters()).device
    network.eval()
    parts = []
    for start in range(0, len(rows), batch):
        inputs = torch.from_numpy(normalise(packed.crops[rows[start : start + batch]], packed.preprocessing))
        parts.append(network(inputs.to(device)).float().cpu().numpy())
    return np.concatenate(parts)


def validate(network: nn.Module, packed: Packed, cells: Side) -> dict[str, float]:
    """Loss with every subject weighing the same, accuracy as the mean over subjects, and AUROC over cells."""
    from sklearn.metrics import roc_auc_score

    logits = predict_logits(network, packed, cells.rows)
    losses = functional.cross_entropy(torch.tensor(logits), torch.tensor(cells.labels), reduction="none")
    right = pd.Series(logits.argmax(1) == cells.labels)
    return {
        "validation_loss": float((losses.numpy() * cells.weights).mean()),
        "validation_subject_accuracy": float(right.groupby(cells.subjects).mean().mean()),
        "validation_auroc": float(
            roc_auc_score(cells.labels == POSITIVE, logits[:, POSITIVE] - logits[:, 1 - POSITIVE])
        ),
    }


def fit(
    trainer: Trainer, validation: Side, checkpoint: Path, *, on_epoch: Callable[[dict[str, float]], None]
) -> Progress:
    """Train until the last epoch or until validation patients no longer gain; resumes from the checkpoint.

    The best epoch is the one with the lowest validation loss, every subject weighing the same.
    """
    parameters = trainer.parameters
    done = Progress()
    saved = load_checkpoint(checkpoint)
    if saved is not None:
        trainer.restore(saved.pop("trainer"))
        done = Progress(**saved)
    while done.epoch < parameters.epochs and done.epoch - done.best_epoch < parameters.patience:
        row: dict[str, float] = {"epoch": done.epoch + 1, "learning_rate": float(trainer.schedule.get_last_lr()[0])}
        row["train_loss"] = trainer.train_one_epoch(done.epoch)
        row |= validate(trainer.judged, trainer.packed, validation)
        if not math.isfinite(row["validation_loss"]):
            raise TrainingDiverged(f"The validation loss became {row['validation_loss']} in epoch {done.epoch + 1}.")
        done.epoch += 1
        done.curves.append(row)
        if row["validation_loss"] < done.best_loss:
            state = trainer.judged.state_dict()
            done.best_state = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
            done.best_loss, done.best_epoch = row["validation_loss"], done.epoch
        save_checkpoint(checkpoint, {"trainer": trainer.state(), **vars(done)})
        on_epoch(row)
    return done
