"""Is one model better than another on the same cells of the same patients? Two answers, with the patient as the unit.

The paired cluster bootstrap draws whole patients within each label and takes both models' cells of those drawn: the
spread of the difference over the draws gives its interval (Efron & Tibshirani 1993, An Introduction to the Bootstrap,
chapter 8; for clusters Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x).

The permutation test swaps the two models' answers to all cells of a patient, patient by patient. Were the models alike,
every such swap would be as likely as what was seen (Fisher 1935, The Design of Experiments, section 21; for areas under
the ROC curve Venkatraman & Begg 1996, doi:10.1093/biomet/83.4.835, and Bandos, Rockette & Gur 2005,
doi:10.1002/sim.2149). Figures that rank cells pool those of both models in a swap, so each model's probabilities are
first replaced by their ranks among its own: a model that is calibrated otherwise but ranks alike is no other model.

Both speak of the two trained models as they are, over patients like these. What another training run of the same recipe
would give is a third source of chance that one run of each cannot show; docs/evaluation.md has it simulated.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from blastwatch.errors import DataError
from blastwatch.intervals import DIFFERENCE, LEVEL, bounds, draw_patients
from blastwatch.package import PREDICTION_COLUMNS
from training.figures import EXACT, OF_HEALTHY, OF_ILL, Units, figures, units_of
from training.intervals import patients_behind

COMPARED = (
    "weighted_f1", "auroc", "mean_accuracy", "specificity_over_healthy", "sensitivity_over_ill",
    "worst_quarter_accuracy",
)  # fmt: skip
COLUMNS = ("baseline", "metric", "reference_value", "baseline_value", "difference", "low", "high", "p", "p_holm")
RESAMPLES, PERMUTATIONS = 2000, 10_000
TIED = 1e-10  # differences nearer than this are the same but for the rounding of their sums
MOST_AT_ONCE = 200_000  # marks of swaps, one a patient, held at once
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """first, second: the figure of both models; difference: first less second; low, high: its interval."""

    first: float
    second: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """difference: first less second; p: two-sided; exact: whether all swaps were looked at; swaps: how many were."""

    difference: float
    p: float
    exact: bool
    swaps: int


class Pair:
    """Two models' answers to the same cells, summed by patient and model.

    Args:
        first, second: tables with the columns `PREDICTION_COLUMNS`, in any order of rows.

    Raises:
        DataError: where the tables do not hold the same cells of the same patients, or only one label.
    """

    def __init__(self, first: pd.DataFrame, second: pd.DataFrame) -> None:
        first, second = same_cells(first, second)
        self.cells = first
        groups = sorted(first["group"].astype(str).unique())
        self.patients = len(groups)
        self._units = _joined(first, second, groups)

    def draw(self, *, resamples: int, seed: int) -> Floats:
        """Patients drawn with replacement within each label, shape (resamples, patients)."""
        return draw_patients(self.cells, resamples=resamples, seed=seed)

    def values(self, names: Sequence[str], draws: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """The figures of both models on the same draws."""
        none = np.zeros_like(draws)
        return (
            figures(self._units, np.hstack([draws, none]), names),
            figures(self._units, np.hstack([none, draws]), names),
        )

    def behind(self, name: str) -> int:
        """Patients of the label that has fewer, among those a figure reads."""
        # Each patient stands in the units once per model.
        return patients_behind(self._units, name) // 2

    def others(self, name: str) -> int:
        """Patients of the label that has more, where a figure reads both; else 0."""
        return 0 if name in {*OF_ILL, *OF_HEALTHY} else self.patients - self.behind(name)

    def swapped(self, names: Sequence[str], swaps: NDArray[np.bool_]) -> dict[str, Floats]:
        """Difference of the figures after swapping the patients that `swaps`, shape (n, patients), marks."""
        kept = ~swaps
        first = figures(self._units, np.hstack([kept, swaps]).astype(np.float64), names)
        second = figures(self._units, np.hstack([swaps, kept]).astype(np.float64), names)
        return {name: first[name] - second[name] for name in names}


def same_cells(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both tables by path, after checking that they hold the same cells: paths, pixels, labels and patients."""
    tables = []
    for which, table in (("first", first), ("second", second)):
        missing = [name for name in PREDICTION_COLUMNS if name not in table.columns]
        if missing:
            raise DataError(f"Expected the columns {', '.join(PREDICTION_COLUMNS)} in the {which} table but "
                            f"{', '.join(missing)} missing. Take what blastwatch evaluate wrote.")  # fmt: skip
        if table["path"].duplicated().any():
            twice = table.loc[table["path"].duplicated(), "path"].iloc[0]
            raise DataError(f"Expected every cell once in the {which} table but {twice} stands in it twice.")
        tables.append(table.sort_values("path", ignore_index=True))
    one, two = tables
    apart = sorted(set(one["path"]) ^ set(two["path"]))
    if apart:
        raise DataError(
            f"Expected both models' answers to the same cells but {len(apart)} are in one table alone, the first "
            f"{apart[0]}. Evaluate both on the same split."
        )
    for column, what in (("pixel_sha256", "pixels"), ("label", "labels"), ("group", "groups of patients")):
        differs = one[column].astype(str) != two[column].astype(str)
        if differs.any():
            row = int(differs.to_numpy().argmax())
            raise DataError(
                f"Expected the same {what} in both tables but {int(differs.sum())} cells differ, the first "
                f"{one['path'][row]}: {one[column][row]} and {two[column][row]}. Evaluate both on the same data, audit "
                "and split."
            )
    if one["label"].nunique() < 2:
        raise DataError(f"Expected cells of both labels but got only {', '.join(one['label'].unique())}.")
    return one, two


def _joined(first: pd.DataFrame, second: pd.DataFrame, groups: list[str]) -> Units:
    """Both models' cells in one table, each model's patients apart: what weighs a patient's cells weighs the model."""
    both = pd.concat([first.assign(group=_named(0, first["group"])), second.assign(group=_named(1, second["group"]))])
    ranks = [table["probability"].rank(method="average").to_numpy() for table in (first, second)]
    order = [name for model in range(2) for name in _named(model, pd.Series(groups))]
    return units_of(both, order=order, ranking=np.concatenate(ranks))


def _named(model: int, groups: "pd.Series[str]") -> "pd.Series[str]":
    return f"{model}/" + groups.astype(str)


def paired_bootstrap(
    first: pd.DataFrame,
    second: pd.DataFrame,
    metric: str,
    *,
    resamples: int = RESAMPLES,
    seed: int = 1,
    level: float = LEVEL,
) -> Difference:
    """Difference of one figure with its interval by patient (`blastwatch.intervals.bounds`).

    Args:
        first, second: tables with the columns `PREDICTION_COLUMNS`, of the same cells.
        metric: a name of `training.figures.FORMULAS`, such as weighted_f1, auroc or specificity_over_healthy.
        level: of the interval, two-sided.

    Raises:
        DataError: where the cells do not agree.
        ValueError: where the metric is unknown.
    """
    return _differences(Pair(first, second), (metric,), resamples=resamples, seed=seed, level=level)[metric]


def _differences(pair: Pair, names: Sequence[str], *, resamples: int, seed: int, level: float) -> dict[str, Difference]:
    every = np.concatenate([np.ones((1, pair.patients)), pair.draw(resamples=resamples, seed=seed)])
    first, second = pair.values(names, every)
    found = {}
    for name in names:
        apart = np.round(first[name] - second[name], EXACT)
        low, high = bounds(
            apart[1:],
            pair.behind(name),
            level,
            value=float(apart[0]),
            within=DIFFERENCE,
            others=pair.others(name),
        )
        found[name] = Difference(
            first=float(first[name][0]), second=float(second[name][0]), difference=float(apart[0]), low=low, high=high
        )
    return found


def permutation_test(
    first: pd.DataFrame, second: pd.DataFrame, metric: str, *, permutations: int = PERMUTATIONS, seed: int = 1
) -> Permutation:
    """Two-sided p value of the difference of one figure, by swapping the two models' answers patient by patient.

    Where the 2^patients ways to swap are no more than `permutations`, all are looked at and p is their share that is as
    far from zero as what was seen. Else random ones are, and p = (b + 1) / (permutations + 1) with b of them as far: it
    is never zero, and never too small (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).

    Raises: as `paired_bootstrap`.
    """
    return _permuted(Pair(first, second), (metric,), permutations=permutations, seed=seed)[metric]


def _permuted(pair: Pair, names: Sequence[str], *, permutations: int, seed: int) -> dict[str, Permutation]:
    exact = 2**pair.patients <= permutations
    count = 2**pair.patients if exact else permutations
    seen = pair.swapped(names, np.zeros((1, pair.patients), dtype=np.bool_))
    far = dict.fromkeys(names, 0)
    for swaps in _swaps(pair.patients, count, seed=None if exact else seed):
        drawn = pair.swapped(names, swaps)
        for name in names:
            far[name] += int((np.abs(drawn[name]) >= abs(seen[name][0]) - TIED).sum())
    return {
        name: Permutation(
            difference=float(seen[name][0]),
            p=far[name] / count if exact else (far[name] + 1) / (count + 1),
            exact=exact,
            swaps=count,
        )
        for name in names
    }


def _swaps(patients: int, count: int, *, seed: int | None) -> Iterator[NDArray[np.bool_]]:
    """Marks of who is swapped, shape (n, patients), block by block until there were `count`: what is held at once does
    not grow with their number. A seed draws them, the same in blocks of any size; without one they are all there are.
    """
    random = None if seed is None else np.random.default_rng(seed)
    block = max(1, MOST_AT_ONCE // patients)
    for first in range(0, count, block):
        after = min(first + block, count)
        if random is None:
            yield (np.arange(first, after)[:, None] >> np.arange(patients)) % 2 == 1
        else:
            yield random.random((after - first, patients)) < 0.5


def compare_pair(
    pair: Pair, metrics: Sequence[str], *, resamples: int, permutations: int, seed: int, level: float = LEVEL
) -> dict[str, tuple[Difference, Permutation]]:
    """Interval and test of each metric, as `paired_bootstrap` and `permutation_test` give them one by one."""
    differences = _differences(pair, metrics, resamples=resamples, seed=seed, level=level)
    tests = _permuted(pair, metrics, permutations=permutations, seed=seed)
    return {metric: (differences[metric], tests[metric]) for metric in metrics}


def holm(p_values: ArrayLike) -> Floats:
    """p values adjusted so that all that lie at or below a level hold together at it (Holm 1979, Scandinavian Journal
    of Statistics 6:65-70): the smallest of m times m, the next times m - 1 and so on, never falling, at most 1.

    Args:
        p_values: shape (m,), each from 0 to 1.

    Returns:
        Shape (m,), in the order given.
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"Expected p values from 0 to 1 in one row but got {p_values!r}")
    order = np.argsort(values, kind="stable")
    raised = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(raised, 1.0)
    return adjusted


def compare_models(
    tables: Mapping[str, pd.DataFrame],
    reference: str,
    *,
    metrics: Sequence[str] = COMPARED,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 1,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Hold one model against all others on the same cells.

    Args:
        tables: answers by the name of the model, each with the columns `PREDICTION_COLUMNS`.
        reference: the model that claims to be better.

    Returns:
        One row per other model and metric with `COLUMNS`: both values; difference, reference less the other; low, high
        of its interval; p of the permutation test; p_holm, adjusted over the other models, each metric by itself.

    Raises:
        DataError: where the cells do not agree, or there is nothing to compare.
    """
    if reference not in tables or len(tables) < 2:
        raise DataError(
            f"Expected answers of {reference!r} and of one model more but got {', '.join(tables) or 'none'}."
        )
    rows = []
    for name in tables:
        if name == reference:
            continue
        pair = Pair(tables[reference], tables[name])
        options = {"resamples": resamples, "permutations": permutations, "seed": seed}
        found = compare_pair(pair, metrics, level=level, **options)
        rows += [
            {
                "baseline": name,
                "metric": metric,
                "reference_value": difference.first,
                "baseline_value": difference.second,
                "difference": difference.difference,
                "low": difference.low,
                "high": difference.high,
                "p": test.p,
            }
            for metric, (difference, test) in found.items()
        ]
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("metric")["p"].transform(lambda column: holm(column.to_numpy()))
    return table[list(COLUMNS)]
