"""Which cells an epoch shows, in which order, and what each weighs in the loss: cells are many, patients are few."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError
from training.pack import Packed


@dataclass(frozen=True)
class Side:
    """The cells of one side: row in the pack, label (index into CLASS_NAMES), subject, weight (of mean 1), and patient
    (the group of the split, which may hold several subjects)."""

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    subjects: NDArray[Any]
    weights: NDArray[np.float32]
    patients: NDArray[Any]

    @property
    def groups(self) -> NDArray[np.int64]:
        """Number of each cell's group of equal treatment: its subject within its label, from 0."""
        pairs = pd.MultiIndex.from_arrays([self.labels, self.subjects])
        return np.asarray(pairs.factorize(sort=True)[0], dtype=np.int64)


def side_of(split: pd.DataFrame, packed: Packed, side: str, balance: str) -> Side:
    """The cells of a side, each with its weight; weights have mean 1.

    Raises:
        DataError: where the side lacks a class.
    """
    rows = split[split["side"] == side].sort_values("path")
    lacking = [name for name in CLASS_NAMES if name not in set(rows["label"])]
    if lacking:
        raise DataError(
            f"Expected cells of every class on the side {side} but it has no {', '.join(lacking)}. "
            "Split again, with a larger share for this side."
        )
    return Side(
        rows=packed.rows_of(rows["path"].tolist()),
        labels=rows["label"].map(CLASS_NAMES.index).to_numpy(np.int64),
        subjects=rows["subject"].to_numpy(),
        weights=balanced_weights(rows, balance),
        patients=rows["group"].to_numpy(),
    )


def balanced_weights(rows: pd.DataFrame, balance: str) -> NDArray[np.float32]:
    """Weight of each cell: classes weigh the same; with `subject`, so do the subjects within a class."""
    weights = np.ones(len(rows))
    if balance == "subject":
        weights = 1.0 / rows.groupby(["label", "subject"])["path"].transform("size").to_numpy(float)
    if balance != "none":
        weights = weights / pd.Series(weights).groupby(rows["label"].to_numpy()).transform("sum").to_numpy()
    return np.asarray(weights / weights.mean(), dtype=np.float32)


def of_each_patient(patients: NDArray[Any], most: int, drawn: NDArray[np.int64]) -> NDArray[np.intp]:
    """Places of as many cells of each patient, in order, `most` in all but one of each at least.

    Args:
        patients: of each cell. drawn: all places, in the order in which they are taken.
    """
    each = max(most // len(set(patients)), 1)
    return np.sort(drawn[pd.Series(patients[drawn]).groupby(patients[drawn]).cumcount() < each])


def epoch_order(side: Side, *, by_weight: bool, batch_size: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Positions of the cells in the order in which an epoch shows them, shape (steps, batch_size).

    Args:
        by_weight: draw each cell as often as it weighs (systematic resampling: the number of times differs from the
            weight by less than one), instead of once.
        seed: of this epoch.

    The last batch is filled up from the epoch's start, so that every step has as many cells as the one before.
    """
    random = np.random.default_rng(seed)
    count = len(side.rows)
    if by_weight:
        # Cells of a subject lie together, so that what rounding takes from one cell goes to another of the subject.
        order = np.lexsort((random.random(count), side.groups))
        mass = np.cumsum(side.weights[order].astype(np.float64))
        ticks = (np.arange(count) + random.random()) * (mass[-1] / count)
        drawn = order[np.searchsorted(mass, ticks, side="right").clip(max=count - 1)]
    else:
        drawn = np.arange(count)
    shown = random.permutation(drawn)
    steps = -(-count // batch_size)
    return np.asarray(np.resize(shown, (steps, batch_size)), dtype=np.int64)
