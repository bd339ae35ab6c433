"""Intervals by patient: cells of one patient are not independent, so whole groups are drawn, not cells."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

Metrics = Callable[[pd.DataFrame], dict[str, float]]


def group_bootstrap(
    cells: pd.DataFrame, metrics: Metrics, *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, dict[str, float]]:
    """Percentile intervals by a cluster bootstrap (Field & Welsh 2007, doi:10.1111/j.1467-9868.2007.00593.x).

    Groups are drawn with replacement within each label, so every draw holds both classes.

    Args:
        cells: with the columns `group` and `label`, and what `metrics` reads.
        metrics: figures by name over a table of cells; NaN where one is not defined on a draw.

    Returns:
        Per figure: value on the cells themselves, low and high end of the interval.
    """
    random = np.random.default_rng(seed)
    label_of = cells.groupby("group")["label"].agg(lambda labels: labels.mode().iloc[0])
    positions = {str(name): rows for name, rows in cells.reset_index(drop=True).groupby("group").indices.items()}
    strata = [label_of.index[label_of == label].astype(str).to_numpy() for label in sorted(label_of.unique())]
    draws: list[dict[str, float]] = []
    for _ in range(resamples):
        parts = [positions[name] for names in strata for name in random.choice(names, size=len(names))]
        rows = np.concatenate(parts)
        # A group drawn twice counts as two patients.
        drawn = cells.iloc[rows].assign(draw=np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
        draws.append(metrics(drawn))
    table = pd.DataFrame(draws)
    tails = (1 - level) / 2
    found: dict[str, dict[str, Any]] = {}
    for name, value in metrics(cells.assign(draw=cells["group"])).items():
        low, high = np.nanquantile(table[name], [tails, 1 - tails])
        found[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return found
