"""A linear probe: the last layer alone is fitted, by logistic regression on what the rest makes of each cell once.

For weights that know something, and few patients: minutes where training by gradients takes hours, and the
solution is the best there is. How strongly it is regularised is chosen on patients of the training side that a
part of the fits did not see. What another camera does to the numbers that it reads can be kept from it
(`training.nuisances`), and what patients of one label differ in can be made smaller (`training.patient_directions`).

Several networks beside each other are read by one last layer (feature-level fusion), or each by its own, whose log
odds are averaged (score-level fusion; Kittler et al. 1998, doi:10.1109/34.667881). A mean of linear layers is a linear
layer, so either is one network with one last layer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from blastwatch.decision import CLASS_NAMES, POSITIVE
from blastwatch.errors import DataError, UsageError
from blastwatch.network import READ_BY_STAGES, head_of
from blastwatch.stage_pooling import StagePooling, Standardise
from training.calibration import fit_temperature, temperate_loss
from training.distributed import World
from training.embedding import Embedder
from training.fitting import Progress, validate
from training.nuisances import Moves, check_fewer, directions
from training.pack import Packed
from training.parameters import TrainParameters
from training.patient_directions import shrinkage
from training.precision import choose_precision
from training.sampling import Side

STRENGTHS = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
"""What is tried for `C` of scikit-learn: the loss of a cell of mean weight over the penalty."""

PARTS = 5  # into which the patients of the training side are dealt
ITERATIONS = 500
FLAT = 1e-4
"""Share of its mean below which the spread of a number over cells is rounding: a channel that says the same of every
cell. Divided by it, that rounding would weigh as much as what cells differ in, and every engine rounds otherwise."""


@dataclass(frozen=True)
class Known:
    """Cells to fit on: embeddings float32 (n, d), labels int64 (n,), weights of mean 1, the patient of each, and how
    cameras move some of them where the fit shall not read that."""

    embeddings: NDArray[np.float32]
    labels: NDArray[np.int64]
    weights: NDArray[np.float32]
    patients: NDArray[Any]
    moves: Moves | None = None

    def part(self, rows: NDArray[np.int64]) -> "Known":
        """Some of the cells, and the moves of their patients alone. Each label weighs as much of them as of all: else
        a fit that holds more of one label's patients out than of the other's would lean towards the other."""
        patients, labels = self.patients[rows], self.labels[rows]
        weights = self.weights[rows].astype(np.float64)
        for label in np.unique(labels):
            weights[labels == label] *= self.weights[self.labels == label].sum() / weights[labels == label].sum()
        moves = self.moves.of(patients) if self.moves else None
        return Known(self.embeddings[rows], labels, (weights / weights.mean()).astype(np.float32), patients, moves)

    def beside(self, widths: Sequence[int]) -> "list[Known]":
        """The same cells by what each of several networks makes of them, one's numbers behind another's."""
        places = np.cumsum(widths)[:-1]
        parts = np.split(self.embeddings, places, axis=1)
        if self.moves is None:
            return [replace(self, embeddings=part) for part in parts]
        moves = [replace(self.moves, differences=own) for own in np.split(self.moves.differences, places, axis=1)]
        return [replace(self, embeddings=part, moves=own) for part, own in zip(parts, moves, strict=True)]


@dataclass(frozen=True)
class Restraint:
    """What a fit leans on less, or not at all. nuisances: main directions of the cells' moves in which it has no
    weight; shrink_patients: of `training.patient_directions`, how much less along those in which patients differ."""

    nuisances: int = 0
    shrink_patients: float = 0.0


FREE = Restraint()


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
    fits that had not seen their patient, shape (n, classes); loss: of these, `temperate_loss`."""

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
        kept: Path | None = None,
    ) -> None:
        """`kept`: of `Embedder`. Raises `UsageError` where several processes were started, or there are as many
        nuisances as numbers."""
        if world.size > 1:
            raise UsageError(
                f"Expected one process for train.fit=logistic but got {world.size}: run it without torchrun."
            )
        self.network = network.to(world.device).eval().requires_grad_(False)
        check_fewer(parameters.nuisances, min(_widths(network, parameters.fusion)))
        self.cells, self.validation, self.parameters = cells, validation, parameters
        self.precision = choose_precision(parameters.precision, world.device)
        self.embedder = Embedder(
            self.network, packed, self.precision, channels_last=parameters.channels_last, kept=kept
        )
        self.out_of_fold = np.empty((0, len(CLASS_NAMES)))
        """Logits of the training cells once it ran, shape (n, classes), by fits that had not seen their patient."""

    def run(self, on_epoch: Callable[[dict[str, float]], None]) -> Progress:
        """Look at each cell; choose the strength, and fit.

        Raises:
            DataError: where the patients of the training side cannot be dealt into parts (`deal_parts`).
            UsageError: where there are fewer moves than nuisances.
            TrainingDiverged: where the network makes no numbers of a cell.
        """
        side = self.cells
        # Where no fit could be held out that is said before all cells are looked at.
        deal_parts(side.labels, side.patients, seed=self.parameters.seed)
        moves = self.embedder.moves(side, seed=self.parameters.seed) if self.parameters.nuisances else None
        cells = Known(self.embedder.cells(side.rows), side.labels, side.weights, side.patients, moves)
        fitted, self.out_of_fold, row = self._fit(cells)
        write_head(self.network, fitted)
        own = np.logaddexp(0, np.where(cells.labels == POSITIVE, -1, 1) * fitted.log_odds(cells.embeddings))
        row |= {"epoch": 1.0, "train_loss": float((cells.weights * own).mean())}
        row |= validate(self.embedder.logits(self.validation.rows), self.validation)
        state = {name: tensor.cpu().clone() for name, tensor in self.network.state_dict().items()}
        on_epoch(row)
        return Progress(epoch=1, best_epoch=1, best_loss=row["validation_loss"], best_state=state, curves=[row])

    def _fit(self, known: Known) -> tuple[Fitted, NDArray[np.float64], dict[str, float]]:
        """The last layer, logits of the known cells by fits that had not seen their patient, and figures."""
        seed, kept = self.parameters.seed, Restraint(self.parameters.nuisances, self.parameters.shrink_patients)
        if self.parameters.fusion == "features":
            chosen = choose(known, seed=seed, kept=kept)
            return chosen.fitted, chosen.held_out, {"strength": chosen.strength, "held_out_loss": chosen.loss}
        assert isinstance(self.network, StagePooling)
        names = READ_BY_STAGES[self.parameters.architecture]
        members = [choose(part, seed=seed, kept=kept) for part in known.beside(self.network.widths)]
        fitted, held_out = fuse(members, known)
        row = {"held_out_loss": temperate_loss(held_out, known.labels, known.weights)}
        for name, member in zip(names, members, strict=True):
            row |= {f"strength_{name}": member.strength, f"held_out_loss_{name}": member.loss}
        return fitted, held_out, row


def _widths(network: nn.Module, fusion: str) -> Sequence[int]:
    """How many numbers each layer that is fitted reads."""
    if fusion == "scores" and isinstance(network, StagePooling):
        return network.widths
    head = network.get_submodule(head_of(network))
    assert isinstance(head, nn.Linear)
    return (head.in_features,)


def choose(known: Known, *, seed: int, kept: Restraint = FREE) -> Chosen:
    """Fit to all cells at the strength that answers held-out patients best.

    Raises:
        DataError: of `deal_parts`.
    """
    held_out = out_of_fold(known, seed=seed, kept=kept)
    losses = {strength: temperate_loss(logits, known.labels, known.weights) for strength, logits in held_out.items()}
    strength = min(losses, key=losses.__getitem__)
    return Chosen(fit(known, strength, kept=kept), strength, held_out[strength], losses[strength])


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


def fit(known: Known, strength: float, *, kept: Restraint = FREE) -> Fitted:
    """`fits` at one strength."""
    return fits(known, (strength,), kept=kept)[strength]


def fits(known: Known, strengths: Sequence[float], *, kept: Restraint = FREE) -> dict[float, Fitted]:
    """Logistic regression on standardised embeddings, each cell weighed; the penalty is on the squared weights.

    Args:
        strengths: a fit for each.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(known.embeddings.astype(np.float64))
    flat = scaler.scale_ < FLAT * np.abs(scaler.mean_)
    spread = np.where(flat, 1.0, scaler.scale_)
    standard = np.where(flat, 0.0, (known.embeddings - scaler.mean_) / spread)
    nuisance = np.empty((standard.shape[1], 0))
    if kept.nuisances:
        assert known.moves is not None
        nuisance = directions(np.where(flat, 0.0, known.moves.differences / spread), kept.nuisances)
        standard -= standard @ nuisance @ nuisance.T
    smaller = None
    if kept.shrink_patients:
        smaller = shrinkage(standard, known.labels, known.patients, kept.shrink_patients)
        standard = smaller(standard)
    found = {}
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=ITERATIONS)
        model.fit(standard, known.labels == POSITIVE, sample_weight=known.weights)
        weights = np.asarray(model.coef_[0])
        weights = weights if smaller is None else smaller(weights)
        weights = weights - nuisance @ (nuisance.T @ weights)  # nothing is left there but rounding
        weights = np.where(flat, 0.0, weights)
        found[strength] = Fitted(scaler.mean_, spread, weights, float(model.intercept_[0]))
    return found


def out_of_fold(
    known: Known, *, seed: int, parts: int = PARTS, kept: Restraint = FREE
) -> dict[float, NDArray[np.float64]]:
    """Of each of `STRENGTHS`, logits of all cells, shape (n, classes), by fits that had not seen their patient.

    Args:
        parts: of `deal_parts`.

    Raises:
        DataError: of `deal_parts`.
    """
    log_odds = {strength: np.empty(len(known.labels)) for strength in STRENGTHS}
    for fitted_on, held in deal_parts(known.labels, known.patients, seed=seed, parts=parts):
        fitted = fits(known.part(fitted_on), STRENGTHS, kept=kept)
        for strength, found in log_odds.items():
            found[held] = fitted[strength].log_odds(known.embeddings[held])
    return {strength: logits_of(found) for strength, found in log_odds.items()}


def deal_parts(
    labels: NDArray[np.int64], patients: NDArray[Any], *, seed: int, parts: int = PARTS
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Deal patients into parts that are held out in turn, while the others, in which both labels are, are fitted to.

    Args:
        labels, patients: of each cell, shape (n,). parts: fewer where a label has fewer patients, or where patients
            with cells of both labels leave a label in one part alone.

    Returns:
        For each part the places of the cells to fit to, and of those held out.

    Raises:
        DataError: where a label has fewer than two patients, or lies in one part alone, however few there are.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    of_label = [set(patients[labels == label]) for label in range(len(CLASS_NAMES))]
    fewest = min(map(len, of_label))
    if fewest < 2:
        raise DataError(
            "Expected at least two patients of each label on the training side for train.fit=logistic, which holds "
            "some of them out, but a label has fewer. Split again, with a larger share for this side."
        )
    for number in range(min(parts, fewest), 1, -1):
        dealt = list(StratifiedGroupKFold(number, shuffle=True, random_state=seed).split(labels, labels, patients))
        if all(len(np.unique(labels[fitted_on])) == len(CLASS_NAMES) for fitted_on, _ in dealt):
            return dealt
    tied = ", ".join(sorted(map(str, set.intersection(*of_label))))
    raise DataError(
        "Expected patients of each label in two parts of the training side or more for train.fit=logistic, which holds "
        f"one of them out, but a label lies in one alone, since cells of both labels are tied to one patient ({tied}). "
        "Look at what ties them, the findings of the audit and audit.links, or split again, with a larger share for "
        "this side."
    )


def logits_of(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits, shape (n, classes), half of the log odds of a blast to each: softmax sees their difference alone."""
    return np.stack([-log_odds / 2, log_odds / 2], axis=1)


def write_head(network: nn.Module, fitted: Fitted) -> None:
    """Make the fitted layer the network's last one. Mean and spread go where the network standardises, on top of what
    it did there when it was fitted to, else into the layer."""
    head = network.get_submodule(head_of(network))
    assert isinstance(head, nn.Linear)
    weights, bias = fitted.weights, fitted.bias
    if isinstance(standardise := getattr(network, "standardise", None), Standardise):
        # A network on a GPU takes no numbers that lie on the CPU.
        standardise.mean.add_(standardise.spread * torch.from_numpy(fitted.mean).to(standardise.spread))
        standardise.spread.mul_(torch.from_numpy(fitted.spread).to(standardise.spread))
    else:
        weights = weights / fitted.spread
        bias -= float(weights @ fitted.mean)
    # Half to each class, as `logits_of` has it.
    sign = torch.tensor([1.0 if label == POSITIVE else -1.0 for label in range(len(CLASS_NAMES))], dtype=torch.float64)
    head.weight.copy_(0.5 * sign[:, None] * torch.from_numpy(weights))
    head.bias.copy_(0.5 * sign * bias)
