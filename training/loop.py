"""The training loop: one step, one epoch, and the reading of a network's answers.

Every random choice of a step (which cells, their augmentation, dropout, mixing) is drawn from the seed and the number
of the step alone. So a run that was stopped at any step and goes on gives the same bits as an undisturbed one, and as
many processes as one likes share the same batches.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from blastwatch.errors import BlastwatchError, UsageError
from blastwatch.images import Pixels, Preprocessing, normalise
from blastwatch.network import head_of
from training.augmentation import Draws, draw
from training.distributed import World, share_statistics
from training.feeding import Feeder
from training.optimizing import Average, first_blocks, hold, parameter_groups, probing, schedule
from training.pack import Packed
from training.parameters import TrainParameters
from training.precision import check_going_on, choose_precision
from training.robust import GroupWeights
from training.sampling import Side, epoch_order

Answer = Callable[[Sequence[str]], NDArray[Any]]
"""Logits of cells by their paths, in their order, shape (n, classes)."""

Infer = Callable[[Pixels], NDArray[np.float32]]
"""Logits, shape (n, classes), of crops, uint8 (n, s, s, 3)."""

LOOK = 20  # steps between two looks at the loss; each waits for a GPU
HOPELESS = 20 * math.log(2)  # twenty times the loss of guessing
SIZE_STEP = 32  # px between the sizes of progressive resizing


class TrainingDiverged(BlastwatchError):
    """The loss is no longer a number, or far above that of guessing."""


def alone() -> World:
    """One process, on the GPU where there is one."""
    return World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


class Trainer:
    """Holds a network, its optimizer and schedule, and trains it step by step."""

    def __init__(
        self, network: nn.Module, parameters: TrainParameters, packed: Packed, cells: Side, world: World | None = None
    ) -> None:
        self.parameters, self.packed, self.cells = parameters, packed, cells
        self.world = world or alone()
        self.device = self.world.device
        self.piece = _piece(parameters, self.world)
        self.precision = choose_precision(parameters.precision, self.device)
        moved: Any = share_statistics(network.to(self.device), self.world)
        self.network: nn.Module = moved.to(memory_format=torch.channels_last) if parameters.channels_last else moved
        self.frozen = first_blocks(self.network, parameters.frozen)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(
                self.network,
                learning_rate=parameters.learning_rate,
                weight_decay=parameters.weight_decay,
                layer_decay=parameters.layer_decay,
            ),
            fused=self.device.type == "cuda",  # one kernel for all weights, where each costs a launch
        )
        self.steps = -(-len(cells.rows) // parameters.batch_size)
        head, rest = probing(
            schedule(self.steps * (parameters.epochs - parameters.probe_epochs), parameters.warmup),
            probe_steps=self.steps * parameters.probe_epochs,
        )
        self.factors = [head if group["head"] else rest for group in self.optimizer.param_groups]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.factors)
        self.average = Average(self.network, parameters.average)
        self.scaler = self.precision.scaler()
        self.feeder = Feeder(packed, self.device, channels_last=parameters.channels_last)
        self.groups = torch.from_numpy(cells.groups)
        self.robust = GroupWeights(cells.groups, step=parameters.robust)
        self._forward: Any = network
        self._probes: bool | None = None

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the averaged one where averaging is on."""
        inner: nn.Module = self.average.module if self.parameters.average > 0 else self.network
        return inner

    def state(self) -> dict[str, Any]:
        """All that the next step depends on beside its number."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "average": self.average.state_dict(),
            "scaler": self.scaler.state_dict(),
            "robust": self.robust.values,
            "precision": self.precision.kind,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; raises `DataError` for one of another precision."""
        check_going_on(state.get("precision"), self.precision, wanted=self.parameters.precision, key="train.precision")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.average.load_state_dict(state["average"])
        self.scaler.load_state_dict(state["scaler"])
        self.robust.values = state["robust"]

    def train_one_epoch(
        self,
        epoch: int,
        *,
        start: int = 0,
        total: float = 0.0,
        on_step: Callable[[int, float], None] | None = None,
        tell: Callable[[int], None] | None = None,
    ) -> float:
        """Go once through the training cells, or through what is left of them; returns the mean loss of a step.

        Args:
            start: steps of this epoch that were done before; total: the sum of their losses.
            on_step: called every `LOOK` steps with the steps done and the sum of their losses.
            tell: called after each step with the steps done, of which a GPU may still be at the last ones.

        Raises:
            TrainingDiverged: where the loss is not finite or hopeless.
        """
        self._begin(epoch)
        pending = torch.zeros((), dtype=torch.float64, device=self.device)
        for step, crops, chosen in self._batches(epoch, start):
            pending += self.train_step(epoch * self.steps + step, crops, chosen, size=self.size_at(epoch))
            if tell is not None:
                tell(step + 1)
            if (step + 1) % LOOK == 0 or step + 1 == self.steps:
                total += float(self.world.sum(pending))
                pending.zero_()
                self._check(total / (step + 1), epoch)
                if on_step is not None:
                    on_step(step + 1, total)
        return total / self.steps

    def train_step(self, number: int, crops: NDArray[np.uint8], chosen: NDArray[np.int64], *, size: int) -> Tensor:
        """One step of the optimizer.

        Args:
            number: of the step since the beginning.
            crops: this process's share of the batch, uint8, shape (n, s, s, 3); chosen: positions of its cells.
            size: px of the network's input at this step.

        Returns:
            The sum of the share's losses over the number of cells in the whole batch, on the device.
        """
        torch.manual_seed(step_seed(self.parameters.seed, number) + self.world.rank)  # what dropout draws from
        draws, mixing = self._draw(number)
        count = len(chosen) * self.world.size
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        told = torch.empty(len(chosen), device=self.device)
        edges = range(0, len(chosen) + 1, self.piece)
        for low, high in pairwise(edges):
            rows = slice(low, high)
            inputs = self.feeder.inputs(crops[rows], draws.part(rows), size)
            with self._sync(last=high == len(chosen)):
                loss, own = self._loss(inputs, chosen[rows], mixing)
                loss = loss / count
                # DistributedDataParallel takes the mean over the processes, the loss is a sum over them.
                self.scaler.scale(loss * self.world.size).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            told[rows] = own
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.average.update_parameters(self.network)
        self.robust.learn(self.groups[chosen], told, self.world)
        return loss_sum

    def rate_at(self, epoch: int) -> float:
        """Learning rate of the last layer at the first step of an epoch."""
        return max(
            float(group["initial_lr"]) * factor(epoch * self.steps)
            for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True)
        )

    def size_at(self, epoch: int) -> int:
        """Side of the input at an epoch: it grows to the full size by the middle of the training, in whole steps of
        `SIZE_STEP`."""
        full, first = self.packed.preprocessing.size, self.parameters.first_size
        growing = self.parameters.epochs // 2
        if not first or epoch >= growing:
            return full
        grown = first + (full - first) * epoch / growing
        return min(full, max(1, round(grown / SIZE_STEP)) * SIZE_STEP)

    def _begin(self, epoch: int) -> None:
        """Set the network to what learns in this epoch: the head alone, or everything."""
        probes = epoch < self.parameters.probe_epochs
        if probes != self._probes:
            head = self.network.get_submodule(head_of(self.network))
            self.network.requires_grad_(not probes)
            head.requires_grad_(True)
            hold(self.network, self.frozen)
            wrapped = self.world.together(self.network)
            self._forward = torch.compile(wrapped) if self.parameters.compile else wrapped
            self._probes = probes
        self.network.train(not probes)
        # That lets all batch normalisation learn again, of the frozen blocks too.
        hold(self.network, self.frozen)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.int64]]]:
        """Number of the step, crops and positions of this process's share."""
        parameters = self.parameters
        order = epoch_order(
            self.cells,
            by_weight=parameters.balance_by == "sampling",
            batch_size=parameters.batch_size,
            seed=(parameters.seed, epoch),
        )[:, self._share()]

        for step, crops in self.feeder.batches(self.cells.rows[order], start):
            yield step, crops, order[step]

    def _share(self) -> NDArray[np.int64]:
        """Columns of a batch that this process takes: a part of each piece, so that pieces hold the same cells
        however many processes share them."""
        whole = np.arange(self.parameters.batch_size).reshape(self.parameters.accumulate, self.world.size, self.piece)
        return np.asarray(whole[:, self.world.rank].reshape(-1))

    def _draw(self, number: int) -> tuple[Draws, float]:
        """The share's augmentation, and how much of each cell its neighbour is mixed into it."""
        generator = torch.Generator().manual_seed(step_seed(self.parameters.seed, number))
        whole = draw(
            self.parameters.batch_size, generator, strength=self.parameters.augment, erase=self.parameters.erase
        )
        if not self.parameters.mixup:
            return whole.part(torch.from_numpy(self._share())), 0.0
        alpha = self.parameters.mixup
        other = np.random.default_rng((self.parameters.seed, number)).beta(alpha, alpha)
        return whole.part(torch.from_numpy(self._share())), float(min(other, 1 - other))

    def _loss(self, inputs: Tensor, chosen: NDArray[np.int64], mixing: float) -> tuple[Tensor, Tensor]:
        """The summed loss of a piece, each cell weighed, and each cell's own loss without weight."""
        labels = torch.from_numpy(self.cells.labels[chosen]).to(self.device)
        by_loss = self.parameters.balance_by == "loss"
        weights = torch.from_numpy(self.cells.weights[chosen]) if by_loss else torch.ones(len(chosen))
        weights = (weights * self.robust.of(self.groups[chosen])).to(self.device)
        if mixing:
            inputs = torch.lerp(inputs, _neighbours(inputs), mixing)
        with self.precision.autocast():
            logits = self._forward(inputs).float()
        own = functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=self.parameters.label_smoothing
        )
        loss = (own * weights).sum()
        if mixing:
            other = functional.cross_entropy(
                logits, _neighbours(labels), reduction="none", label_smoothing=self.parameters.label_smoothing
            )
            loss = torch.lerp(loss, (other * _neighbours(weights)).sum(), mixing)
        return loss, own.detach()

    def _sync(self, *, last: bool) -> Any:
        """Gradients travel between processes once a step, after the last piece."""
        inner = getattr(self._forward, "_orig_mod", self._forward)
        distributed = isinstance(inner, nn.parallel.DistributedDataParallel)
        return inner.no_sync() if distributed and not last else nullcontext()

    def _check(self, loss: float, epoch: int) -> None:
        if math.isfinite(loss) and loss < HOPELESS:
            return
        raise TrainingDiverged(
            f"The loss became {loss:.3g} in epoch {epoch + 1}. Lower train.learning_rate "
            f"(now {self.parameters.learning_rate:g}) or set train.precision=fp32. The last checkpoint stays."
        )


def _piece(parameters: TrainParameters, world: World) -> int:
    """Cells that go through the network at once in one process.

    Raises:
        UsageError: where the batch cannot be dealt evenly.
    """
    pieces = parameters.accumulate * world.size
    piece, left = divmod(parameters.batch_size, pieces)
    least = 2  # batch normalisation cannot learn from a single cell, and mixing takes neighbours in pairs
    if left or piece < least or (parameters.mixup and piece % 2):
        raise UsageError(
            f"Expected train.batch_size to be at least {least} times, and a multiple of, {pieces} "
            f"(train.accumulate {parameters.accumulate} x {world.size} processes"
            f"{', and even parts for train.mixup' if parameters.mixup else ''}) but got {parameters.batch_size}."
        )
    return piece


def step_seed(seed: int, number: int) -> int:
    """What the random choices of a step are drawn from."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 2)


def _neighbours(values: Tensor) -> Tensor:
    """Each pair of cells exchanged: 1, 0, 3, 2, ..."""
    return values.view(-1, 2, *values.shape[1:]).flip(1).view_as(values)


def predict_logits(network: nn.Module, packed: Packed, rows: NDArray[np.int64], *, batch: int = 64) -> NDArray[Any]:
    """Logits in float32 of cells of the pack, through the one normalisation; shape (n, classes)."""
    parts = (packed.crops[rows[start : start + batch]] for start in range(0, len(rows), batch))
    return np.concatenate([logits_of_crops(network, part, packed.preprocessing) for part in parts])


def answering(infer: Infer, packed: Packed, *, batch: int = 32) -> Answer:
    """What is answered to crops as what is answered to cells of the pack."""

    def answer(paths: Sequence[str]) -> NDArray[Any]:
        rows = packed.rows_of(paths)
        starts = range(0, len(rows), batch)
        return np.concatenate([infer(packed.crops[rows[start : start + batch]]) for start in starts])

    return answer


@torch.inference_mode()
def logits_of_crops(
    network: nn.Module, crops: Pixels, preprocessing: Preprocessing, *, batch: int = 64
) -> NDArray[np.float32]:
    """The same of crops, uint8 (n, s, s, 3)."""
    device = next(network.parameters()).device
    network.eval()
    parts = []
    for start in range(0, len(crops), batch):
        inputs = torch.from_numpy(normalise(crops[start : start + batch], preprocessing))
        parts.append(network(inputs.to(device)).float().cpu().numpy())
    return np.concatenate(parts)
