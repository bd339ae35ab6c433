"""Near duplicates: one cell that stands in a data set twice, though no byte and no pixel need be equal.

Candidates are nearest neighbours in a kd-tree (Bentley 1975) over the fingerprints' leading principal components. Each
is then held against the pixels: the correlation of fine detail inside the cell, in the best of the eight poses of a
square. Outlines and smooth shading, which different cells share, are taken out first.
"""

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.fingerprints import CONTENT, fingerprints
from training.looks import Looks

# Copies of one image lie within 0.015 of each other; two photographs of one cell of C-NMC mostly within 0.08.
RADIUS = 0.1
NEIGHBOURS = 16
COMPONENTS = 12
# Two photographs of one cell of C-NMC reach 0.73 and more, the most alike of its different cells 0.56.
CORRELATION = 0.65
BLUR = 2.0  # px of a patch: coarser than this is not detail
INSIDE = 3  # px of a patch by which the outline is left aside, whose blur is as strong in smooth cells as any detail
CLIP = 2.0  # standard deviations beyond which detail counts no more: one bright spot is not a likeness
FEWEST = 40  # px of detail that two patches must share
CHUNK = 4096  # candidates that are held against the pixels at once

Pair = tuple[str, str, float]


def near_duplicates(looks: Looks) -> list[Pair]:
    """Pairs of images that show one cell.

    Images of equal pixels are looked at once: `audit.duplicates` ties them.

    Returns:
        (a, b, correlation) with a < b, sorted; the correlation is at least `CORRELATION` and at most 1.
    """
    pairs = candidates(fingerprints(looks.patches))
    likeness = correlations(looks.patches, pairs)
    return [
        (looks.paths[a], looks.paths[b], min(float(value), 1.0))
        for (a, b), value in zip(pairs.tolist(), likeness, strict=True)
        if value >= CORRELATION
    ]


def candidates(prints: NDArray[np.float32]) -> NDArray[np.intp]:
    """Pairs of near fingerprints, sorted, shape (m, 2), first < second; empty images take no part.

    Each image is paired with the nearest `NEIGHBOURS` that lie within `RADIUS`, so that the number of candidates grows
    with the images and not with their square. More copies of one cell than that are tied through each other.
    """
    from scipy.spatial import cKDTree

    some = np.flatnonzero(prints.any(axis=1))
    if len(some) < 2:
        return np.empty((0, 2), np.intp)
    centred = prints[some].astype(np.float64) - prints[some].mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)  # ascending: the last hold most of the spread
    points = centred @ axes[:, -COMPONENTS:]
    _, nearest = cKDTree(points).query(points, k=NEIGHBOURS + 1, distance_upper_bound=RADIUS, workers=-1)
    first = np.repeat(np.arange(len(some)), NEIGHBOURS + 1)
    second = nearest.ravel()
    real = (second < len(some)) & (second != first)  # an index of len(some) says that there is none
    pairs = np.sort(np.stack([some[first[real]], some[second[real]]], axis=1), axis=1)
    return np.asarray(np.unique(pairs, axis=0))


def correlations(patches: NDArray[np.uint8], pairs: NDArray[np.intp]) -> NDArray[np.float64]:
    """Correlation (Pearson) of the detail of each pair in the best of eight poses, shape (m,), -1 to 1.

    Args:
        patches: uint8, shape (n, SIDE, SIDE). pairs: indices, shape (m, 2).
    """
    out = np.full(len(pairs), -1.0)
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        first, second = (_detail(patches[chunk[:, side]]) for side in (0, 1))
        best = out[start : start + CHUNK]
        for turns, mirrored in product(range(4), (False, True)):
            posed = (_posed(array, turns, mirrored=mirrored) for array in second)
            np.maximum(best, _correlation(*first, *posed), out=best)
    return out


def _detail(patches: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What is finer than `BLUR`, and where the cell is, without its outline; both of shape (n, SIDE, SIDE)."""
    from scipy.ndimage import binary_erosion, gaussian_filter

    cross = np.array([[[0, 1, 0], [1, 1, 1], [0, 1, 0]]], bool)
    inside = binary_erosion(patches > CONTENT, cross, iterations=INSIDE)
    level = patches.astype(np.float32)
    detail = _centred(level - gaussian_filter(level, (0, BLUR, BLUR)), inside)
    bound = CLIP * np.sqrt((detail**2).sum(axis=(1, 2)) / _size(inside))[:, None, None]
    return np.clip(detail, -bound, bound), inside


def _size(inside: NDArray[np.bool_]) -> NDArray[np.intp]:
    """Pixels inside, by image; 1 where there are none, to divide by."""
    return np.asarray(np.maximum(inside.sum(axis=(1, 2)), 1))


def _centred(detail: NDArray[np.float32], inside: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The detail less its mean inside, and 0 outside."""
    kept = np.where(inside, detail, 0)
    mean = kept.sum(axis=(1, 2)) / _size(inside)
    return np.where(inside, kept - mean[:, None, None], 0).astype(np.float32)


def _posed(array: NDArray[Any], turns: int, *, mirrored: bool) -> NDArray[Any]:
    turned = np.rot90(array, turns, axes=(1, 2))
    return turned[:, :, ::-1] if mirrored else turned


def _correlation(
    one: NDArray[np.float32], inside_one: NDArray[np.bool_], two: NDArray[np.float32], inside_two: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Row by row over the pixels that lie inside both; -1 where they are too few or all alike."""
    both = inside_one & inside_two
    x, y = (_centred(detail, both).reshape(len(both), -1) for detail in (one, two))
    spread = np.sqrt(np.einsum("np,np->n", x, x) * np.einsum("np,np->n", y, y))
    enough = (both.sum(axis=(1, 2)) >= FEWEST) & (spread > 1e-6)
    return np.asarray(np.where(enough, np.einsum("np,np->n", x, y) / np.where(enough, spread, 1), -1.0))
