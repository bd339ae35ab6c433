"""The split: every group of patients on one side, each side with its share of groups and cells of either label."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import CheckRefused, DataError, LeakFound, UsageError
from blastwatch.manifest import SIDES, SPLIT, SPLIT_FACTS, Cells, split_digest, write_json
from training.audit import Audit

WAYS = ("group", "image")
DEALS = 200  # random deals of the groups; the one whose shares of cells come nearest to the fractions is kept


@dataclass(frozen=True, kw_only=True)
class SplitParameters:
    """Section `split` of params.yaml. The four fractions are shares of the cells and add up to 1.

    by: `group` keeps the cells of tied patients together. `image` parts them: it exists to show how much a score
    gains by knowing the patient, and a split made by it is marked as leaky.
    """

    seed: int = 1
    by: str = "group"
    train: float = 0.55
    validation: float = 0.15
    calibration: float = 0.15
    test: float = 0.15

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise UsageError(f"Expected split.seed to be a whole number of 0 or more but got {self.seed!r}.")
        if self.by not in WAYS:
            raise UsageError(f"Expected split.by to be one of {', '.join(WAYS)} but got {self.by!r}.")
        for side in SIDES:
            fraction = getattr(self, side)
            if type(fraction) is not float or not 0 < fraction < 1:
                raise UsageError(f"Expected split.{side} to be a number between 0 and 1 but got {fraction!r}.")
        total = sum(self.fractions.values())
        if not math.isclose(total, 1, abs_tol=1e-6):
            told = " + ".join(f"{side} {fraction}" for side, fraction in self.fractions.items())
            raise UsageError(f"Expected the fractions of the split to add up to 1 but got {told} = {total:g}.")

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the cells by side, in the order of `SIDES`."""
        return {side: float(getattr(self, side)) for side in SIDES}


def split_cells(cells: Cells, audit: Audit, parameters: SplitParameters) -> pd.DataFrame:
    """Put every cell on a side.

    Returns:
        The manifest's rows with the columns `group` (the first subject of the group) and `side`, sorted by path.

    Raises:
        CheckRefused: where the audit found equal images under two labels.
        DataError: where there are too few groups of a label.
        LeakFound: where a group or an image stands on two sides, unless the split is by image.
    """
    _refuse_conflicts(audit)
    rows = cells.rows.sort_values("path", ignore_index=True)
    rows["group"] = rows["subject"].map({name: group[0] for group in audit.groups for name in group})
    unknown = rows.loc[rows["group"].isna(), "subject"].unique()
    if len(unknown):
        raise DataError(
            f"The audit does not know the subjects {', '.join(unknown[:5])}. Run blastwatch data audit anew."
        )
    units = rows["group"] if parameters.by == "group" else rows["path"]
    rows["side"] = units.map(_deal_all(rows.assign(unit=units), parameters))
    if parameters.by == "group":
        check_leak(rows)
    return rows


def check_leak(rows: pd.DataFrame) -> None:
    """Raise `LeakFound` where a group, a subject or an image (by its pixels) stands on two sides.

    Args:
        rows: with the columns `group`, `subject`, `pixel_sha256` and `side`.
    """
    for column, what in (("group", "groups"), ("subject", "subjects"), ("pixel_sha256", "images")):
        sides = rows.groupby(column, sort=True)["side"].nunique()
        parted = sides[sides > 1].index.astype(str).tolist()
        if parted:
            raise LeakFound(
                f"Expected every one of the {what} on one side of the split but {len(parted)} stand on more than one "
                f"({', '.join(name[:16] for name in parted[:5])}). Scores from it would tell how well patients are "
                "known again. Make the split anew, by group, with: blastwatch data split"
            )


def _refuse_conflicts(audit: Audit) -> None:
    conflicts = [finding for finding in audit.findings if finding.kind == "label"]
    if conflicts:
        first = conflicts[0]
        raise CheckRefused(
            f"{len(conflicts)} pairs of equal images carry two labels, the first {first.a} and {first.b}. One label is "
            "wrong, and no split makes that good: correct or remove the images in the source and import it anew."
        )


def _deal_all(rows: pd.DataFrame, parameters: SplitParameters) -> dict[str, str]:
    """Side of every unit (a group, or one image), dealt label by label."""
    counts = rows.groupby("unit")["label"].value_counts().unstack(fill_value=0).reindex(columns=list(CLASS_NAMES))
    counts = counts.fillna(0)
    label_of = counts.idxmax(axis="columns")  # of a group with both labels: that of most of its cells
    sides: dict[str, str] = {}
    for label in CLASS_NAMES:
        sizes = {str(unit): int(size) for unit, size in counts[label_of == label].sum(axis="columns").items()}
        if len(sizes) < len(SIDES):
            raise DataError(
                f"Expected at least {len(SIDES)} groups of patients with the label {label}, one for each side of the "
                f"split ({', '.join(SIDES)}), but got {len(sizes)}. Import more patients."
            )
        sides |= deal(sizes, parameters.fractions, key=f"{parameters.seed}:{label}")
    return sides


def deal(sizes: dict[str, int], fractions: dict[str, float], *, key: str) -> dict[str, str]:
    """Put units on sides, so that numbers of units and of cells both follow the fractions.

    The number of units a side gets is fixed by the fractions, at least one each. Of `DEALS` shuffles the one is kept
    whose shares of cells come nearest to the fractions. Shuffles sort by a hash of `key` and the unit's name, so the
    result depends neither on the order of `sizes` nor on a library's random numbers.

    Args:
        sizes: number of cells by unit; at least as many units as sides.
        fractions: share of the cells by side.
    """
    quotas = quota(len(sizes), list(fractions.values()))
    cells = sum(sizes.values())
    best: tuple[float, dict[str, str]] = (math.inf, {})
    for number in range(DEALS if max(sizes.values()) > 1 else 1):  # units of one cell are all alike
        order = sorted(sizes, key=lambda unit: hashlib.sha256(f"{key}:{number}:{unit}".encode()).digest())
        sides: dict[str, str] = {}
        error, start = 0.0, 0
        for (side, fraction), wanted in zip(fractions.items(), quotas, strict=True):
            units = order[start : start + wanted]
            start += wanted
            sides |= dict.fromkeys(units, side)
            error += abs(sum(sizes[unit] for unit in units) / cells - fraction)
        if error < best[0]:
            best = (error, sides)
    return best[1]


def quota(units: int, fractions: Sequence[float]) -> list[int]:
    """Share out a number of units by fractions that add up to 1, at least one each, by largest remainder.

    >>> quota(12, [0.55, 0.15, 0.15, 0.15])
    [6, 2, 2, 2]
    >>> quota(4, [0.55, 0.15, 0.15, 0.15])
    [1, 1, 1, 1]
    """
    if units < len(fractions):
        raise ValueError(f"Expected at least {len(fractions)} units but got {units}")
    shares = [1] * len(fractions)
    for _ in range(units - len(fractions)):
        behind = [fraction * units - share for fraction, share in zip(fractions, shares, strict=True)]
        shares[behind.index(max(behind))] += 1
    return shares


def write_split(rows: pd.DataFrame, cells: Cells, parameters: SplitParameters, out: Path) -> dict[str, Any]:
    """Write `split.parquet` and `split.json`, and return what the latter says."""
    facts = {
        "digest": split_digest(rows),
        "data_digest": cells.digest,
        "seed": parameters.seed,
        "by": parameters.by,
        "leaky": parameters.by != "group",
        "fractions": parameters.fractions,
        "synthetic": cells.synthetic,
        "sides": {side: _count(rows[rows["side"] == side]) for side in SIDES},
    }
    out.mkdir(parents=True, exist_ok=True)
    rows[["path", "subject", "group", "side"]].to_parquet(out / SPLIT, index=False)
    write_json(out / SPLIT_FACTS, facts)
    return facts


def _count(rows: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Cells, subjects and groups of one side, by label."""
    return {
        label: {
            "cells": len(of_label),
            "subjects": int(of_label["subject"].nunique()),
            "groups": int(of_label["group"].nunique()),
        }
        for label in CLASS_NAMES
        for of_label in (rows[rows["label"] == label],)
    }
