"""Which cells to label next: the ones that the version is least sure of, and the ones least like what it knows.

Uncertainty sampling (Lewis and Gale 1994, arXiv:cmp-lg/9407020) takes the first; the distance to the nearest cells of
the reference, in the embedding (Sun et al. 2022, arXiv:2204.06507), the second. The two take turns, and patients do:
nobody gets a second cell before everybody has had one, so that the labels tell of many patients.
"""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.errors import DataError
from monitoring.store import EMBEDDING

NEIGHBOURS = 5
COLUMNS = ("id", "label", "reason", "probability", "uncertainty", "unlike", "patient", "time")
UNCERTAIN, UNLIKE = "uncertain", "unlike"

Floats = NDArray[np.float64]


def candidates(cells: pd.DataFrame, reference: pd.DataFrame, *, count: int) -> pd.DataFrame:
    """The cells to label next, the most wanted first.

    Args:
        cells: unlabelled predictions: id, time, patient ("" for none), probability, e00 to e31.
        reference: of the version: group, e00 to e31.
        count: how many are wanted; fewer where there are fewer cells.

    Returns:
        `COLUMNS`. label: empty, to be filled in. reason: `uncertain` or `unlike`. uncertainty: chance that the given
        label is wrong, 0 to 0.5. unlike: share of the reference's cells that lie nearer to other patients' cells of the
        reference than this one does, 0 to 1.
    """
    if count < 1:
        raise ValueError(f"Expected `count` to be at least 1 but got {count}")
    table = cells.reset_index(drop=True)
    blast = table["probability"].to_numpy(np.float64)
    distance, unlike = unlikeness(table, reference)
    table = table.assign(label="", uncertainty=np.minimum(blast, 1 - blast), unlike=unlike)
    # Ties go to the newest cell: rows are oldest first. Beyond the reference's last cell the distance still ranks.
    places = np.arange(len(table))
    orders = {UNCERTAIN: np.lexsort((places, table["uncertainty"]))[::-1], UNLIKE: np.lexsort((places, distance))[::-1]}
    # A cell without a key is taken as a patient of its own: nothing is known of whose it is.
    owner = table["patient"].where(table["patient"] != "", "cell " + table["id"]).to_numpy(dtype=object)
    taken = _take(orders, owner, min(count, len(table)))
    chosen = table.loc[[row for row, _ in taken]].assign(reason=[reason for _, reason in taken])
    return chosen[list(COLUMNS)].reset_index(drop=True)


def _take(orders: dict[str, NDArray[np.intp]], owner: NDArray[Any], count: int) -> list[tuple[int, str]]:
    """Rows and reasons: the rankings in turn, each giving its best cell of a patient that has had the fewest."""
    had = dict.fromkeys(owner, 0)
    left = pd.Series(owner).value_counts().to_dict()
    free = np.ones(len(owner), dtype=bool)
    taken: list[tuple[int, str]] = []
    while len(taken) < count:
        reason = list(orders)[len(taken) % len(orders)]
        fewest = min(had[key] for key, rest in left.items() if rest)
        row = next(int(row) for row in orders[reason] if free[row] and had[owner[row]] == fewest)
        free[row] = False
        had[owner[row]] += 1
        left[owner[row]] -= 1
        taken.append((row, reason))
    return taken


def unlikeness(cells: pd.DataFrame, reference: pd.DataFrame) -> tuple[Floats, Floats]:
    """How far cells lie from a reference: mean distance to the nearest `NEIGHBOURS` cells, and where that ranks.

    The axes are scaled by the reference's own spread. The rank is among the reference's cells, each measured to cells
    of other patients, since a new patient has no cell in it either.

    Returns:
        float64, shape (n,) both: distance, and share of the reference's cells that lie nearer.

    Raises:
        DataError: the reference has only one patient.
    """
    known = reference[list(EMBEDDING)].to_numpy(np.float64)
    groups, names = pd.factorize(reference["group"])
    if len(names) < 2:
        raise DataError(f"Expected a reference of at least 2 patients but got {len(names)}.")
    spread = known.std(axis=0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
    known = known * scale
    own = np.empty(len(known))
    for group in range(len(names)):
        inside = groups == group
        own[inside] = _nearest(known[inside], known[~inside])
    distance = _nearest(cells[list(EMBEDDING)].to_numpy(np.float64) * scale, known)
    return distance, np.searchsorted(np.sort(own), distance, side="left") / len(own)


def _nearest(points: Floats, among: Floats) -> Floats:
    from sklearn.neighbors import NearestNeighbors

    if not len(points):
        return np.empty(0)
    search = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(among)), algorithm="brute").fit(among)
    return np.asarray(search.kneighbors(points)[0].mean(axis=1), dtype=np.float64)
