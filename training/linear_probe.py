"""A linear probe: the last layer alone is fitted, by logistic regression on what the rest makes of each cell once.

For weights that know something, and few patients: minutes where training by gradients takes hours, and the
solution is the best there is. How strongly it is regularised is chosen on patients of the training side that a
part of the fits did not see. Beside each cell it may read views of it, in another stain, light and focus, of which the
rest of the network, which does not learn, makes other numbers.

Several networks beside each other are read by one last layer (feature-level fusion), or each by its own, whose log
odds are averaged (score-level fusion; Kittler et al. 1998, doi:10.1109/34.667881). A mean of linear layers is a linear
layer, so either is one network with one last layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from blastwatch.console import progress
from blastwatch.decision import CLASS_NAMES, POSITIVE, probabilities
from blastwatch.errors import DataError, UsageError
from blastwatch.images import normalise
from blastwatch.network import READ_BY_STAGES, forward_with_embedding, head_of
from blastwatch.stage_pooling import StagePooling, Standardise
from training.augmentation import draw
from training.calibration import fit_temperature
from training.distributed import World
from training.feeding import Feeder
from training.fitting import Progress, validate
from training.loop import TrainingDiverged, step_seed
from training.pack import Packed
from training.parameters import TrainParameters
from training.precision import choose_precision
from training.sampling import Side

STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""What is tried for `C` of scikit-learn: the loss of a cell of mean weight over the penalty."""

PARTS = 5  # into which the patients of the training side are dealt
ITERATIONS = 500
BATCH = 32


@dataclass(frozen=True)
class Known:
    """Cells to fit on: embeddings float32 (n, d), labels int64 (n,), weights of mean 1, and the patient of each. A
    cell's views are rows like others and share its weight."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    patients: NDArray[Any]

    def part(self, rows: NDArray[np.int64]) -> "Known":
        return Known(self.embeddings[rows], self.labels[rows], self.weights[rows], self.patients[rows])

    def with_views(self, views: Sequence[NDArray[np.float32]]) -> "Known":
        """These cells, and behind them once more by each of some views, embeddings in the same order."""
        times = 1 + len(views)
        return Known(
            np.concatenate([self.embeddings, *views]),
            np.tile(self.labels, times),
            np.tile(self.weights / times, times),
            np.tile(self.patients, times),
        )

    def beside(self, widths: Sequence[int]) -> "list[Known]":
        """The same cells by what each of several networks makes of them, one's numbers behind another's."""
        parts = np.split(self.embeddings, np.cumsum(widths)[:-1], axis=1)
        return [replace(self, embeddings=part) for part in parts]


@dataclass(frozen=True)
class Fitted:
    """Mean and spread of each number of an embedding (d,), and weights (d,) and bias of what is standardised by them:
    the log odds of a blast."""

    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: float

    def log_odds(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.asarray((embeddings - self.mean) / self.spread @ self.weights + self.bias)


@dataclass(frozen=True)
class Chosen:
    """A fit at the strength that answers patients best whom it had not seen. held_out: logits of the training cells by
    fits that had not seen their patient, shape (n, classes); loss: of these, `best_loss`."""

    fitted: Fitted
    strength: float
    held_out: NDArray[np.float64]
    loss: float


class LinearProbe:
    """As `training.fitting.Fit`, for `train.fit=logistic`."""

    def __init__(
        self,
        network: nn.Module,
        parameters: TrainParameters,
        packed: Packed,
        cells: Side,
        validation: Side,
        world: World,
    ) -> None:
        """Raises `UsageError` where several processes were started."""
        if world.size > 1:
            raise UsageError(
                f"Expected one process for train.fit=logistic but got {world.size}: run it without torchrun."
            )
        self.format = torch.channels_last if parameters.channels_last else torch.contiguous_format
        moved: Any = network.to(world.device).eval().requires_grad_(False)
        self.network: nn.Module = moved.to(memory_format=self.format)
        self.packed, self.cells, self.validation = packed, cells, validation
        self.precision = choose_precision(parameters.precision, world.device)
        self.parameters = parameters
        self.out_of_fold = np.empty((0, len(CLASS_NAMES)))
        """Logits of the training cells once it ran, shape (n, classes), by fits that had not seen their patient."""

    def run(self, on_epoch: Callable[[dict[str, float]], None]) -> Progress:
        """Look at each cell, and at its views; choose the strength, and fit.

        Raises:
            DataError: where a label has fewer than two patients on the training side.
            TrainingDiverged: where the network makes no numbers of a cell.
        """
        cells = Known(self._embeddings(), self.cells.labels, self.cells.weights, self.cells.patients)
        views = [self._embeddings(view) for view in range(1, self.parameters.views + 1)]
        fitted, held_out, row = self._fit(cells.with_views(views))
        self.out_of_fold = held_out[: len(cells.labels)]
        write_head(self.network, fitted)
        own = np.logaddexp(0, np.where(cells.labels == POSITIVE, -1, 1) * fitted.log_odds(cells.embeddings))
        row |= {"epoch": 1.0, "train_loss": float((cells.weights * own).mean())}
        row |= validate(self.network, self.packed, self.validation, self.precision)
        state = {name: tensor.cpu().clone() for name, tensor in self.network.state_dict().items()}
        on_epoch(row)
        return Progress(epoch=1, best_epoch=1, best_loss=row["validation_loss"], best_state=state, curves=[row])

    def _fit(self, known: Known) -> tuple[Fitted, NDArray[np.float64], dict[str, float]]:
        """The last layer, logits of the known cells by fits that had not seen their patient, and figures."""
        if self.parameters.fusion == "features":
            chosen = choose(known, seed=self.parameters.seed)
            return chosen.fitted, chosen.held_out, {"strength": chosen.strength, "held_out_loss": chosen.loss}
        assert isinstance(self.network, StagePooling)
        names = READ_BY_STAGES[self.parameters.architecture]
        members = [choose(part, seed=self.parameters.seed) for part in known.beside(self.network.widths)]
        fitted, held_out = fuse(members, known)
        row = {"held_out_loss": best_loss(held_out, known)}
        for name, member in zip(names, members, strict=True):
            row |= {f"strength_{name}": member.strength, f"held_out_loss_{name}": member.loss}
        return fitted, held_out, row

    @torch.inference_mode()
    def _embeddings(self, view: int = 0) -> NDArray[np.float32]:
        """Of the training cells, float32 (n, d); of a view above 0 as augmentation changes them, drawn from the seed
        and the number of the view."""
        device, rows = next(self.network.parameters()).device, self.cells.rows
        feeder = Feeder(self.packed, device, channels_last=self.parameters.channels_last)
        generator = torch.Generator().manual_seed(step_seed(self.parameters.seed, view))
        parts = []
        for start in progress(range(0, len(rows), BATCH), total=-(-len(rows) // BATCH), what="Embedding"):
            crops = self.packed.crops[rows[start : start + BATCH]]
            if view:
                draws = draw(len(crops), generator, strength=self.parameters.augment, erase=self.parameters.erase)
                inputs = feeder.inputs(crops, draws, self.packed.preprocessing.size)
            else:
                inputs = torch.from_numpy(normalise(crops, self.packed.preprocessing)).to(device)
                inputs = inputs.contiguous(memory_format=self.format)
            with self.precision.autocast():
                parts.append(forward_with_embedding(self.network, inputs)[1].float().cpu().numpy())
        embeddings = np.concatenate(parts)
        if not np.isfinite(embeddings).all():
            raise TrainingDiverged("The network makes values that are no numbers of a cell. Set train.precision=fp32.")
        return embeddings


def choose(known: Known, *, seed: int) -> Chosen:
    """Fit to all cells at the strength that answers held-out patients best.

    Raises:
        DataError: where a label has fewer than two patients.
    """
    held_out = out_of_fold(known, seed=seed)
    losses = {strength: best_loss(logits, known) for strength, logits in held_out.items()}
    strength = min(losses, key=losses.__getitem__)
    return Chosen(fit(known, strength), strength, held_out[strength], losses[strength])


def fuse(members: Sequence[Chosen], known: Known) -> tuple[Fitted, NDArray[np.float64]]:
    """The mean of several fits' log odds as one fit to all their numbers, each divided by the temperature that suits
    its answers to patients it had not seen, so that one that is too sure does not outvote the others.

    Args:
        known: cells that all were fitted to.

    Returns:
        The fit; and logits of the cells by fits that had not seen their patient, shape (n, classes).
    """
    shares = [1 / len(members) / fit_temperature(one.held_out, known.labels, known.weights) for one in members]
    weighed = list(zip(shares, members, strict=True))
    fitted = Fitted(
        mean=np.concatenate([one.fitted.mean for one in members]),
        spread=np.concatenate([one.fitted.spread for one in members]),
        weights=np.concatenate([share * one.fitted.weights for share, one in weighed]),
        bias=sum(share * one.fitted.bias for share, one in weighed),
    )
    return fitted, np.sum([share * one.held_out for share, one in weighed], axis=0)


def fit(known: Known, strength: float) -> Fitted:
    """Logistic regression on standardised embeddings, each cell weighed; the penalty is on the squared weights."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    standard = scaler.fit_transform(known.embeddings.astype(np.float64))
    model = LogisticRegression(C=strength, max_iter=ITERATIONS)
    model.fit(standard, known.labels == POSITIVE, sample_weight=known.weights)
    return Fitted(scaler.mean_, scaler.scale_, np.asarray(model.coef_[0]), float(model.intercept_[0]))


def out_of_fold(known: Known, *, seed: int, parts: int = PARTS) -> dict[float, NDArray[np.float64]]:
    """Of each of `STRENGTHS`, logits of all cells, shape (n, classes), by fits that had not seen their patient.

    Args:
        parts: into which the patients are dealt; fewer where a label has fewer.

    Raises:
        DataError: where a label has fewer than two patients.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    fewest = min(len(set(known.patients[known.labels == label])) for label in range(len(CLASS_NAMES)))
    if fewest < 2:
        raise DataError(
            "Expected at least two patients of each label on the training side for train.fit=logistic, which holds "
            "some of them out, but a label has fewer. Split again, with a larger share for this side."
        )
    dealt = StratifiedGroupKFold(min(parts, fewest), shuffle=True, random_state=seed)
    log_odds = {strength: np.empty(len(known.labels)) for strength in STRENGTHS}
    for fitted_on, held in dealt.split(known.embeddings, known.labels, known.patients):
        for strength, found in log_odds.items():
            found[held] = fit(known.part(fitted_on), strength).log_odds(known.embeddings[held])
    return {strength: logits_of(found) for strength, found in log_odds.items()}


def logits_of(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits, shape (n, classes), half of the log odds of a blast to each: softmax sees their difference alone."""
    return np.stack([-log_odds / 2, log_odds / 2], axis=1)


def best_loss(logits: NDArray[np.float64], known: Known) -> float:
    """The weighed cross-entropy at the temperature that suits the logits best, since one is fitted afterwards anyway:
    what counts is what no temperature can mend (Berta et al. 2025, arXiv:2501.19195).

    Args:
        logits: of the cells, shape (n, classes).
    """
    from sklearn.metrics import log_loss

    temperature = fit_temperature(logits, known.labels, known.weights)
    return float(log_loss(known.labels, probabilities(logits, temperature), sample_weight=known.weights))


def write_head(network: nn.Module, fitted: Fitted) -> None:
    """Make the fitted layer the network's last one. Mean and spread go where the network standardises, on top of what
    it did there when it was fitted to, else into the layer."""
    head = network.get_submodule(head_of(network))
    assert isinstance(head, nn.Linear)
    weights, bias = fitted.weights, fitted.bias
    if isinstance(standardise := getattr(network, "standardise", None), Standardise):
        standardise.mean.add_(standardise.spread * torch.from_numpy(fitted.mean).float())
        standardise.spread.mul_(torch.from_numpy(fitted.spread).float())
    else:
        weights = weights / fitted.spread
        bias -= float(weights @ fitted.mean)
    # Half to each class, as `logits_of` has it.
    sign = torch.tensor([1.0 if label == POSITIVE else -1.0 for label in range(len(CLASS_NAMES))], dtype=torch.float64)
    head.weight.copy_(0.5 * sign[:, None] * torch.from_numpy(weights))
    head.bias.copy_(0.5 * sign * bias)
