"""Figures within parts of the test cells: a source, a size of cell, a depth of stain. Each part has few patients, so
every figure comes with its interval by patient, or not at all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES
from blastwatch.intervals import as_interval, draw_patients
from training.figures import figures, units_of
from training.intervals import intervals, patients_behind

SHOWN = ("auroc", "weighted_f1", "accuracy", "sensitivity", "specificity")
FEWEST = 2  # patients of each class in a part, below which it has no interval
STAINS = ("od_red", "od_green", "od_blue")
QUARTERS, THIRDS = 4, 3


def breakdown(
    table: pd.DataFrame, sources: "pd.Series[str]", statistics: pd.DataFrame, *, resamples: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """The test cells by source, by quarter of their area, and by third of their mean optical density.

    Args:
        table: the columns `PREDICTION_COLUMNS`; sources, statistics: of the same cells, by path.

    Returns:
        By kind of part (source, cell_area, stain) one row a part: its name, low and high end (of size and stain), cells
        and patients of each label, and figures with intervals, none where a label has fewer than two patients.
    """
    where = table["path"]
    area = statistics.loc[where, "cell_area"].to_numpy()
    density = statistics.loc[where, list(STAINS)].mean(axis=1).to_numpy()
    source = sources.loc[where].to_numpy()
    parts = {
        "source": ((str(name), {}, source == name) for name in sorted(set(source))),
        "cell_area": _levels(area, QUARTERS),
        "stain": _levels(density, THIRDS),
    }
    return {
        kind: [_row(name, edges, table[mask], resamples=resamples, seed=seed) for name, edges, mask in found]
        for kind, found in parts.items()
    }


def _levels(values: NDArray[np.float64], count: int) -> Iterator[tuple[str, dict[str, float], NDArray[np.bool_]]]:
    """Cut at the quantiles of all cells; where many are equal there are fewer parts."""
    index, edges = levels(values, count)
    for number in range(len(edges) - 1):
        low, high = float(edges[number]), float(edges[number + 1])
        yield f"{number + 1} of {len(edges) - 1}", {"low": low, "high": high}, index == number


def levels(values: NDArray[np.float64], count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Part of every value, and the edges of the parts."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
    if len(edges) == 1:
        edges = np.repeat(edges, 2)
    return np.searchsorted(edges[1:-1], values, "right"), edges


def _row(name: str, edges: dict[str, float], part: pd.DataFrame, *, resamples: int, seed: int) -> dict[str, Any]:
    by_label = {label: part[part["label"] == label] for label in CLASS_NAMES}
    patients = {label: int(cells["group"].nunique()) for label, cells in by_label.items()}
    found: dict[str, dict[str, float]] = {}
    if min(patients.values()) >= FEWEST:
        found = intervals(units_of(part), SHOWN, draw_patients(part, resamples=resamples, seed=seed))
    counts = {label: len(cells) for label, cells in by_label.items()}
    return {"name": name, **edges, "cells": counts, "patients": patients, "figures": found}


def size_matched_auroc(
    table: pd.DataFrame, statistics: pd.DataFrame, draws: NDArray[np.float64]
) -> dict[str, float] | None:
    """Mean over quarters of cell area of the AUROC within, so that size alone cannot earn it.

    A covariate-adjusted AUROC in its simplest form (Janes & Pepe 2009, doi:10.1093/biomet/asp002): quarters of all test
    cells, those that hold both labels, each weighing the same.

    Args:
        draws: of the table's patients.

    Returns:
        value, low, high, and strata: the quarters it is the mean of. None where no quarter holds both labels.
    """
    order = sorted(table["group"].astype(str).unique())
    index, _ = levels(statistics.loc[table["path"], "cell_area"].to_numpy(), QUARTERS)
    every = np.concatenate([np.ones((1, len(order))), draws])
    held = [table[index == number] for number in np.unique(index)]
    both = [part for part in held if part["label"].nunique() == len(CLASS_NAMES)]
    if not both:
        return None
    areas = np.stack([figures(units_of(part, order=order), every, ["auroc"])["auroc"] for part in both])
    # A draw may leave a quarter without one of the labels: it is then the mean of the others.
    known = np.isfinite(areas)
    mean = np.where(known, areas, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    behind = patients_behind(units_of(table), "auroc")
    found = as_interval(np.where(known.any(axis=0), mean, np.nan), behind)
    return None if found is None else found | {"strata": float(len(both))}
