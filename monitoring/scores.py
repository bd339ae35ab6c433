"""Drift scores of many simulated windows at once, each equal to the one that Evidently gives a single window.

A window is a row of counts over the reference cells: how often each cell occurs in it. Its reference side is a row
of the same length, 1 for the cells that stay. With both, a score of a thousand windows is a few matrix operations.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.directions import DIRECTIONS, Refitted, directions_of
from monitoring.signatures import means_by_patient, transform
from monitoring.statistics import STATISTICS
from monitoring.store import EMBEDDING

PROBABILITY = "probability"
LABEL = "predicted_label"
"""The class that the model gives: `all` from a probability of one half upwards."""
EMBEDDING_SCORE = "embedding"

# `border` is 0 for nearly every cell, so it has no distribution to compare; it counts among the quality limits.
MEASURED: tuple[str, ...] = tuple(name for name in STATISTICS if name != "border")
"""What is measured of an image, whatever a network says of it."""
OF_IMAGES: tuple[str, ...] = (*MEASURED, *DIRECTIONS)
"""That, and what follows from it alone."""
ANSWERED: tuple[str, ...] = (PROBABILITY, LABEL, EMBEDDING_SCORE)
"""What a network says."""
NUMERIC: tuple[str, ...] = (*OF_IMAGES, PROBABILITY)

METHODS: dict[str, str] = dict.fromkeys(NUMERIC, "wasserstein") | {LABEL: "jensenshannon", EMBEDDING_SCORE: "mmd"}
"""Evidently's name of each column's score."""

# Evidently's own default for the two distances: below it a difference is too small to matter, however sure it is.
SMALLEST_THRESHOLD = {"wasserstein": 0.1, "jensenshannon": 0.1, "mmd": 0.015}
EVIDENTLY_DEFAULT = SMALLEST_THRESHOLD

_SMALLEST_STD = 0.001  # Evidently divides by no less

Floats = NDArray[np.float64]


def numeric_of(frame: pd.DataFrame) -> tuple[str, ...]:
    """Which of `NUMERIC` a reference has: that of an older package lacks the columns that came after it."""
    return tuple(name for name in NUMERIC if name in frame.columns)


def wasserstein(values: Floats, windows: Floats, sides: Floats) -> Floats:
    """First Wasserstein distance over the standard deviation of the reference side, Evidently's `wasserstein`.

    Args:
        values: one column of the reference, shape (r,).
        windows, sides: counts of each window and of its reference side, shape (b, r).

    Returns:
        float64, shape (b,), in standard deviations.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    gaps = np.diff(ordered)
    difference = np.cumsum(windows[:, order] / windows.sum(axis=1, keepdims=True), axis=1)
    difference -= np.cumsum(sides[:, order] / sides.sum(axis=1, keepdims=True), axis=1)
    distance = np.abs(difference[:, :-1]) @ gaps
    total = sides.sum(axis=1)
    # About each side's own mean: moments about another lose all digits where the other side lies far away.
    apart = values - (sides @ values / total)[:, None]
    variance = np.einsum("ij,ij,ij->i", sides, apart, apart) / total
    return np.asarray(distance / np.maximum(np.sqrt(variance), _SMALLEST_STD))


def jensen_shannon(positive: NDArray[np.bool_], windows: Floats, sides: Floats) -> Floats:
    """Jensen-Shannon distance (natural logarithm) between two shares of a class, Evidently's `jensenshannon`.

    Args:
        positive: which cells are of the class, shape (r,).

    Returns:
        float64, shape (b,), 0 to sqrt(log 2) = 0.83.
    """
    first = windows @ positive / windows.sum(axis=1)
    second = sides @ positive / sides.sum(axis=1)
    middle = (first + second) / 2
    divergence = np.zeros(len(windows))
    for one, two, centre in ((first, second, middle), (1 - first, 1 - second, 1 - middle)):
        for share in (one, two):
            some = share > 0
            divergence[some] += share[some] * np.log(share[some] / centre[some]) / 2
    return np.asarray(np.sqrt(np.maximum(divergence, 0)))


def mmd(kernel: Floats, windows: Floats, sides: Floats) -> Floats:
    """Unbiased squared maximum mean discrepancy (Gretton et al. 2012, JMLR 13:723), cut at 0 as Evidently does.

    Args:
        kernel: from `kernel_matrix`, shape (r, r).

    Returns:
        float64, shape (b,), 0 to 2. A cell that occurs twice in a window is never paired with itself.
    """

    def within(weights: Floats) -> Floats:
        squares = (weights**2).sum(axis=1)  # the pairs of a cell with itself; the kernel's diagonal is 1
        pairs = np.einsum("br,br->b", weights @ kernel, weights) - squares
        return np.asarray(pairs / np.maximum(weights.sum(axis=1) ** 2 - squares, 1))

    across = np.einsum("br,br->b", windows @ kernel, sides) / (windows.sum(axis=1) * sides.sum(axis=1))
    return np.asarray(np.maximum(within(windows) + within(sides) - 2 * across, 0))


def kernel_matrix(embedding: Floats, groups: NDArray[np.intp]) -> Floats:
    """Gaussian kernel of all pairs of cells, with the median distance between cells of two groups as its width.

    Evidently takes the median distance between window and reference, which is new for each window; without drift the
    two differ by some per cent, and so do the scores.
    """
    squares = (embedding**2).sum(axis=1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * embedding @ embedding.T, 0)
    median = np.median(distances[groups[:, None] != groups[None, :]])
    return np.asarray(np.exp(-distances / max(float(median), 1e-12)))


class Scorer:
    """Scores of windows drawn from one reference: all, or those named, that it has columns for. What does not vary in
    it is left out.

    With signatures, also along the directions that these have, each window along those fitted without its patients.
    """

    def __init__(
        self,
        reference: pd.DataFrame,
        wanted: Sequence[str] = tuple(METHODS),
        *,
        signatures: dict[str, Any] | None = None,
    ) -> None:
        self.groups, names = pd.factorize(reference["group"], sort=True)
        self.group_count = len(names)
        self._values = {
            name: reference[name].to_numpy(dtype=np.float64) for name in numeric_of(reference) if name in wanted
        }
        varies = {name: bool(np.ptp(values) > 0) for name, values in self._values.items()}
        if LABEL in wanted:
            self._positive = reference[PROBABILITY].to_numpy(dtype=np.float64) >= 0.5
            varies[LABEL] = True
        if EMBEDDING_SCORE in wanted:
            embedding = reference[list(EMBEDDING)].to_numpy(dtype=np.float64)
            varies[EMBEDDING_SCORE] = bool(np.ptp(embedding, axis=0).max() > 0)
            self._kernel = kernel_matrix(embedding, self.groups) if varies[EMBEDDING_SCORE] else None
        self.signatures = signatures if set(DIRECTIONS) & set(wanted) else None
        self._directions: tuple[str, ...] = ()
        if self.signatures is not None:
            self._directions = directions_of(self.signatures)
            self._transformed = transform(reference, self.signatures["columns"])
            self._refitted = Refitted(means_by_patient(self._transformed, reference["group"]), self.signatures)
            varies |= dict.fromkeys(self._directions, True)
        self.columns = tuple(name for name in wanted if varies.get(name))
        self.left_out = tuple(name for name, found in varies.items() if not found)

    def __call__(self, windows: Floats, sides: Floats) -> Floats:
        """Scores of shape (b, columns) for windows and reference sides of shape (b, r)."""
        scores = np.empty((len(windows), len(self.columns)))
        along = self._along(windows, sides) if self._directions else None
        for index, name in enumerate(self.columns):
            if along is not None and name in self._directions:
                scores[:, index] = along[:, self._directions.index(name)]
            elif name == LABEL:
                scores[:, index] = jensen_shannon(self._positive, windows, sides)
            elif name == EMBEDDING_SCORE:
                assert self._kernel is not None
                scores[:, index] = mmd(self._kernel, windows, sides)
            else:
                scores[:, index] = wasserstein(self._values[name], windows, sides)
        return scores

    def _along(self, windows: Floats, sides: Floats) -> Floats:
        """Scores of shape (b, directions)."""
        scores = np.empty((len(windows), len(self._directions)))
        for row, (window, side) in enumerate(zip(windows, sides, strict=True)):
            values = self._refitted.fit(np.unique(self.groups[window > 0])).columns(self._transformed)
            scores[row] = [wasserstein(column, window[None], side[None])[0] for column in values.T]
        return scores
