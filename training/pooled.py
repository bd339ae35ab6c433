"""The figures of a cross-validation: over all cells, each answered by the one network that never saw its patient.

Intervals and tests take the patient as the unit, as `blastwatch evaluate` does. What ranks cells (AUROC, average
precision) compares probabilities of several networks in the pooled table, so the mean over the folds stands beside it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from blastwatch.decision import Thresholds
from blastwatch.errors import DataError
from blastwatch.intervals import draw_patients
from blastwatch.package import PREDICTION_COLUMNS
from training.evaluation import ece_draws, ece_intervals, per_patient
from training.figures import CELLS, COVERAGES, DECISIONS, PATIENTS, Units, plain, units_of
from training.intervals import intervals, patients_behind
from training.parameters import EvaluateParameters
from training.significance import compare_models
from training.strata import size_matched_auroc

POOLED_COLUMNS = (*PREDICTION_COLUMNS, "fold", "recipe")
"""Columns of the pooled table; fold: the one whose test side holds the cell; recipe: what answered."""


def pool(parts: Mapping[int, pd.DataFrame], recipe: str, paths: pd.Series) -> pd.DataFrame:
    """All folds' answers of one recipe, `POOLED_COLUMNS`, sorted by path.

    Args:
        parts: tables with `PREDICTION_COLUMNS`, by fold. paths: of every cell of the data set.

    Raises:
        DataError: where a cell has no answer, or more than one.
    """
    table = pd.concat([part[list(PREDICTION_COLUMNS)].assign(fold=fold) for fold, part in parts.items()])
    table = table.assign(recipe=recipe).sort_values("path", ignore_index=True)
    if table["path"].tolist() != sorted(paths):
        raise DataError(
            f"Expected one answer of {recipe} to each of {len(paths)} cells but got {len(table)} to "
            f"{table['path'].nunique()}. Remove the folder of the cross-validation and run it anew."
        )
    return table[list(POOLED_COLUMNS)]


def pooled_units(table: pd.DataFrame, thresholds: Mapping[int, Thresholds]) -> Units:
    """Sums by patient of a pooled table, each cell decided by the thresholds of its own fold."""
    order = sorted(table["group"].astype(str).unique())
    units = units_of(table, order=order)
    referred, decided = np.zeros_like(units.cells), np.zeros_like(units.cells)
    for fold, limits in thresholds.items():
        part = units_of(table[table["fold"] == fold], order=order, thresholds=limits)
        place = np.searchsorted(2 * units.group + units.ill, 2 * part.group + part.ill)
        referred[place] += part.referred
        decided[place] += part.decided_right
    return replace(units, referred=referred, decided_right=decided)


def pooled_figures(
    table: pd.DataFrame,
    thresholds: Mapping[int, Thresholds],
    statistics: pd.DataFrame,
    parameters: EvaluateParameters,
) -> dict[str, Any]:
    """Figures of one recipe, with intervals by patient: `cells`, `patients`, `coverage` of the three-way decision,
    `ece`, and `size_matched`, the AUROC within equal sizes; `folds` and their `spread`; and `per_patient`.

    Args:
        statistics: of `training.baselines.cell_statistics`, of all cells.
    """
    draws = draw_patients(table, resamples=parameters.resamples, seed=parameters.seed)
    units = pooled_units(table, thresholds)
    folds = [
        {"fold": fold, **fold_figures(table[table["fold"] == fold], limits)} for fold, limits in thresholds.items()
    ]
    return {
        "cells": intervals(units, (*CELLS, *DECISIONS), draws),
        "patients": intervals(units, tuple(PATIENTS), draws),
        "coverage": intervals(units, tuple(COVERAGES), draws),
        "ece": ece_intervals(ece_draws(table, draws), patients_behind(units, "ece")),
        "size_matched": size_matched_auroc(table, statistics, draws),
        "folds": folds,
        "spread": {part: _spread([fold[part] for fold in folds]) for part in ("cells", "patients")},
        "per_patient": patients(table, thresholds),
    }


def fold_figures(table: pd.DataFrame, thresholds: Thresholds) -> dict[str, Any]:
    """Plain figures of one fold, without those that its cells do not define."""
    units = units_of(table, thresholds=thresholds)
    return {
        "groups": int(table["group"].nunique()),
        "cells": _known(plain(units, (*CELLS, *DECISIONS))),
        "patients": _known(plain(units, tuple(PATIENTS))),
    }


def _known(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if np.isfinite(value)}


def _spread(folds: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the folds. The latter is no standard error: training sides overlap (Bengio &
    Grandvalet 2004, JMLR 5:1089-1105)."""
    table = pd.DataFrame(folds).dropna(axis="columns")
    return {str(name): {"mean": float(values.mean()), "sd": float(values.std())} for name, values in table.items()}


def patients(table: pd.DataFrame, thresholds: Mapping[int, Thresholds]) -> list[dict[str, Any]]:
    """One row a subject and label, as `blastwatch evaluate` has it, with the fold."""
    found = [
        row | {"fold": fold}
        for fold, limits in thresholds.items()
        for row in per_patient(table[table["fold"] == fold], limits)
    ]
    return sorted(found, key=lambda row: (row["label"], row["subject"]))


def aimed_coverage(table: pd.DataFrame, errors: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Per label the mean over its patients of the coverage that the calibration of their fold aims at.

    Args:
        errors: aimed error by fold and label (`training.conformal`).
    """
    by = table.groupby("label")[["group", "fold"]]
    return {
        str(label): float(np.mean([1 - errors[fold][str(label)] for fold in part.drop_duplicates()["fold"]]))
        for label, part in by
    }


def compare(tables: Mapping[str, pd.DataFrame], reference: str, parameters: EvaluateParameters) -> list[dict[str, Any]]:
    """The reference against every other recipe and baseline on the same cells, by Holm over these."""
    found = compare_models(
        tables,
        reference,
        resamples=parameters.resamples,
        permutations=parameters.permutations,
        seed=parameters.seed,
    )
    return [{str(key): value for key, value in row.items()} for row in found.to_dict("records")]


def write_pooled(tables: Mapping[str, pd.DataFrame], path: Path) -> None:
    """One Parquet file with the pooled tables of all recipes, one below the other."""
    pd.concat(tables.values(), ignore_index=True).to_parquet(path, index=False)
