"""Images that do not look like the rest, and subjects that look too much like each other.

Both are for a person to judge: neither ties subjects nor stops a split.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.looks import PREPROCESSING, SATURATED

# An image is odd beyond so many robust standard deviations (1.4826 times the median absolute deviation) of all images.
BEYOND = 6.0
ROBUST = 1.4826
FULL_FRAME = float(PREPROCESSING.crop**2)  # px of the image
MOST_SATURATED = 0.02  # share of the cell's pixels that may be full in all channels
# Of 1,194 cells of C-NMC none fills more than 0.50 of its frame; the disc in a square is 0.79, an image without a dark
# background is 1, but for what is black in it.
MOST_FILLED = 0.95
BACKGROUND = "background"
SIZES = ("cell_area", "focus")  # compared as factors
STAINS = ("od_red", "od_green", "od_blue", "brightness")
PROFILE = ("cell_area", "elongation", "od_red", "od_green", "od_blue", "dark_share", "contrast", "focus")
FEWEST = 20  # cells of a subject below which its look says nothing
HALVES = 20  # ways in which each subject is halved


@dataclass(frozen=True, kw_only=True)
class Oddity:
    """kind: `empty`, `background` (not dark), `saturated`, `frame` (width, height in px), `size`, `focus` or `stain`;
    value, in the unit of the statistic, lies outside low to high."""

    path: str
    kind: str
    statistic: str
    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Alike:
    """Two subjects; distance: of their mean looks, in units of what parts two halves of one subject (the median)."""

    a: str
    b: str
    distance: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def oddities(rows: pd.DataFrame, statistics: pd.DataFrame) -> list[Oddity]:
    """Images that are empty, without a dark background, saturated, or of another frame, size, focus or stain than the
    others, by path.

    Args:
        rows: of the manifest. statistics: as `Looks.table` gives them.
    """
    found = list(_odd_frames(rows))
    empty = statistics["cell_area"] == 0
    found += [
        Oddity(path=path, kind="empty", statistic="cell_area", value=0.0, low=1.0, high=FULL_FRAME)
        for path in statistics.loc[empty, "path"]
    ]
    filled = statistics[~empty]
    found += _without_background(rows, filled)
    saturated = filled.loc[filled[SATURATED] > MOST_SATURATED, ["path", SATURATED]]
    found += [
        Oddity(path=path, kind=SATURATED, statistic=SATURATED, value=float(value), low=0.0, high=MOST_SATURATED)
        for path, value in saturated.itertuples(index=False)
    ]
    for name in (*SIZES, *STAINS):
        kind = {"cell_area": "size", "focus": "focus"}.get(name, "stain")
        values = filled[name].to_numpy(np.float64)
        low, high = limits(values, factor=name in SIZES)
        for index in np.flatnonzero((values < low) | (values > high)).tolist():
            path = str(filled["path"].iat[index])
            found.append(Oddity(path=path, kind=kind, statistic=name, value=float(values[index]), low=low, high=high))
    return sorted(found, key=lambda odd: (odd.path, odd.kind, odd.statistic))


def limits(values: NDArray[np.float64], *, factor: bool) -> tuple[float, float]:
    """Range outside of which a value is odd; with `factor` it is found on the logarithm."""
    if not len(values):
        return -np.inf, np.inf
    scaled = np.log(np.maximum(values, 1e-9)) if factor else values
    middle = float(np.median(scaled))
    # Of equal values the deviation is 0: then a part in a hundred is no oddity.
    spread = max(ROBUST * float(np.median(np.abs(scaled - middle))), 0.01 if factor else 0.01 * abs(middle))
    low, high = middle - BEYOND * spread, middle + BEYOND * spread
    return (float(np.exp(low)), float(np.exp(high))) if factor else (low, high)


def _without_background(rows: pd.DataFrame, statistics: pd.DataFrame) -> Iterator[Oddity]:
    """Images of which nearly every pixel counts as cell: fields, cells that were not cut out, bright backgrounds."""
    sides = rows.set_index("path").loc[statistics["path"], ["width", "height"]].clip(upper=PREPROCESSING.crop)
    most = MOST_FILLED * (sides["width"] * sides["height"]).to_numpy(np.float64)
    for path, area, limit in zip(statistics["path"], statistics["cell_area"], most.tolist(), strict=True):
        if area > limit:
            yield Oddity(path=path, kind=BACKGROUND, statistic="cell_area", value=float(area), low=1.0, high=limit)


def without_background(odd: Iterable[Oddity]) -> int:
    """How many images have no dark background; of equal ones the first counts."""
    return sum(found.kind == BACKGROUND for found in odd)


def background_told(without: int) -> str:
    """What the audit cannot do with so many images that have no dark background, for people; empty for none."""
    if not without:
        return ""
    return (
        f"{without} images have no dark background. The audit is made for single cells on black: of these it misses "
        "most copies that were shifted or cropped, and some of the others. Link patients that share any in audit.links."
    )


def _odd_frames(rows: pd.DataFrame) -> Iterator[Oddity]:
    """Images whose width or height is not the one that nine in ten images of their source have."""
    for _, of_source in rows.groupby("source"):
        for side in ("width", "height"):
            usual = of_source[side].mode().to_numpy()[0]
            if (of_source[side] == usual).mean() < 0.9:
                continue  # a source of single cells cut out at their own size has no usual frame
            for path, value in of_source.loc[of_source[side] != usual, ["path", side]].itertuples(index=False):
                yield Oddity(
                    path=path, kind="frame", statistic=side, value=float(value), low=float(usual), high=float(usual)
                )


def alike_subjects(rows: pd.DataFrame, statistics: pd.DataFrame) -> list[Alike]:
    """Pairs of subjects whose cells look as alike as two halves of one subject do: perhaps one person, or one slide.

    The look of a subject is the mean of its cells' statistics, whitened by the spread within subjects (Hotelling's
    T-squared without its scale). A distance below the median of that between random halves of one subject, scaled to
    equal numbers of cells, is reported. Subjects of fewer than `FEWEST` cells are left aside.
    """
    table = statistics.merge(rows[["path", "subject"]], on="path").sort_values("path")
    table = table[table.groupby("subject")["path"].transform("size") >= FEWEST]
    if table["subject"].nunique() < 2:
        return []
    values = table[list(PROFILE)].to_numpy(np.float64, copy=True)
    for name in SIZES:
        values[:, PROFILE.index(name)] = np.log(np.maximum(values[:, PROFILE.index(name)], 1e-9))
    subjects = table["subject"].to_numpy()
    whitened = _whiten(values, subjects)
    members = {str(name): whitened[subjects == name] for name in sorted(set(subjects))}
    usual = _between_halves(list(members.values()))
    pairs = [
        Alike(a=a, b=b, distance=round(_distance(members[a], members[b]) / usual, 3))
        for a, b in combinations(members, 2)
    ]
    return sorted((pair for pair in pairs if pair.distance <= 1), key=lambda pair: pair.distance)


def _whiten(values: NDArray[np.float64], subjects: NDArray[np.object_]) -> NDArray[np.float64]:
    """Turn and scale so that the covariance within subjects is the identity."""
    means = pd.DataFrame(values).groupby(subjects).transform("mean").to_numpy()
    spread = np.cov((values - means).T)
    scales, axes = np.linalg.eigh(spread)
    return np.asarray(values @ (axes / np.sqrt(np.maximum(scales, 1e-12))))


def _distance(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Distance of the means, in standard errors: comparable between pairs of any size."""
    return float(np.linalg.norm(one.mean(axis=0) - two.mean(axis=0)) / np.sqrt(1 / len(one) + 1 / len(two)))


def _between_halves(members: list[NDArray[np.float64]]) -> float:
    random = np.random.default_rng(0)
    distances = []
    for cells in members:
        for _ in range(HALVES):
            order = random.permutation(len(cells))
            half = len(cells) // 2
            distances.append(_distance(cells[order[:half]], cells[order[half:]]))
    return max(float(np.median(distances)), 1e-9)
