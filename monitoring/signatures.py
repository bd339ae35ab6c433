"""What probably happened: the cause whose simulated shift moved the image statistics the same way as a window did.

When a version is packaged, a few of its reference cells are shifted (`monitoring.shifts`) and measured: the mean
movement of the statistics is the signature of that cause, on this version's own cells. A window that alarms is a
movement too, and its cause is the signature with the largest cosine to it.

    1. Sizes, contrast and focus are compared by their logarithm, since they change by factors.
    2. Movements are counted in spreads between patients: a step of the size by which patients differ anyway says
       little. Statistics of patients move together (a dark stain is dark in three channels), so the spread is the
       covariance of patients' means, shrunk (Ledoit & Wolf 2004, J Multivar Anal 88:365), and movements are whitened
       by it. The cosine is then that of Mahalanobis's geometry.
    3. A cell that is enlarged enough reaches the edge of the crop, and what moves then is no longer the same direction.
       So pixel size has a second signature, of its full strength (`FAR`). What another pixel size does to the camera's
       finest detail cannot be told from a crop, so no movement of that is part of either (`UNKNOWN_IN_CROPS`).
    4. A changed mix can only move so far: to where all patients are ill, or none. Of a movement beyond that in its
       direction it explains no more (`reach`), so larger cells than any mix has are another pixel size.
    5. Where no signature has a cosine of `NEAR`, the cause is `unknown`.

A crop is smaller than the camera's image, so it is enlarged to the camera's pixels, shifted, and cropped again.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from blastwatch.images import Pixels, Preprocessing, crop_cell
from monitoring.cause_words import in_words
from monitoring.shifts import SHIFTS, field, shift
from monitoring.statistics import BACKGROUND_LEVEL, STATISTICS, TABLE, image_statistics

Floats = NDArray[np.float64]

FORMAT = 3
READABLE = (1, 2, FORMAT)  # 1: without `FAR`; 2: without `reach`
STRENGTH = 0.5  # of the simulated shifts
FAR = {"pixel_size far": ("pixel_size", 1.0)}
"""Further signatures of a cause: name of the signature -> shift and strength."""
UNKNOWN_IN_CROPS = {"pixel_size": ("chroma_noise",)}
"""Statistics whose movement under a shift is not that of its simulation on crops."""
CELLS = 24  # that are shifted; before and after are the same cells, so a few tell the direction
NEAR = 0.6
CLOSE = 0.1  # causes whose cosine is this near to the best one's are named beside it
MOST = 3
UNKNOWN = "unknown"

FRINGE = 2  # px of a crop over which its resampling mixed the cell with the background
CONTINUED = 2.0  # px of a crop, standard deviation of the average that continues the cell over its outline
SMALLEST_SPREAD = 0.005  # a step of half a per cent says nothing, however alike the patients are
# An enlarged crop lacks the camera's finest detail, so smaller steps of what lives there are not those of real images.
# Hardly any cell reaches the edge of its crop, so by the patients alone the first few that do would outweigh all else.
LEAST_SPREAD = {"chroma_noise": 0.2, "border": 0.03}
_SMALLEST_VALUE = 1e-3  # whose logarithm is taken
_FACTORS = {row.name for row in TABLE if row.ratio}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """word: what is said; both_ways: whether the opposite movement is of the same cause (paler or darker, say)."""

    word: str
    both_ways: bool


DISEASE_MIX, FIELD = "disease_mix", "field"
CAUSES: dict[str, Cause] = {
    "stain": Cause(word="stain", both_ways=True),
    "white_balance": Cause(word="white balance", both_ways=True),
    "defocus": Cause(word="focus", both_ways=False),
    "darker": Cause(word="illumination", both_ways=True),
    "uneven": Cause(word="illumination", both_ways=False),
    "jpeg": Cause(word="compression", both_ways=False),
    "pixel_size": Cause(word="pixel size", both_ways=True),
    "noise": Cause(word="noise", both_ways=False),
    DISEASE_MIX: Cause(word="disease mix", both_ways=True),
    FIELD: Cause(word="another kind of image", both_ways=False),
}
"""What is said of each signature; two signatures may have one word."""


def _cause(signature: str) -> Cause:
    return CAUSES[FAR[signature][0] if signature in FAR else signature]


def transform(frame: pd.DataFrame, columns: Sequence[str] = STATISTICS) -> Floats:
    """The statistics as they are compared: the logarithm of those that change by factors; shape (n, columns)."""
    values = frame[list(columns)].to_numpy(dtype=np.float64, copy=True)
    factors = [index for index, name in enumerate(columns) if name in _FACTORS]
    values[:, factors] = np.log(np.maximum(values[:, factors], _SMALLEST_VALUE))
    return values


def measure_signatures(
    reference: pd.DataFrame,
    crops_of: Callable[[NDArray[np.intp]], Pixels],
    preprocessing: Preprocessing,
    *,
    cells: int = CELLS,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure every cause's signature on the reference; the result stands in `drift.json` as `signatures`.

    Args:
        reference: group, label and statistics, n rows of two groups or more.
        crops_of: given positions of rows, shape (k,), their crops as the network sees them: uint8, (k, size, size, 3).
        cells: of them that are shifted, taken evenly from the groups.

    Returns:
        `format`, `columns` (of the statistics), `centre` (mean of the patients' means) and `spread` (their standard
        deviation), `whitening` (a matrix), `parameters` (how many it is fitted with), `movements`: by name of a cause
        how far it moves each, `causes`: these whitened, as vectors of length 1; and `reach`: of causes that have one,
        how far along their vector they can move. A disease mix is there only where both classes are.

    Raises:
        ValueError: where there is one group.
    """
    values = transform(reference)
    means = means_by_patient(values, reference["group"])
    if len(means) < 2:
        raise ValueError(f"Expected at least 2 groups in the reference but got {len(means)}")
    centre, spread, whitening = between_patients(means, STATISTICS)
    random = np.random.default_rng(seed)
    chosen = _spread_over(reference["group"], cells, random)
    movements = _shifted(crops_of(np.sort(chosen)), preprocessing, random)
    reach: dict[str, list[float]] = {}
    if reference["label"].nunique() > 1:
        # Each patient weighs the same, as in centre and spread.
        ill, well = (_by_patient(values, reference, label) for label in ("all", "hem"))
        movements[DISEASE_MIX] = ill.mean(axis=0) - well.mean(axis=0)
        length = float(np.linalg.norm((movements[DISEASE_MIX] / spread) @ whitening))
        share = len(ill) / (len(ill) + len(well))
        reach[DISEASE_MIX] = [-share * length, (1 - share) * length]
    vectors = {name: unit((movement / spread) @ whitening) for name, movement in movements.items()}
    return {
        "format": FORMAT,
        "columns": list(STATISTICS),
        "centre": centre.tolist(),
        "spread": spread.tolist(),
        "whitening": whitening.tolist(),
        "parameters": effective_parameters(means, STATISTICS),
        "movements": {name: movement.tolist() for name, movement in movements.items() if movement.any()},
        "causes": {name: vector.tolist() for name, vector in vectors.items() if vector.any()},
        "reach": reach,
    }


def rank(signatures: dict[str, Any], mean: Floats) -> list[tuple[str, float]]:
    """Each word of `CAUSES` with its largest cosine to a window's movement, the largest first.

    Args:
        signatures: from `measure_signatures`.
        mean: of the window's `transform`, shape (statistics,).

    Returns:
        Cosines from -1 to 1; all 0 where the window lies exactly on the reference's centre.
    """
    moved = _moved(signatures, mean) @ np.array(signatures["whitening"])
    best: dict[str, float] = {}
    for name, vector in signatures["causes"].items():
        cause, reach = _cause(name), signatures.get("reach", {}).get(name)
        cosine = _explained(moved, np.array(vector), reach) if reach else float(unit(moved) @ np.array(vector))
        best[cause.word] = max(abs(cosine) if cause.both_ways else cosine, best.get(cause.word, -1.0))
    return sorted(best.items(), key=lambda item: -item[1])


def _explained(moved: Floats, vector: Floats, reach: Sequence[float]) -> float:
    """The cosine of a movement to a signature, less where it is farther along it than the cause can move: the root of
    the share of its square that the cause explains. Not negative.

    Args:
        vector: of length 1. reach: how far along it the cause can move, from below 0 to above.
    """
    along = float(moved @ vector)
    least, most = reach
    by_cause = min(max(along, least), most)
    return math.sqrt(by_cause * (2 * along - by_cause)) / float(np.linalg.norm(moved)) if by_cause else 0.0


def name_causes(
    signatures: dict[str, Any] | None, window: pd.DataFrame, *, before: pd.DataFrame | None = None
) -> list[dict[str, str | None]]:
    """What probably happened to a window that alarmed, the likeliest first.

    Args:
        signatures: None for a package that was made before there were any.
        window: rows with the columns `STATISTICS`.
        before: what the window is a movement from, such rows as well; None for the reference. Needed where rows are
            means over cells: the logarithm of a mean is not the mean of the logarithms.

    Returns:
        One to three of {"cause": a word of `CAUSES` or "unknown", "evidence": a sentence}, each with `changed`, `check`
        and `images` of `monitoring.cause_words.in_words`.
    """
    if signatures is None:
        evidence = "this version was packaged before causes were measured; one that is packaged anew names them"
        return [_named(UNKNOWN, evidence)]
    columns = signatures["columns"]
    if signatures.get("format") not in READABLE or not set(columns) <= set(STATISTICS):
        evidence = "this version's signatures are of other statistics than those that are measured now"
        return [_named(UNKNOWN, evidence)]
    mean = transform(window, columns).mean(axis=0)
    if before is not None:
        mean += np.array(signatures["centre"]) - transform(before, columns).mean(axis=0)
    ranked = rank(signatures, mean)
    most = _most_moved(_moved(signatures, mean), columns)
    word, largest = ranked[0]
    if largest < NEAR:
        evidence = (
            f"no simulated cause moves the statistics alike; the nearest is {word} (cosine {largest:.2f}); {most}"
        )
        return [_named(UNKNOWN, evidence)]
    moved = dict(zip(columns, (mean - np.array(signatures["centre"])).tolist(), strict=True))
    return [
        _named(word, f"the statistics moved as under a simulated change (cosine {cosine:.2f}); {most}", moved)
        for word, cosine in ranked[:MOST]
        if cosine >= max(NEAR, largest - CLOSE)
    ]


def _named(word: str, evidence: str, moved: Mapping[str, float] | None = None) -> dict[str, str | None]:
    return {"cause": word, "evidence": evidence, **in_words(word, moved or {})}


def _moved(signatures: dict[str, Any], mean: Floats) -> Floats:
    """Distance from the reference's centre, in spreads between patients, statistic by statistic."""
    return np.asarray((mean - np.array(signatures["centre"])) / np.array(signatures["spread"]))


def _most_moved(moved: Floats, columns: Sequence[str], shown: int = 3) -> str:
    order = np.argsort(-np.abs(moved))[:shown]
    parts = [f"{columns[index]} {abs(moved[index]):.1f} {'up' if moved[index] > 0 else 'down'}" for index in order]
    return f"in spreads between patients: {', '.join(parts)}"


def means_by_patient(values: Floats, groups: pd.Series) -> Floats:
    """Mean of each group's rows, in the order of the sorted groups; shape (groups, statistics)."""
    return np.asarray(pd.DataFrame(values).groupby(groups.to_numpy()).mean().to_numpy(), dtype=np.float64)


def between_patients(means: Floats, columns: Sequence[str]) -> tuple[Floats, Floats, Floats]:
    """Centre and spread of the patients' means, and the symmetric inverse root of their shrunk correlation."""
    centre, spread, covariance, _ = _shrunk(means, columns)
    # Patients exactly alike leave no covariance; a tenth of a spread is the least that counts.
    roots, axes = np.linalg.eigh(covariance)
    return centre, spread, np.asarray(axes @ np.diag(1 / np.sqrt(np.maximum(roots, 0.01))) @ axes.T)


def effective_parameters(means: Floats, columns: Sequence[str]) -> float:
    """With how many numbers a direction is fitted to patients: each axis of the shrunk correlation counts by the share
    of it that is not the shrinkage's (the degrees of freedom of ridge regression: Hastie, Tibshirani, Friedman 2009,
    The Elements of Statistical Learning, section 3.4.1). 0 to the number of statistics."""
    _, _, covariance, shrinkage = _shrunk(means, columns)
    roots = np.linalg.eigvalsh(covariance)
    return float((1 - shrinkage * roots.mean() / np.maximum(roots, 1e-12)).clip(0).sum())


def _shrunk(means: Floats, columns: Sequence[str]) -> tuple[Floats, Floats, Floats, float]:
    """Centre and spread, the shrunk correlation, and how far it is shrunk, 0 to 1."""
    from sklearn.covariance import ledoit_wolf

    least = [LEAST_SPREAD.get(name, SMALLEST_SPREAD) for name in columns]
    centre, spread = means.mean(axis=0), np.maximum(means.std(axis=0, ddof=1), least)
    covariance, shrinkage = ledoit_wolf((means - centre) / spread)
    return centre, spread, covariance, float(shrinkage)


def _by_patient(values: Floats, reference: pd.DataFrame, label: str) -> Floats:
    """Mean of each patient's cells of one label; shape (patients, statistics)."""
    chosen = (reference["label"] == label).to_numpy()
    return means_by_patient(values[chosen], reference.loc[chosen, "group"])


def _spread_over(groups: pd.Series, cells: int, random: np.random.Generator) -> NDArray[np.intp]:
    """Positions of so many cells, the groups in turn, in each by chance."""
    order = random.permutation(len(groups))
    turn = pd.Series(order).groupby(groups.to_numpy()[order]).cumcount().to_numpy()
    return np.asarray(order[np.argsort(turn, kind="stable")[:cells]])


def _shifted(crops: Pixels, preprocessing: Preprocessing, random: np.random.Generator) -> dict[str, Floats]:
    """By shift, how far the statistics of the same cells move in the mean."""
    side = preprocessing.crop
    images = [enlarged(crop, side) for crop in crops]
    plain = _mean(images, preprocessing)
    found = {}
    for signature, (name, strength) in ({name: (name, STRENGTH) for name in SHIFTS} | FAR).items():
        moved = _mean([shift(image, name, strength, random=random) for image in images], preprocessing) - plain
        moved[[STATISTICS.index(column) for column in UNKNOWN_IN_CROPS.get(name, ())]] = 0
        found[signature] = moved
    fields = [field(np.stack(images), random=random) for _ in range(min(len(images), 8))]
    return found | {FIELD: _mean(fields, preprocessing) - plain}


def enlarged(crop: Pixels, side: int) -> Pixels:
    """A crop at the camera's size, with the sharp outline on exact black that segmented cells have.

    Enlarging alone would smear the outline into a wide dark ring, which every shift would then move. So the cell is
    continued over its outline first, by its own nearest colours, and cut out again afterwards.

    Args:
        crop: uint8, shape (size, size, 3); side: px of the result.
    """
    from scipy.ndimage import binary_erosion, gaussian_filter

    mask = crop.max(axis=2) > BACKGROUND_LEVEL
    inside = binary_erosion(mask, iterations=FRINGE)
    if not inside.any():
        inside = mask
    levels = np.where(inside[..., None], crop, 0).astype(np.float32)
    share = gaussian_filter(inside.astype(np.float32), CONTINUED)
    near = gaussian_filter(levels, (CONTINUED, CONTINUED, 0)) / np.maximum(share, 1e-6)[..., None]
    whole = np.where(inside[..., None], levels, near).clip(1, 255).round().astype(np.uint8)
    grown = np.array(Image.fromarray(whole).resize((side, side), Image.Resampling.BICUBIC))
    cut = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize((side, side), Image.Resampling.BILINEAR)
    grown[np.asarray(cut) < 128] = 0
    return grown


def _mean(images: Sequence[Pixels], preprocessing: Preprocessing) -> Floats:
    rows = [image_statistics(crop_cell(image, preprocessing), preprocessing) for image in images]
    return np.asarray(transform(pd.DataFrame(rows)).mean(axis=0))


def unit(vector: Floats) -> Floats:
    length = float(np.linalg.norm(vector))
    return vector / length if length > 0 else np.zeros_like(vector)
