"""The three-way decision as conformal prediction whose unit is the patient.

A class stands in the set of a cell unless the cell looks more unlike that class than nearly all calibration cells of it
do. A cell with one class in its set is decided, a cell with both is referred. Each class has its own threshold, from
the patients of that class alone (label-conditional or Mondrian: Vovk, Gammerman & Shafer 2005, Algorithmic Learning in
a Random World, section 4.5; Sadinle, Lei & Wasserman 2019, doi:10.1080/01621459.2017.1395341).

Cells of one patient are not exchangeable with cells of another, so the usual quantile over cells promises nothing for
the next patient. Patients are exchangeable, in two layers (Dunn, Wasserman & Ramdas 2023,
doi:10.1080/01621459.2022.2060112). Hierarchical conformal prediction (Lee, Barber & Willett 2023, arXiv:2306.06342)
lets every cell of the k-th of n patients weigh 1 / ((n + 1) cells of k) and keeps 1 / (n + 1) for the patient to come:

    q = the lowest score at or below which a mass of 1 - error lies

Then a cell of a new patient has its class in the set with probability 1 - error at least: the mean over new patients of
the share of their cells that do, averaged over calibrations. No assumption is made about how cells of one patient go
together. For n patients no error below 1 / (n + 1) can be promised. Where less is asked for, the thresholds lie at the
most extreme calibration cell, and 1 / (n + 1) is what is promised and reported.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES, POSITIVE, Thresholds
from training.figures import Units
from training.intervals import LEVEL, intervals

Floats = NDArray[np.float64]
ROUNDING = 1e-9  # of sums of weights
COVERAGE = {"hem": ("coverage_hem", "coverage_over_healthy"), "all": ("coverage_all", "coverage_over_ill")}


@dataclass(frozen=True, kw_only=True)
class Conformal:
    """error: what was asked for; patients, guaranteed: by class, those it was calibrated on, and the error that is
    promised for the next patient, on average over calibrations."""

    thresholds: Thresholds
    error: float
    patients: dict[str, int]
    guaranteed: dict[str, float]


def fit_conformal(
    blast: NDArray[np.floating], labels: NDArray[np.int64], groups: NDArray[Any], *, error: float
) -> Conformal:
    """Thresholds from calibration cells.

    Args:
        blast: probability of a blast, shape (n,); labels: positions in `CLASS_NAMES`, shape (n,); groups: patient of
            each cell, shape (n,).
        error: share of wrong decisions allowed among the cells of a new patient of each class, between 0 and 1.

    Raises:
        ValueError: where a class has no cell, or the error is none.
    """
    if not 0 < error < 1:
        raise ValueError(f"Expected `error` between 0 and 1 but got {error}")
    patients = {name: len(np.unique(groups[labels == number])) for number, name in enumerate(CLASS_NAMES)}
    if not all(patients.values()):
        raise ValueError(f"Expected calibration cells of both classes but got patients {patients}")
    normal, ill = labels != POSITIVE, labels == POSITIVE
    # The highest probability at which a cell may still be normal, and the lowest at which it may still be a blast.
    upper = _quantile(blast[normal], groups[normal], error)
    lower = -_quantile(-blast[ill], groups[ill], error)
    return Conformal(
        thresholds=_thresholds(lower, upper),
        error=error,
        patients=patients,
        guaranteed={name: promised(count, error) for name, count in patients.items()},
    )


def promised(patients: int, error: float) -> float:
    """The error that can be promised with so many calibration patients of a class."""
    return max(error, 1 / (patients + 1))


def _quantile(scores: NDArray[np.floating], groups: NDArray[Any], error: float) -> float:
    """The lowest score at or below which the mass lies that is wanted; the highest where that is not reached."""
    _, patient, cells = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    mass = np.cumsum((1 / cells)[patient[order]]) / (len(cells) + 1)
    wanted = 1 - promised(len(cells), error) - ROUNDING
    return float(scores[order][min(int(np.searchsorted(mass, wanted)), len(mass) - 1)])


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
    patient, which is the widest case: where a patient's cells differ, the mean over them varies less.

    Args:
        calibrated, tested: patients of the class, 1 or more each.

    Returns:
        Ends of an interval that holds the coverage with a probability of `level` at least.
    """
    from scipy.stats import betabinom

    if min(calibrated, tested) < 1:
        raise ValueError(f"Expected a patient or more on each side but got {calibrated} and {tested}")
    outside = int(np.floor((calibrated + 1) * promised(calibrated, error) + ROUNDING))
    shape = betabinom(tested, calibrated + 1 - outside, outside)
    return float(shape.ppf((1 - level) / 2) / tested), float(shape.ppf((1 + level) / 2) / tested)


def coverage_report(fitted: Conformal, units: Units, table: pd.DataFrame, draws: Floats) -> dict[str, Any]:
    """What the decision does on test patients, per class and over all.

    Args:
        units: of `table` with the fitted thresholds; draws: of its patients.

    Returns:
        error; per class calibration_patients, test_patients, guaranteed_error, coverage (share of its cells that have
        their class in the set), coverage_by_patient (mean over patients), both with intervals by patient, expected
        (see `expected_coverage`) and inside: whether the coverage by patient lies there.
    """
    classes: dict[str, Any] = {}
    for name, (cells, by_patient) in COVERAGE.items():
        tested = int(table.loc[table["label"] == name, "group"].nunique())
        found = intervals(units, (cells, by_patient), draws)
        low, high = expected_coverage(fitted.patients[name], tested, fitted.error)
        classes[name] = {
            "calibration_patients": fitted.patients[name],
            "test_patients": tested,
            "guaranteed_error": fitted.guaranteed[name],
            "coverage": found[cells],
            "coverage_by_patient": found[by_patient],
            "expected": {"low": low, "high": high},
            "inside": bool(low - ROUNDING <= found[by_patient]["value"] <= high + ROUNDING),
        }
    return {"error": fitted.error, "classes": classes}
