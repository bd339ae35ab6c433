"""The split: every group of patients on one side, each side with its share of groups and cells of either label."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import CheckRefused, DataError, LeakFound, UsageError
from blastwatch.manifest import SIDES, SPLIT, SPLIT_FACTS, Cells, check_columns, split_digest, write_json
from training.audit import Audit

WAYS = ("group", "image")
DEALS = 200  # random deals of the groups; the one whose shares of cells come nearest to the fractions is kept


@dataclass(frozen=True, kw_only=True)
class SplitParameters:
    """Section `split` of params.yaml. The four fractions are shares of the cells and add up to 1.

    by: `group` keeps the cells of tied patients together. `image` parts them: it exists to show how much a score
    gains by knowing the patient, and a split made by it is marked as leaky.
    keep: folder of an earlier split of fewer images. Its patients stay on their sides, and new ones are dealt so that
    the whole comes nearest to the fractions.
    """

    seed: int = 1
    by: str = "group"
    train: float = 0.55
    validation: float = 0.15
    calibration: float = 0.15
    test: float = 0.15
    keep: str = ""

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise UsageError(f"Expected split.seed to be a whole number of 0 or more but got {self.seed!r}.")
        if self.by not in WAYS:
            raise UsageError(f"Expected split.by to be one of {', '.join(WAYS)} but got {self.by!r}.")
        for side in SIDES:
            fraction = getattr(self, side)
            if type(fraction) is not float or not 0 < fraction < 1:
                raise UsageError(f"Expected split.{side} to be a number between 0 and 1 but got {fraction!r}.")
        if self.keep and self.by != "group":
            raise UsageError("Expected split.keep to be empty where split.by is image: images have no side to keep.")
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
        CheckRefused: where the audit found equal images under two labels, or ties patients that an earlier split, which
            is to be kept, has on two sides.
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
    kept = kept_sides(audit, Path(parameters.keep)) if parameters.keep else {}
    rows["side"] = units.map(_deal_all(rows.assign(unit=units), parameters, kept))
    if parameters.by == "group":
        check_leak(rows)
    return rows


def kept_sides(audit: Audit, earlier: Path) -> dict[str, str]:
    """Side of every group of which the earlier split knows a patient, by the group's name.

    Raises:
        CheckRefused: where patients of two sides now form one group. No side is right for it: a patient that was tested
            on must not be trained on, and one that was trained on cannot be tested on.
    """
    path = earlier / SPLIT
    if not path.is_file():
        raise DataError(f"Expected an earlier split in {earlier} (split.keep) but {path} is missing.")
    known = pd.read_parquet(path)
    check_columns(known, ("subject", "side"), path)
    side_of = dict(zip(known["subject"], known["side"], strict=True))
    kept = {}
    for group in audit.groups:
        sides = {subject: side_of[subject] for subject in group if subject in side_of}
        if len(set(sides.values())) > 1:
            told = ", ".join(f"{subject} ({side})" for subject, side in sides.items())
            raise CheckRefused(
                f"The audit ties patients that the split in {earlier} has on several sides: {told}. Remove the images "
                "of those on one of the sides from the source, or split anew with split.keep empty, and train anew."
            )
        if sides:
            kept[group[0]] = next(iter(sides.values()))
    return kept


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


def _deal_all(rows: pd.DataFrame, parameters: SplitParameters, kept: Mapping[str, str]) -> dict[str, str]:
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
        known = {unit: kept[unit] for unit in sizes if unit in kept}
        sides |= deal(sizes, parameters.fractions, key=f"{parameters.seed}:{label}", kept=known)
    return sides


def deal(
    sizes: Mapping[str, int], fractions: Mapping[str, float], *, key: str, kept: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Put units on sides, so that numbers of units and of cells both follow the fractions.

    The number of units a side gets is fixed by the fractions, at least one each. Of `DEALS` shuffles the one is kept
    whose shares of cells come nearest to the fractions. Shuffles sort by a hash of `key` and the unit's name, so the
    result depends neither on the order of `sizes` nor on a library's random numbers.

    Args:
        sizes: number of cells by unit; at least as many units as sides.
        fractions: share of the cells by side.
        kept: units that stay where they are.
    """
    held = dict(kept or {})
    free = [unit for unit in sizes if unit not in held]
    already = [sum(side == name for side in held.values()) for name in fractions]
    quotas = quota(len(free), list(fractions.values()), already)
    cells = sum(sizes.values())
    best: tuple[float, dict[str, str]] = (math.inf, {})
    for number in range(DEALS if max(sizes.values()) > 1 else 1):  # units of one cell are all alike
        order = sorted(free, key=lambda unit: hashlib.sha256(f"{key}:{number}:{unit}".encode()).digest())
        sides, start = dict(held), 0
        for side, wanted in zip(fractions, quotas, strict=True):
            sides |= dict.fromkeys(order[start : start + wanted], side)
            start += wanted
        share = dict.fromkeys(fractions, 0.0)
        for unit, side in sides.items():
            share[side] += sizes[unit] / cells
        error = sum(abs(share[side] - fraction) for side, fraction in fractions.items())
        if error < best[0]:
            best = (error, sides)
    return best[1]


def quota(units: int, fractions: Sequence[float], already: Sequence[int] | None = None) -> list[int]:
    """Share out a number of units by fractions that add up to 1, at least one each, by largest remainder.

    Args:
        already: units that each has; what is shared out comes on top.

    >>> quota(12, [0.55, 0.15, 0.15, 0.15])
    [6, 2, 2, 2]
    >>> quota(4, [0.55, 0.15, 0.15, 0.15])
    [1, 1, 1, 1]
    >>> quota(4, [0.55, 0.15, 0.15, 0.15], already=[6, 2, 1, 1])
    [2, 0, 1, 1]
    """
    held = list(already or [0] * len(fractions))
    total = units + sum(held)
    if total < len(fractions):
        raise ValueError(f"Expected at least {len(fractions)} units but got {total}")
    shares = list(held)
    for _ in range(units):
        empty = [index for index, share in enumerate(shares) if share == 0]
        behind = [fraction * total - share for fraction, share in zip(fractions, shares, strict=True)]
        shares[empty[0] if empty else behind.index(max(behind))] += 1
    return [share - before for share, before in zip(shares, held, strict=True)]


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
