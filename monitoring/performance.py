"""How well a version answers: by the labels that came later, and by its own probabilities until they come.

Realised. Of the cells that have a label: accuracy (share whose label the model gave), sensitivity (of the blasts) and
specificity (of the normal cells).

Estimated. Confidence-based performance estimation, CBPE (Kivimäki, Białek, Kuberski and Nurminen 2025,
arXiv:2505.05295): a cell called a blast with the calibrated probability p is a true positive with probability p, one
called normal with p a false negative with probability p. The sums over a window are the expected confusion matrix, and
the figures are read off it. The mean of the accuracy is exact; those of sensitivity and specificity are ratios of
means. It holds where the probabilities are calibrated on the cells of the window, so they are fitted to the mix in
which the reference's patients came (`monitoring.recalibration`): harder cells are seen, a network that has become wrong
without becoming less sure is not, nor are patients of another mix.

The check. Once labels come, each labelled cell has both: what was expected of it and what came true. The mean of the
difference is zero under calibration, whichever cells were chosen for labelling by their image, so the most uncertain
ones may be. Where its interval lies wholly outside the tolerance the estimate is `untrusted`; wholly inside,
`confirmed`; else `open`: too few labels to tell.

Verdicts (`untrusted`, `confirmed`, fell) are by patient alone: an interval by cell is too narrow, and so is one that
knows the spread of fewer than `FEWEST_PATIENTS`. By either, versions that answer as well as ever would be refuted.

Every figure is a sum over a sum, by patient, and its interval a cluster bootstrap over patients
(`blastwatch.intervals`), above `MANY_PATIENTS` Student's. Draws that all agree, as where no cell was wrong, show no
spread: then the patients are counted as independent trials (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from blastwatch.decision import CLASS_NAMES, POSITIVE
from blastwatch.intervals import (
    DIFFERENCE,
    LEVEL,
    ROUNDING,
    SHARE,
    Floats,
    bounds,
    draw_patients,
    exact_bounds,
    spreads,
)
from monitoring.recalibration import AS_GIVEN, Recalibration

FIGURES = ("accuracy", "sensitivity", "specificity")
PATIENT, CELL = "patient", "cell"
ASSUMES = {
    PATIENT: "patients are independent; cells without a patient key are left out",
    CELL: "cells are independent, which cells of one patient are not: the intervals are too narrow, so no verdict is "
    "given by them",
}
CELLS, KEYS, PATIENTS = "cells", "keys", "patients"
"""What may be lacking for a verdict."""
UNCHECKED, OPEN, CONFIRMED, UNTRUSTED = STATES = ("unchecked", "open", "confirmed", "untrusted")
RESAMPLES = 1000
FEWEST_PATIENTS = 10  # with fewer no verdict is given: of 5, 17 % of the windows of an exact version are refuted
FEWEST_CELLS = 30
MANY_PATIENTS = 200  # with more, Student's interval says the same as the bootstrap, and at once


@dataclass(frozen=True, kw_only=True)
class Limits:
    """tolerance: difference of realised and estimated accuracy that is let pass; margin: fall of an accuracy, below
    what was known, that is let pass. Both are shares, from 0 to 1."""

    tolerance: float
    margin: float


def performance(
    cells: pd.DataFrame,
    limits: Limits,
    *,
    labelled: pd.DataFrame | None = None,
    known: Mapping[str, Any] | None = None,
    recalibration: Recalibration = AS_GIVEN,
) -> dict[str, Any]:
    """Estimated and realised performance of one version on the cells of one window.

    Args:
        cells: the columns of `monitoring.store.Store.answers`, predictions of one version only.
        labelled: all cells of the window that have a label, where `cells` are only the latest; None: they are among
            `cells`.
        known: `reference_performance` of the version; without it nothing can have fallen.
        recalibration: of the version, to its reference.

    Returns:
        unit (`patient` or `cell`), assumes (what the intervals take for granted), cells, patients,
        cells_left_out, labelled; `estimated`, `expected` (of the labelled cells alone) and `realised`: by figure its
        value, low and high, without the figures that the cells do not define; `check`: state, difference, tolerance,
        and what it `lacks` for a verdict (labelled `cells`, `keys` of half of them, `patients`, None for nothing);
        `fell`: `estimated` and `realised`, true, false, or None where there is too little for a verdict.
    """
    unit = unit_of(cells if labelled is None else pd.concat([cells, labelled]))
    table = _judged(cells, unit, recalibration)
    graded = table[table["truth"].notna()] if labelled is None else _judged(labelled, unit, recalibration)
    column = "patient" if unit == PATIENT else "id"
    units, known_units = Units(table[column], unit), Units(graded[column], unit)
    estimated, expected, realised = _estimated(table), _estimated(graded), _realised(graded)
    found = {
        "unit": unit,
        "assumes": ASSUMES[unit],
        "cells": len(table),
        "patients": units.count if unit == PATIENT else None,
        "cells_left_out": len(cells) - len(table),
        "labelled": len(graded),
        "estimated": _intervals(units, estimated),
        "expected": _intervals(known_units, expected),
        "realised": _intervals(known_units, realised),
        "check": _check(known_units, expected, realised, limits.tolerance),
    }
    lacks = {"estimated": units.lacks, "realised": known_units.lacks}
    found["fell"] = {kind: None if lacks[kind] else _fell(found, kind, known, limits.margin) for kind in lacks}
    return found


def reference_performance(reference: pd.DataFrame, recalibration: Recalibration = AS_GIVEN) -> dict[str, Any]:
    """The same figures on a version's reference: patients that it was not trained on, by their true labels.

    Args:
        reference: the columns of `monitoring.reference.reference_columns`.
    """
    given = reference["probability"].to_numpy(np.float64)
    table = pd.DataFrame(
        {
            "blast": recalibration(given),
            "label": np.where(given >= 0.5, CLASS_NAMES[POSITIVE], CLASS_NAMES[1 - POSITIVE]),
            "truth": reference["label"],
        }
    )
    units = Units(reference["group"].astype(str), PATIENT)
    return {
        "cells": len(table),
        "patients": units.count,
        "estimated": _intervals(units, _estimated(table)),
        "realised": _intervals(units, _realised(table)),
    }


def _judged(cells: pd.DataFrame, unit: str, recalibration: Recalibration) -> pd.DataFrame:
    """Those of the cells that count by the unit, with their recalibrated probability as `blast`."""
    kept = cells[cells["patient"] != ""] if unit == PATIENT else cells
    return kept.assign(blast=recalibration(kept["probability"].to_numpy(np.float64)))


Parts = dict[str, tuple[Floats, Floats]]
"""By figure: each cell's part of the numerator, and of the denominator."""


def _estimated(table: pd.DataFrame) -> Parts:
    """CBPE: the truth of each cell replaced by its probability."""
    return _parts(_blasts(table["label"]), table["blast"].to_numpy(np.float64))


def _realised(table: pd.DataFrame) -> Parts:
    return _parts(_blasts(table["label"]), _blasts(table["truth"]))


def _blasts(labels: "pd.Series[str]") -> Floats:
    """1 for the cells whose label is a blast, 0 for the others."""
    return np.asarray(labels == CLASS_NAMES[POSITIVE], dtype=np.float64)


def _parts(called: Floats, blast: Floats) -> Parts:
    """The figures of cells that are called blasts (1) or not (0), and are blasts with a probability (0 to 1)."""
    hit, pass_ = called * blast, (1 - called) * (1 - blast)
    return {
        "accuracy": (hit + pass_, np.ones(len(called))),
        "sensitivity": (hit, blast),
        "specificity": (pass_, 1 - blast),
    }


def _intervals(units: "Units", parts: Parts) -> dict[str, dict[str, float]]:
    found = {name: units.ratio(*part) for name, part in parts.items()}
    return {name: value for name, value in found.items() if value is not None}


class Units:
    """What the cells are drawn by: their patients, or the cells themselves.

    Args:
        keys: patient of each cell, or its own id, n of them.
        unit: `patient`: cluster bootstrap. `cell`: exact binomial for parts that are 0 or 1, else Student's interval
            of the ratio's linear approximation.
    """

    def __init__(self, keys: "pd.Series[str]", unit: str) -> None:
        self.cells, self.unit = len(keys), unit
        self._codes, names = pd.factorize(keys)
        self.count = len(names)

    @property
    def lacks(self) -> str | None:
        """What is lacking for a verdict; None where one may be given."""
        if self.cells < FEWEST_CELLS:
            return CELLS
        if self.unit == CELL:
            return KEYS
        return PATIENTS if self.count < FEWEST_PATIENTS else None

    def ratio(self, top: Floats, bottom: Floats) -> dict[str, float] | None:
        """Sum over sum with its interval; None where the denominator is nothing.

        Args:
            top, bottom: parts of the cells, float64, shape (n,); the ratio lies between -1 and 1.
        """
        total = float(bottom.sum())
        if total <= 0:
            return None
        value = float(top.sum() / total)
        low, high = _by_cell(top, bottom, value) if self.unit == CELL else self._by_patient(top, bottom, value)
        return {"value": value, "low": low, "high": high}

    @cached_property
    def _drawn(self) -> Floats:
        """As patients come in life: in any mix of the two classes, so they are drawn without strata."""
        return draw_patients(pd.DataFrame({"group": np.arange(self.count), "label": ""}), resamples=RESAMPLES, seed=0)

    def _by_patient(self, top: Floats, bottom: Floats, value: float) -> tuple[float, float]:
        above, below = (np.bincount(self._codes, part, self.count).astype(np.float64) for part in (top, bottom))
        if self.count > MANY_PATIENTS and np.abs(above - value * below).max() > ROUNDING:
            return _linear(above, below, value)
        sums = self._drawn @ below
        some = sums > 0  # a draw may hold no patient with a blast
        draws = (self._drawn[some] @ above) / sums[some]
        patients = int((below > 0).sum())
        if not spreads(draws):
            return exact_bounds(value, patients) if value >= 0 else DIFFERENCE
        return bounds(draws, patients, value=value, within=SHARE if (top >= 0).all() else DIFFERENCE)


def _by_cell(top: Floats, bottom: Floats, value: float) -> tuple[float, float]:
    if np.isin(top, (0, 1)).all() and np.isin(bottom, (0, 1)).all():
        return exact_bounds(value, int(bottom.sum()))
    return _linear(top, bottom, value)


def _linear(top: Floats, bottom: Floats, value: float) -> tuple[float, float]:
    """Student's interval of a ratio of sums over independent units, by its linear approximation (Cochran 1977,
    Sampling Techniques, section 6.3)."""
    from scipy.special import stdtrit

    count = int((bottom > 0).sum())
    if count < 2:
        return -1.0, 1.0
    error = np.sqrt(count / (count - 1) * ((top - value * bottom) ** 2).sum()) / bottom.sum()
    reach = float(-stdtrit(count - 1, (1 - LEVEL) / 2) * error)
    return max(value - reach, 0.0 if (top >= 0).all() else -1.0), min(value + reach, 1.0)


def _check(units: Units, expected: Parts, realised: Parts, tolerance: float) -> dict[str, Any]:
    """Realised minus expected accuracy of the labelled cells, against the tolerance."""
    difference = units.ratio(realised["accuracy"][0] - expected["accuracy"][0], realised["accuracy"][1])
    state = UNCHECKED if difference is None else OPEN
    if difference is not None and units.lacks is None:
        low, high = difference["low"], difference["high"]
        if low > tolerance or high < -tolerance:
            state = UNTRUSTED
        elif low >= -tolerance and high <= tolerance:
            state = CONFIRMED
    return {"state": state, "difference": difference, "tolerance": tolerance, "lacks": units.lacks}


def _fell(found: dict[str, Any], kind: str, known: Mapping[str, Any] | None, margin: float) -> bool | None:
    """Whether an accuracy's whole interval lies below what was known by more than the margin.

    The realised one must also lie below what was expected of these very cells: who labels the uncertain ones first
    finds a low accuracy, and nothing fell.
    """
    if known is None:
        return None
    floor = known[kind]["accuracy"]["value"]
    if kind == "realised":
        floor = min(floor, found["expected"]["accuracy"]["value"])
    return bool(found[kind]["accuracy"]["high"] < floor - margin)


def unit_of(cells: pd.DataFrame) -> str:
    """By patient where at least half of the cells carry a key: a few that do must not stand for all."""
    return PATIENT if len(cells) and (cells["patient"] != "").mean() >= 0.5 else CELL
