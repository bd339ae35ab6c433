"""The three-way decision as conformal prediction whose unit is the patient.

A class stands in the set of a cell unless the cell looks more unlike that class than nearly all calibration cells of it
do. A cell with one class in its set is decided, a cell with both is referred. Each class has its own threshold, from
the patients of that class alone (label-conditional or Mondrian: Vovk, Gammerman & Shafer 2005, Algorithmic Learning in
a Random World, section 4.5; Sadinle, Lei & Wasserman 2019, doi:10.1080/01621459.2017.1395341).

Cells of one patient are not exchangeable with cells of another, so the usual quantile over cells promises nothing for
the next patient. Patients are exchangeable, in two layers (Dunn, Wasserman & Ramdas 2023,
doi:10.1080/01621459.2022.2060112). One cell drawn from each of n patients makes n exchangeable scores, of which the
r-th lowest, r = (n + 1)(1 - error) rounded up, covers a cell of a new patient with probability 1 - error, whatever the
cells of one patient have in common. Two ways free that limit of the draw:

    subsampled  the median of the limit over all draws of one cell from each patient, which is the lowest score at or
                below which r of them or more lie with a probability of one half. A cell outside lies outside of half
                of the sets or more, so the error is at most twice that of one draw (Gasparin & Ramdas 2024,
                arXiv:2401.09379). In the simulations of docs/evaluation.md it is that of one draw.
    pooled      every cell of the k-th patient weighs 1 / ((n + 1) cells of k), and 1 / (n + 1) is kept for the patient
                to come; the lowest score at or below which a mass of 1 - error lies. The error is at most what was
                asked for (hierarchical conformal prediction, Lee, Barber & Willett 2023, arXiv:2306.06342), and with
                few patients far less, at the price of many cells referred.

With n patients no error below 1 / (n + 1) can be had from either. Where less is asked for, that is what is aimed at and
reported, and the limit is no nearer than the plain quantile over the calibration patients.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES, POSITIVE, Thresholds
from blastwatch.intervals import LEVEL
from blastwatch.rounding import fixed
from training.figures import Units
from training.intervals import intervals

Floats = NDArray[np.float64]
ROUNDING = 1e-9  # of sums of weights
COVERAGE = {"hem": ("coverage_hem", "coverage_over_healthy"), "all": ("coverage_all", "coverage_over_ill")}


@dataclass(frozen=True, kw_only=True)
class Conformal:
    """error: what was asked for; patients: those it was calibrated on, by class; aimed, guaranteed: the error among the
    cells of the next patient of each class, on average over calibrations, that is expected and that is proven."""

    thresholds: Thresholds
    error: float
    method: str
    patients: dict[str, int]
    aimed: dict[str, float]
    guaranteed: dict[str, float]

    def unproven(self) -> "Conformal":
        """The same, where nothing is proven of the error: another fit answers than those that it was calibrated on."""
        return replace(self, guaranteed=dict.fromkeys(self.guaranteed, 1.0))


def fit_conformal(
    blast: NDArray[np.floating], labels: NDArray[np.int64], groups: NDArray[Any], *, error: float, method: str
) -> Conformal:
    """Thresholds from calibration cells.

    Args:
        blast: probability of a blast, shape (n,); labels: positions in `CLASS_NAMES`, shape (n,); groups: patient of
            each cell, shape (n,).
        error: share of wrong decisions allowed among the cells of a new patient of each class, between 0 and 1.
        method: subsampled or pooled.

    Raises:
        ValueError: where a class has no cell, or the error or the method is none.
    """
    if not 0 < error < 1:
        raise ValueError(f"Expected `error` between 0 and 1 but got {error}")
    if method not in METHODS:
        raise ValueError(f"Expected a method out of {', '.join(METHODS)} but got {method!r}")
    patients = {name: len(np.unique(groups[labels == number])) for number, name in enumerate(CLASS_NAMES)}
    if not all(patients.values()):
        raise ValueError(f"Expected calibration cells of both classes but got patients {patients}")
    normal, ill = labels != POSITIVE, labels == POSITIVE
    limit = METHODS[method]
    # The highest probability at which a cell may still be normal, and the lowest at which it may still be a blast.
    upper = limit(Scores(blast[normal], groups[normal]), error)
    lower = -limit(Scores(-blast[ill], groups[ill]), error)
    aimed = {name: attainable(count, error) for name, count in patients.items()}
    factor = 2 if method == "subsampled" else 1
    return Conformal(
        thresholds=_thresholds(lower, upper),
        error=error,
        method=method,
        patients=patients,
        aimed=aimed,
        guaranteed={name: min(1.0, factor * least) for name, least in aimed.items()},
    )


def patient_limit(scores: NDArray[np.floating], groups: NDArray[Any], *, error: float) -> float:
    """The score that a share `error` of a new patient's cells passes, on average over patients, by `subsampled`.

    Args:
        scores: how unlike the known ones each calibration cell is, shape (n,); groups: its patient, shape (n,).
        error: between 0 and 1.
    """
    if not 0 < error < 1:
        raise ValueError(f"Expected `error` between 0 and 1 but got {error}")
    return _subsampled(Scores(scores, groups), error)


def attainable(patients: int, error: float) -> float:
    """The error that can be had with so many calibration patients of a class."""
    return max(error, 1 / (patients + 1))


class Scores:
    """Cells of one class by how unlike it they are, most alike first: their scores, and the patient of each."""

    def __init__(self, scores: NDArray[np.floating], groups: NDArray[Any]) -> None:
        _, patient, self.cells = np.unique(groups, return_inverse=True, return_counts=True)
        order = np.argsort(scores, kind="stable")
        self.values, self.patient = scores[order], patient[order]
        self.patients = len(self.cells)

    def at_mass(self, mass: float) -> float:
        """The lowest score at or below which a share of the cells lies, every patient weighing the same."""
        reached = np.cumsum((1 / self.cells)[self.patient]) / self.patients
        return float(self.values[min(int(np.searchsorted(reached, mass - ROUNDING)), len(reached) - 1)])

    def chance(self, place: int, wanted: int) -> float:
        """Probability that of one cell from each patient `wanted` or more stand at this place or before it: the tail of
        a Poisson binomial distribution."""
        shares = np.bincount(self.patient[: place + 1], minlength=self.patients) / self.cells
        counted = np.zeros(self.patients + 1)
        counted[0] = 1.0
        for share in shares:
            counted[1:] = counted[1:] * (1 - share) + counted[:-1] * share
            counted[0] *= 1 - share
        return float(counted[wanted:].sum())


def _pooled(scores: Scores, error: float) -> float:
    # A mass of one part in n + 1 is kept for the patient to come.
    wanted = 1 - attainable(scores.patients, error)
    return scores.at_mass(wanted * (scores.patients + 1) / scores.patients)


def _subsampled(scores: Scores, error: float) -> float:
    rank = int(np.ceil((scores.patients + 1) * (1 - attainable(scores.patients, error)) - ROUNDING))
    low, high = 0, len(scores.values) - 1
    while low < high:
        middle = (low + high) // 2
        if scores.chance(middle, rank) >= 0.5 - ROUNDING:
            high = middle
        else:
            low = middle + 1
    found = float(scores.values[low])
    return max(found, scores.at_mass(1 - error)) if attainable(scores.patients, error) > error else found


METHODS: Mapping[str, Callable[[Scores, float], float]] = {"subsampled": _subsampled, "pooled": _pooled}
"""How the limit of a class is taken from its cells."""


def _thresholds(lower: float, upper: float) -> Thresholds:
    """A cell above `upper` is no normal cell, one below `lower` no blast, and one that is neither does not occur: where
    the two leave such a gap, its middle parts the classes, no cell is referred, and more is covered than was asked. A
    probability of exactly 0 or 1 is decided whatever the calibration says."""
    if upper < lower:
        middle = max((lower + upper) / 2, float(np.nextafter(upper, 2)))
        return Thresholds(hem=middle, all=middle)
    # At the thresholds themselves a cell is decided, so they lie just outside.
    return Thresholds(hem=max(0.0, float(np.nextafter(lower, -1))), all=min(1.0, float(np.nextafter(upper, 2))))


def expected_coverage(calibrated: int, tested: int, error: float, level: float = LEVEL) -> tuple[float, float]:
    """Where the mean coverage over `tested` new patients should lie, by the number of calibration patients alone.

    With n exchangeable scores the coverage of the next ones, given the calibration, is Beta(n + 1 - l, l) with l the
    whole part of (n + 1) error (Vovk 2012, PMLR 25:475), and among m new ones beta-binomial. Taken with one score a
    patient, which is the widest case: where a patient's cells differ, the mean over them varies less. More than the
    upper end is no fault: classes that lie apart are covered more than was asked for, see `_thresholds`.

    Args:
        calibrated, tested: patients of the class, 1 or more each.

    Returns:
        Ends of an interval that holds the coverage with a probability of `level` at least.
    """
    from scipy.stats import betabinom

    if min(calibrated, tested) < 1:
        raise ValueError(f"Expected a patient or more on each side but got {calibrated} and {tested}")
    outside = int(np.floor((calibrated + 1) * attainable(calibrated, error) + ROUNDING))
    shape = betabinom(tested, calibrated + 1 - outside, outside)
    return float(shape.ppf((1 - level) / 2) / tested), float(shape.ppf((1 + level) / 2) / tested)


def coverage_report(fitted: Conformal, units: Units, table: pd.DataFrame, draws: Floats) -> dict[str, Any]:
    """What the decision does on test patients, per class and over all.

    Args:
        units: of `table` with the fitted thresholds; draws: of its patients.

    Returns:
        error, method; per class calibration_patients, test_patients, aimed_error, guaranteed_error, coverage (share of
        its cells that have their class in the set), coverage_by_patient (mean over patients), both with intervals by
        patient, expected (see `expected_coverage`) and inside: whether the coverage by patient lies there or above.
    """
    classes: dict[str, Any] = {}
    for name, (cells, by_patient) in COVERAGE.items():
        tested = int(table.loc[table["label"] == name, "group"].nunique())
        found = intervals(units, (cells, by_patient), draws)
        low, high = expected_coverage(fitted.patients[name], tested, fitted.error)
        classes[name] = {
            "calibration_patients": fitted.patients[name],
            "test_patients": tested,
            "aimed_error": fitted.aimed[name],
            "guaranteed_error": fitted.guaranteed[name],
            "coverage": found[cells],
            "coverage_by_patient": found[by_patient],
            "expected": {"low": low, "high": high},
            "inside": bool(found[by_patient]["value"] >= low - ROUNDING),
        }
    return {"error": fitted.error, "method": fitted.method, "classes": classes}


def expected_told(row: Mapping[str, Any]) -> str:
    """Where the coverage by patient of one class should lie; without the upper end where it lies above, as it may.

    >>> row = {"coverage_by_patient": {"value": 0.99}, "expected": {"low": 0.8123, "high": 0.9678}}
    >>> expected_told(row)
    '0.812 or more'
    >>> expected_told(row | {"coverage_by_patient": {"value": 0.9}})
    '0.812 to 0.968'
    """
    expected = row["expected"]
    above = row["coverage_by_patient"]["value"] > expected["high"] + ROUNDING
    return f"{fixed(expected['low'])} or more" if above else f"{fixed(expected['low'])} to {fixed(expected['high'])}"
