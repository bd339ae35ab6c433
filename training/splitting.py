"""The split: which groups of patients train the model, stop its training, calibrate it, and test it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import CheckRefused, DataError, LeakFound, UsageError
from blastwatch.manifest import (
    KEPT_COLUMNS,
    SIDES,
    SPLIT,
    SPLIT_FACTS,
    Cells,
    columns_digest,
    split_digest,
    write_json,
)
from training.audit import Audit, crossing
from training.by_looks import folds_by_looks, places_by_looks
from training.dealing import check_enough, deal_labels, units_by_label
from training.keeping import keep_split

WAYS = ("group", "official", "image")
FOLDS_BY = ("balance", "looks")
TEST = SIDES[-1]


@dataclass(frozen=True)
class SplitParameters:
    """Section `split` of params.yaml.

    by: `group` keeps the cells of tied patients together. `official` takes the images below the folder named
    `official` (fold_1, C-NMC_test_prelim_phase_data) as test side as they are and deals the other groups; where the
    audit ties patients across, the split is marked as leaky. `image` parts patients: it exists to show how much a score
    gains by knowing the patient, and is marked as leaky.
    folds, fold: with folds of at least 2, groups are dealt into that many, and fold (0 to folds - 1) is the test side.
    folds_by: `balance` makes every fold like the whole, `looks` puts patients who look alike into one fold
        (`training.by_looks`).
    keep: folder of an earlier split of fewer images. Its groups stay on their sides (`training.keeping`), and new ones
    are dealt so that the whole comes nearest to the fractions.
    """

    seed: int = 1
    by: str = "group"
    train: float = 0.55
    validation: float = 0.15
    calibration: float = 0.15
    test: float = 0.15
    official: str = ""
    folds: int = 0
    fold: int = 0
    folds_by: str = "balance"
    keep: str = ""

    def __post_init__(self) -> None:
        if type(self.seed) is not int or self.seed < 0:
            raise UsageError(f"Expected split.seed to be a whole number, 0 or more, but got {self.seed!r}.")
        if self.by not in WAYS:
            raise UsageError(f"Expected split.by to be one of {', '.join(WAYS)} but got {self.by!r}.")
        for side in SIDES:
            fraction = getattr(self, side)
            if type(fraction) is not float or not 0 < fraction < 1:
                raise UsageError(f"Expected split.{side} to be a number between 0 and 1 but got {fraction!r}.")
        total = sum(self.fractions.values())
        if abs(total - 1) > 1e-6:
            told = " + ".join(f"{side} {fraction}" for side, fraction in self.fractions.items())
            raise UsageError(f"Expected the fractions of the split to add up to 1 but got {told} = {total:g}.")
        if (self.by == "official") != bool(self.official):
            raise UsageError(
                "split.by=official and split.official=FOLDER go together: name the folder of the test images, such "
                f"as fold_1, or neither. Got split.by={self.by} and split.official={self.official!r}."
            )
        if self.folds and not 0 <= self.fold < self.folds >= 2:
            raise UsageError(
                "Expected split.folds to be 0 (no folds) or at least 2, and split.fold from 0 to one less, but got "
                f"split.folds={self.folds} and split.fold={self.fold}."
            )
        if self.folds_by not in FOLDS_BY or (self.folds_by != FOLDS_BY[0] and not self.folds):
            raise UsageError(
                f"Expected split.folds_by to be one of {', '.join(FOLDS_BY)}, {FOLDS_BY[0]} without split.folds, but "
                f"got {self.folds_by!r}."
            )
        if self.by != "group" and (self.folds or self.keep):
            raise UsageError(f"split.folds and split.keep need split.by=group but got split.by={self.by}.")
        if self.folds and self.keep:
            raise UsageError("Expected split.folds or split.keep but got both: folds are dealt anew.")

    @property
    def fractions(self) -> dict[str, float]:
        return {side: getattr(self, side) for side in SIDES}

    @property
    def fractions_without_test(self) -> dict[str, float]:
        return {side: share / (1 - self.test) for side, share in self.fractions.items() if side != TEST}


def split_cells(
    cells: Cells, audit: Audit, parameters: SplitParameters, statistics: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Put every cell on a side: deterministic in the seed, balanced by label, size and source.

    Args:
        statistics: of the audit, for folds by looks.

    Returns:
        The manifest's rows with the columns `group` (the first subject of the group) and `side`, sorted by path.

    Raises:
        CheckRefused: where the audit found equal images under two labels, or an earlier split cannot be kept.
        DataError: where there are too few groups of a label, none of one on the test side, or no statistics of the
            cells where they are needed.
        LeakFound: where a group or an image stands on two sides, if the split is by group.
    """
    _refuse_conflicts(audit)
    rows = cells.rows.sort_values("path", ignore_index=True)
    group_of = {subject: group[0] for group in audit.groups for subject in group}
    rows["group"] = rows["subject"].map(group_of)
    if rows["group"].isna().any():
        unknown = sorted(set(rows.loc[rows["group"].isna(), "subject"]))
        raise DataError(
            f"The audit does not know the subjects {', '.join(unknown[:5])}. Run blastwatch data audit anew."
        )
    rows["side"] = _sides(rows, parameters, statistics)
    check_tested(rows)
    if parameters.by == "group":
        check_leak(rows)
    return rows


def _sides(rows: pd.DataFrame, parameters: SplitParameters, statistics: pd.DataFrame | None) -> pd.Series:
    key = str(parameters.seed)
    units = rows.assign(unit=rows["path"] if parameters.by == "image" else rows["group"])
    if parameters.by == "official":
        tested = rows["path"].map(lambda path: parameters.official in Path(path).parts[:-1])
        if not tested.any() or tested.all():
            raise DataError(
                f"Expected a folder {parameters.official} (split.official) in some of the paths of the manifest but "
                f"{'all' if tested.all() else 'none'} of {len(rows)} images lie in one."
            )
        dealt = deal_labels(units_by_label(units[~tested]), parameters.fractions_without_test, key=key)
        return units["unit"].map(dealt).where(~tested, TEST)
    if parameters.folds:
        fold_of = folds(units, parameters, statistics)
        tested = units["unit"].map(fold_of) == parameters.fold
        dealt = deal_labels(units_by_label(units[~tested]), parameters.fractions_without_test, key=key)
        return units["unit"].map(dealt).where(~tested, TEST)
    kept = keep_split(rows, Path(parameters.keep)).sides if parameters.keep else {}
    return units["unit"].map(deal_labels(units_by_label(units), parameters.fractions, key=key, kept=kept))


def folds(
    units: pd.DataFrame, parameters: SplitParameters, statistics: pd.DataFrame | None = None
) -> dict[str, int]:  # fmt: skip
    """Fold of every unit, 0 to folds - 1: the same whichever of them is tested on.

    Args:
        units: rows of the manifest with the columns `group` and `unit`, which are one here.
        statistics: of the audit, for folds by looks.
    """
    if parameters.folds_by == "looks":
        if statistics is None:
            raise DataError("Expected the statistics of an audit for split.folds_by=looks but got none.")
        return folds_by_looks(units_by_label(units), places_by_looks(units, statistics), parameters.folds)
    for label, of_label in units_by_label(units).items():
        check_enough(label, len(of_label), parameters.folds, "fold")
    names = {str(number): 1 / parameters.folds for number in range(parameters.folds)}
    dealt = deal_labels(units_by_label(units), names, key=f"{parameters.seed}:folds")
    return {unit: int(number) for unit, number in dealt.items()}


def check_tested(rows: pd.DataFrame, *, trained: bool = False) -> None:
    """Raise `DataError` where the test side lacks a label: no figure that tells labels apart is defined on it.

    Args:
        rows: of the manifest, with `side`. trained: whether a network was trained on this split.
    """
    tested = rows.loc[rows["side"] == TEST, "label"].value_counts()
    lacking = [label for label in CLASS_NAMES if label not in tested.index]
    if lacking:
        raise DataError(
            f"Expected test images of both labels but got none of {' and '.join(lacking)} among {tested.sum()}. Name a "
            "folder with both (split.official), or split by group"
            f"{': run blastwatch data split again so, and train anew' if trained else ''}."
        )


def check_leak(rows: pd.DataFrame) -> None:
    """Raise `LeakFound` where a group, a subject or an image (by its pixels) stands on two sides.

    Args:
        rows: of the manifest, with `group` and `side`.
    """
    for column, what in (("group", "groups"), ("subject", "subjects"), ("pixel_sha256", "images")):
        sides = rows.groupby(column)["side"].nunique()
        parted = list(map(str, sides.index[sides > 1]))
        if parted:
            raise LeakFound(
                f"The split leaks: expected all {what} on one side each but {len(parted)} stand on several, the first "
                f"{parted[0]}. Run blastwatch data audit on this data set, then split by group."
            )


def _refuse_conflicts(audit: Audit) -> None:
    conflicts = [finding for finding in audit.findings if finding.kind == "label"]
    if conflicts:
        first = conflicts[0]
        raise CheckRefused(
            f"{len(conflicts)} pairs of equal images carry two labels, the first {first.a} and {first.b}. One of the "
            "labels is wrong: correct or remove these images in the source, import and audit it anew."
        )


def write_split(
    rows: pd.DataFrame, cells: Cells, audit: Audit, parameters: SplitParameters, out: Path
) -> dict[str, Any]:
    """Write `split.parquet` and `split.json`, and return what the latter says: `leaky`, and how many of the audit's
    findings have their two images on two sides (`crossing`), travel with every figure that is obtained on this split.
    `ties_digest` names the groups and links of the audit, `kept_subjects` says how many a kept split knew.
    """
    kept = keep_split(rows, Path(parameters.keep)) if parameters.keep else None
    parted = rows.groupby("group")["side"].nunique()
    crossed = crossing(audit.findings, rows)
    facts = {
        "digest": split_digest(rows),
        "rows_digest": columns_digest(rows, KEPT_COLUMNS),
        "ties_digest": audit.ties_digest,
        "data_digest": cells.digest,
        "seed": parameters.seed,
        "by": parameters.by,
        "leaky": bool(crossed) or bool((parted > 1).any()),
        "crossing": len(crossed),
        "parted_groups": sorted(map(str, parted.index[parted > 1])),
        "fractions": parameters.fractions,
        "official": parameters.official,
        "folds": parameters.folds,
        "fold": parameters.fold,
        "folds_by": parameters.folds_by,
        "kept": kept.digest if kept else "",
        "kept_subjects": dict(kept.subjects) if kept else None,
        "synthetic": cells.synthetic,
        "sides": {side: _count(rows[rows["side"] == side]) for side in SIDES},
    }
    out.mkdir(parents=True, exist_ok=True)
    rows[list(KEPT_COLUMNS)].to_parquet(out / SPLIT, index=False)
    write_json(out / SPLIT_FACTS, facts)
    return facts


def check_ties(facts: Mapping[str, Any], audit: Audit, folder: Path) -> None:
    """Raise `LeakFound` where a split was dealt by other groups or links than those of the audit in `folder`.

    Args:
        facts: what split.json says; of an earlier program it does not name the audit.
    """
    if facts.get("ties_digest", audit.ties_digest) != audit.ties_digest:
        raise LeakFound(
            f"The audit in {folder} ties other patients than the one by which the split was made, which may part "
            "those. Name that audit, or split anew by this one and train on that split."
        )


def leak_told(facts: Mapping[str, Any]) -> str:
    """A sentence for people about a split that leaks, by what `write_split` returned."""
    return (
        f"This split by {facts['by']} leaks: {len(facts['parted_groups'])} groups of patients stand on several "
        f"sides and {facts['crossing']} findings of the audit cross it. Its scores say little about new patients."
    )


def dealt_by(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The section `split` by which a split was dealt, whatever the parameters say today; `kept` is the digest of the
    split that `keep` named.

    Args:
        facts: what split.json says; of an earlier program it may say less.
    """
    told = ("seed", "by", "official", "folds", "fold", "folds_by", "kept")
    return {**facts["fractions"], **{name: facts[name] for name in told if name in facts}}


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
