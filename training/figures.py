"""Every figure of a classifier as a function of how much each patient counts.

A draw of the bootstrap, a swap of two models' answers and the plain figure are all weights of patients: 2 for a patient
drawn twice, 0 for one left out. So the cells are summed once per unit (a patient and a label), and a figure of
thousands of draws is a product of matrices over units, not a loop over tables of cells.

`all` is the positive class. A figure that is not defined on a draw is NaN there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from blastwatch.decision import CLASS_NAMES, POSITIVE, Thresholds

Floats = NDArray[np.float64]
HALF = 0.5  # probability from which a cell is called a blast, unless another is chosen
BINS = 15
QUARTER = 0.25
EXACT = 12  # decimals of a mean; beyond them two equal ones differ by the order of their sums
MOST_AT_ONCE = 4_000_000  # weights of cells held at once


@dataclass(frozen=True, eq=False, kw_only=True)
class Units:
    """Sums over the cells of every unit, shapes (units,) unless said otherwise.

    group: position of the unit's patient among the weights; ill: whether its label is `all`; cells: their number;
    right, said: cells answered rightly, and called a blast; mean: mean probability; squares: sum of squared errors;
    gaps: per bin of the calibration error the sum of probability less truth, shape (units, `BINS`); referred,
    decided_right: cells referred, and decided rightly; pairs: per ill and healthy unit the pairs of cells that are
    ranked rightly, ties for one half, shape (ill units, healthy units); ranked: unit of every cell, the most probable
    blast first, shape (cells,); ends: the last place of each distinct probability in that order.
    """

    groups: int
    threshold: float
    group: NDArray[np.int64]
    ill: NDArray[np.bool_]
    cells: Floats
    right: Floats
    said: Floats
    mean: Floats
    squares: Floats
    gaps: Floats
    referred: Floats
    decided_right: Floats
    pairs: Floats
    ranked: NDArray[np.int64]
    ends: NDArray[np.int64]


def units_of(
    table: pd.DataFrame,
    *,
    order: Sequence[str] | None = None,
    threshold: float = HALF,
    thresholds: Thresholds | None = None,
    ranking: ArrayLike | None = None,
) -> Units:
    """Sum a table of cells per patient and label.

    Args:
        table: with the columns group, label and probability (of a blast, from 0 to 1).
        order: the groups in the order of the weights; those of the table, sorted, where it is not given.
        threshold: probability from which a cell is called a blast.
        thresholds: of the three-way decision; without them nothing is referred.
        ranking: what AUROC and average precision rank the cells by, shape (cells,); the probability if not given.

    Raises:
        ValueError: where a probability is no number from 0 to 1, a label is unknown, or a group is not in `order`.
    """
    blast = table["probability"].to_numpy(np.float64)
    if len(table) == 0 or not ((blast >= 0) & (blast <= 1)).all():
        raise ValueError(f"Expected cells with a `probability` from 0 to 1 each but got {_worst(blast)}")
    strange = sorted(set(table["label"]) - set(CLASS_NAMES))
    if strange:
        raise ValueError(f"Expected the labels {', '.join(CLASS_NAMES)} but got {', '.join(map(str, strange))}")
    names = table["group"].astype(str)
    order = sorted(names.unique()) if order is None else list(order)
    group = pd.Index(order).get_indexer(pd.Index(names))
    if (group < 0).any():
        raise ValueError(f"Expected the groups {', '.join(order[:5])}... but got {names[group < 0].iloc[0]!r}")
    truth = np.asarray(table["label"] == CLASS_NAMES[POSITIVE])
    keys, unit = np.unique(2 * group + truth, return_inverse=True)
    score = blast if ranking is None else np.asarray(ranking, dtype=np.float64)

    def add(values: ArrayLike) -> Floats:
        return np.bincount(unit, np.asarray(values, dtype=np.float64), len(keys)).astype(np.float64)

    said = blast >= threshold
    cells = add(np.ones(len(blast)))
    bins = np.minimum((blast * BINS).astype(int), BINS - 1)
    gaps = np.bincount(unit * BINS + bins, blast - truth, len(keys) * BINS).astype(np.float64)
    limits = thresholds or Thresholds(hem=HALF, all=HALF)
    as_ill = blast >= limits.all
    as_healthy = ~as_ill & (blast <= limits.hem)
    if thresholds is None:
        as_ill, as_healthy = said, ~said
    falling = np.argsort(-score, kind="stable")
    ill = keys % 2 == 1
    return Units(
        groups=len(order),
        threshold=threshold,
        group=keys // 2,
        ill=ill,
        cells=cells,
        right=add(said == truth),
        said=add(said),
        mean=np.round(add(blast) / cells, EXACT),
        squares=add((blast - truth) ** 2),
        gaps=gaps.reshape(-1, BINS),
        referred=add(~as_ill & ~as_healthy),
        decided_right=add(np.where(truth, as_ill, as_healthy)),
        pairs=_pairs(score, unit, ill),
        ranked=unit[falling],
        ends=np.append(np.flatnonzero(np.diff(score[falling])), len(score) - 1),
    )


def _worst(blast: Floats) -> str:
    wrong = blast[~((blast >= 0) & (blast <= 1))]
    return f"{len(wrong)} others, the first {wrong[0]}" if len(wrong) else "no cell"


def _pairs(score: Floats, unit: NDArray[np.int64], ill: NDArray[np.bool_]) -> Floats:
    """Pairs of one blast and one normal cell that are ranked rightly: Mann-Whitney's U of every two units."""
    places, ends = np.cumsum(ill) - 1, np.cumsum(~ill) - 1
    of_ill = ill[unit]
    blasts, rows = score[of_ill], places[unit[of_ill]]
    found = np.zeros((int(ill.sum()), int((~ill).sum())))
    for number in np.flatnonzero(~ill):
        normal = np.sort(score[unit == number])
        below = (np.searchsorted(normal, blasts, "left") + np.searchsorted(normal, blasts, "right")) / 2
        found[:, ends[number]] = np.bincount(rows, weights=below, minlength=len(found))
    return found


Formula = Callable[[Units, Floats], Floats]


def figures(units: Units, weights: Floats, names: Sequence[str]) -> dict[str, Floats]:
    """The named figures of every draw.

    Args:
        weights: of the patients, shape (draws, groups), 0 or more.
        names: out of `FORMULAS`.

    Returns:
        Per name shape (draws,).
    """
    if weights.ndim != 2 or weights.shape[1] != units.groups:
        raise ValueError(f"Expected `weights` of shape (draws, {units.groups}) but got {weights.shape}")
    unknown = [name for name in names if name not in FORMULAS]
    if unknown:
        raise ValueError(f"Expected figures out of {', '.join(FORMULAS)} but got {', '.join(unknown)}")
    spread = np.asarray(weights, dtype=np.float64)[:, units.group]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: FORMULAS[name](units, spread) for name in names}


def plain(units: Units, names: Sequence[str]) -> dict[str, float]:
    """The named figures with every patient counted once."""
    found = figures(units, np.ones((1, units.groups)), names)
    return {name: float(values[0]) for name, values in found.items()}


def _confusion(units: Units, weights: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """True and missed blasts, true and missed normal cells."""
    ill, right = units.ill, units.right
    wrong = units.cells - right
    return weights @ (right * ill), weights @ (wrong * ill), weights @ (right * ~ill), weights @ (wrong * ~ill)


def _accuracy(units: Units, weights: Floats) -> Floats:
    return (weights @ units.right) / (weights @ units.cells)


def _f1(units: Units, weights: Floats) -> tuple[Floats, Floats, Floats]:
    """F1 of the blasts and of the normal cells (van Rijsbergen 1979, Information Retrieval, chapter 7), 0 where a class
    is neither there nor said; and the share of blasts."""
    blast, missed, normal, alarmed = _confusion(units, weights)
    both = missed + alarmed
    first, second = (
        np.divide(2 * right, 2 * right + both, out=np.zeros_like(right), where=2 * right + both > 0)
        for right in (blast, normal)
    )
    return first, second, (blast + missed) / (blast + missed + normal + alarmed)


def _weighted_f1(units: Units, weights: Floats) -> Floats:
    """Both F1 weighted by the cells of their class, as scikit-learn's `average="weighted"`."""
    blast, normal, share = _f1(units, weights)
    return share * blast + (1 - share) * normal


def _macro_f1(units: Units, weights: Floats) -> Floats:
    """Mean of both F1."""
    blast, normal, _ = _f1(units, weights)
    return (blast + normal) / 2


def _sensitivity(units: Units, weights: Floats) -> Floats:
    """Share of the blasts that are called so."""
    blast, missed, _, _ = _confusion(units, weights)
    return blast / (blast + missed)


def _specificity(units: Units, weights: Floats) -> Floats:
    """Share of the normal cells that are called so."""
    _, _, normal, alarmed = _confusion(units, weights)
    return normal / (normal + alarmed)


def _auroc(units: Units, weights: Floats) -> Floats:
    """Share of the pairs of a blast and a normal cell that are ranked rightly (Hanley & McNeil 1982,
    doi:10.1148/radiology.143.1.7063747). In the weights of patients it is bilinear, hence exact without the cells."""
    ill, healthy = weights[:, units.ill], weights[:, ~units.ill]
    pairs = (ill @ units.cells[units.ill]) * (healthy @ units.cells[~units.ill])
    return np.asarray(((ill @ units.pairs) * healthy).sum(axis=1) / pairs)


def _average_precision(units: Units, weights: Floats) -> Floats:
    """Sum over the distinct probabilities of the gain in recall times precision, without interpolation (Manning et al.
    2008, Introduction to Information Retrieval, section 8.4), as scikit-learn has it."""
    ill = units.ill[units.ranked]
    pieces = []
    for part in np.array_split(weights, -(-weights.shape[0] * len(units.ranked) // MOST_AT_ONCE)):
        cells = part[:, units.ranked]
        called = np.cumsum(cells, axis=1)[:, units.ends]
        found = np.cumsum(np.where(ill, cells, 0.0), axis=1)[:, units.ends]
        gain = np.diff(found, axis=1, prepend=0.0)
        precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
        pieces.append((gain * precision).sum(axis=1) / found[:, -1])
    return np.concatenate(pieces)


def _brier(units: Units, weights: Floats) -> Floats:
    """Mean squared error of the probability (Brier 1950, doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2)."""
    return (weights @ units.squares) / (weights @ units.cells)


def _ece(units: Units, weights: Floats) -> Floats:
    """Mean gap between probability and share of blasts over bins of equal width (Naeini et al. 2015, AAAI)."""
    return np.asarray(np.abs(weights @ units.gaps).sum(axis=1) / (weights @ units.cells))


def _referred(units: Units, weights: Floats) -> Floats:
    """Share of the cells that are referred to a person."""
    return (weights @ units.referred) / (weights @ units.cells)


def _accuracy_on_decided(units: Units, weights: Floats) -> Floats:
    """Share of the cells decided that are decided rightly."""
    return (weights @ units.decided_right) / (weights @ (units.cells - units.referred))


def _coverage_all(units: Units, weights: Floats) -> Floats:
    """Share of the blasts that are not decided to be normal cells: their class stands in the conformal set."""
    return _covered(units, weights, units.ill)


def _coverage_hem(units: Units, weights: Floats) -> Floats:
    """Share of the normal cells that are not decided to be blasts."""
    return _covered(units, weights, ~units.ill)


def _covered(units: Units, weights: Floats, of_class: NDArray[np.bool_]) -> Floats:
    covered = units.referred + units.decided_right
    return (weights @ (covered * of_class)) / (weights @ (units.cells * of_class))


def _coverage_over_ill(units: Units, weights: Floats) -> Floats:
    """Mean over ill patients of the share of their cells that have their class in the conformal set."""
    return _mean(weights[:, units.ill], _share_covered(units)[units.ill])


def _coverage_over_healthy(units: Units, weights: Floats) -> Floats:
    return _mean(weights[:, ~units.ill], _share_covered(units)[~units.ill])


def _share_covered(units: Units) -> Floats:
    return (units.referred + units.decided_right) / units.cells


def _mean(weights: Floats, values: Floats) -> Floats:
    return np.asarray((weights @ values) / weights.sum(axis=1))


def _share_right(units: Units) -> Floats:
    return units.right / units.cells


def _mean_accuracy(units: Units, weights: Floats) -> Floats:
    """Mean over patients of the share of their cells answered rightly."""
    return _mean(weights, _share_right(units))


def _specificity_over_healthy(units: Units, weights: Floats) -> Floats:
    return _mean(weights[:, ~units.ill], _share_right(units)[~units.ill])


def _sensitivity_over_ill(units: Units, weights: Floats) -> Floats:
    return _mean(weights[:, units.ill], _share_right(units)[units.ill])


def quarter(patients: ArrayLike) -> Floats:
    """A quarter of so many patients, rounded and one at least."""
    return np.maximum(1, np.rint(QUARTER * np.asarray(patients, dtype=np.float64)))


def _worst_quarter_accuracy(units: Units, weights: Floats) -> Floats:
    """Mean over the quarter of the patients, rounded and one at least, whose cells are answered worst."""
    share = _share_right(units)
    order = np.argsort(share, kind="stable")
    ranked = weights[:, order]
    wanted = quarter(ranked.sum(axis=1))[:, None]
    before = np.cumsum(ranked, axis=1) - ranked
    taken = np.clip(wanted - before, 0, ranked)
    return np.asarray((taken @ share[order]) / wanted[:, 0])


def _auroc_of_mean_probability(units: Units, weights: Floats) -> Floats:
    """AUROC over patients, by the mean probability of their cells."""
    first, second = units.mean[units.ill][:, None], units.mean[~units.ill]
    ranked = (first > second) + (first == second) / 2
    ill, healthy = weights[:, units.ill], weights[:, ~units.ill]
    return np.asarray(((ill @ ranked) * healthy).sum(axis=1) / (ill.sum(axis=1) * healthy.sum(axis=1)))


def _majority_accuracy(units: Units, weights: Floats) -> Floats:
    """Share of the patients whose label is what half of their cells or more, for `all`, are called."""
    return _mean(weights, ((units.said / units.cells >= HALF) == units.ill).astype(float))


def _mean_probability_accuracy(units: Units, weights: Floats) -> Floats:
    """Share of the patients whose label is what the mean probability of their cells says."""
    return _mean(weights, ((units.mean >= units.threshold) == units.ill).astype(float))


CELLS: Mapping[str, Formula] = {
    "accuracy": _accuracy,
    "weighted_f1": _weighted_f1,
    "macro_f1": _macro_f1,
    "auroc": _auroc,
    "average_precision": _average_precision,
    "sensitivity": _sensitivity,
    "specificity": _specificity,
    "brier": _brier,
    "ece": _ece,
}
DECISIONS: Mapping[str, Formula] = {"referred": _referred, "accuracy_on_decided": _accuracy_on_decided}
COVERAGES: Mapping[str, Formula] = {
    "coverage_hem": _coverage_hem,
    "coverage_all": _coverage_all,
    "coverage_over_healthy": _coverage_over_healthy,
    "coverage_over_ill": _coverage_over_ill,
}
PATIENTS: Mapping[str, Formula] = {
    "mean_accuracy": _mean_accuracy,
    "worst_quarter_accuracy": _worst_quarter_accuracy,
    "auroc_of_mean_probability": _auroc_of_mean_probability,
    "specificity_over_healthy": _specificity_over_healthy,
    "sensitivity_over_ill": _sensitivity_over_ill,
    "majority_accuracy": _majority_accuracy,
    "mean_probability_accuracy": _mean_probability_accuracy,
}
FORMULAS: Mapping[str, Formula] = {**CELLS, **DECISIONS, **COVERAGES, **PATIENTS}
"""Every figure by name: over cells, over decisions, over patients."""

AT_THRESHOLD = ("accuracy", "weighted_f1", "macro_f1", "sensitivity", "specificity")
"""The figures over cells that move with the threshold."""
RIGHT_OR_WRONG = ("majority_accuracy", "mean_probability_accuracy")
"""The shares of patients who are right."""
OF_ILL = ("sensitivity", "sensitivity_over_ill", "coverage_all", "coverage_over_ill")
OF_HEALTHY = ("specificity", "specificity_over_healthy", "coverage_hem", "coverage_over_healthy")
"""The figures that read the cells of one label alone."""
