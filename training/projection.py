"""The principal axes of a version's embeddings, and the same without one patient."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.package import Projection
from monitoring.store import EMBEDDING_SIZE


def fit_projection(embeddings: NDArray[np.float32], size: int = EMBEDDING_SIZE) -> Projection:
    """Principal axes of embeddings (n, d), strongest first; each axis' largest entry is positive.

    With fewer cells or numbers than axes the rest are zero.
    """
    mean = embeddings.mean(axis=0)
    axes = _axes(embeddings - mean, size)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    components = np.zeros((size, embeddings.shape[1]), dtype=np.float32)
    components[: len(axes)] = axes * np.where(largest < 0, -1, 1)
    return Projection(mean=mean.astype(np.float32), components=components)


def without_each(
    embeddings: NDArray[np.float32], groups: "pd.Series[str]", patients: Iterable[str], size: int = EMBEDDING_SIZE
) -> dict[str, Projection]:
    """Of each patient, the projection fitted to the cells (n, d) of all others: axes lie nearer to what they were
    fitted to than to the next patient."""
    names = groups.to_numpy()
    return {patient: fit_projection(embeddings[names != patient], size) for patient in patients}


def _axes(centred: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    if size < min(centred.shape):  # of a thousand axes a few are wanted: a tenth of the time
        from scipy.sparse.linalg import svds

        return np.asarray(svds(centred, k=size, rng=np.random.default_rng(0))[2][::-1])
    return np.asarray(np.linalg.svd(centred, full_matrices=False)[2][:size])
