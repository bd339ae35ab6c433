"""Folds of patients who look alike, so that each is tested by a model that saw nobody like them.

Folds that are dealt by chance have patients of every look in training, so they tell how a model fares on the next
patients of the same laboratories. Whoever asks how it fares where cells look otherwise holds out whole regions of the
predictors (blocking in predictor space: Roberts et al. 2017, doi:10.1111/ecog.02881). A figure on such folds is lower,
and nearer to what patients of another place are answered with.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from blastwatch.errors import DataError
from training.dealing import Unit, check_enough, quota


def places_by_looks(rows: pd.DataFrame, statistics: pd.DataFrame) -> "pd.Series[float]":
    """Where each group of patients lies along the axis in which patients of one label differ most, in spreads of it.

    The mean of each image statistic over a group's cells, standardised over the groups, less the mean of the groups of
    its label; the axis is the first principal one. Its largest entry is positive.

    Args:
        rows: of the manifest, with the column `group`. statistics: of an audit, with the column `path`; of images with
            equal pixels one is enough.

    Raises:
        DataError: where a group has no cell with statistics, or all groups of a label look the same.
    """
    labels = rows.groupby("group")["label"].agg(lambda of_group: str(of_group.value_counts().idxmax()))
    measured = rows[["path", "group"]].merge(statistics, on="path").drop(columns="path").groupby("group").mean()
    if missing := sorted(set(labels.index) - set(measured.index)):
        raise DataError(
            f"Expected statistics of every patient from the audit but it has none of {', '.join(missing[:5])}. Make it "
            "anew: blastwatch data audit"
        )
    spread = measured.std(ddof=0)
    looks = ((measured - measured.mean()) / spread).loc[:, spread > 0]
    looks -= looks.groupby(labels).transform("mean")
    if not looks.size or not (looks.abs() > 1e-9).any(axis=None):
        raise DataError("Expected patients of one label to differ in some image statistic (split.folds_by=looks).")
    axis = np.linalg.svd(looks.to_numpy(), full_matrices=False)[2][0]
    return pd.Series(looks.to_numpy() @ (axis * np.sign(axis[np.abs(axis).argmax()])), index=looks.index)


def folds_by_looks(
    units: Mapping[str, Mapping[str, Unit]], places: "pd.Series[float]", count: int
) -> dict[str, int]:  # fmt: skip
    """Fold of every group, 0 to count - 1: of each label the neighbours along the axis together, equally many in each.

    Args:
        units: by label, as `training.dealing.units_by_label` gives them. places: of `places_by_looks`.

    Raises:
        DataError: where a label has fewer groups than there are folds.
    """
    found: dict[str, int] = {}
    for label, of_label in units.items():
        check_enough(label, len(of_label), count, "fold")
        order = sorted(of_label, key=lambda name: (places[name], name))
        shares = quota(len(order), [1 / count] * count)
        found |= dict(zip(order, np.repeat(np.arange(count), shares).tolist(), strict=True))
    return found
