"""The folds of a cross-validation: one split a fold, and the proof that every group is tested exactly once."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from blastwatch.console import progress
from blastwatch.digests import json_digest
from blastwatch.errors import LeakFound, UsageError
from blastwatch.manifest import SIDES, Cells, split_digest
from training.audit import Audit
from training.dealing import units_by_label
from training.splitting import TEST, SplitParameters, split_cells, write_split

DEFAULT = 5


def fold_splits(
    cells: Cells, audit: Audit, parameters: SplitParameters, statistics: pd.DataFrame | None = None
) -> list[pd.DataFrame]:
    """A split for every fold, that fold its test side, the other sides dealt from the rest (`split_cells`).

    Args:
        parameters: `folds` of at least 2; `fold` does not matter. statistics: of the audit, for folds by looks.

    Raises:
        UsageError: where a label has too few groups for so many folds.
        LeakFound: where a group would not be tested exactly once.
    """
    check_number(cells, audit, parameters.folds)
    splits = [
        split_cells(cells, audit, replace(parameters, fold=fold), statistics)
        for fold in progress(range(parameters.folds), total=parameters.folds, what="Dealing folds")
    ]
    check_tested_once(splits)
    return splits


def check_folds(folds: int) -> None:
    """Raise `UsageError` where there are no folds at all."""
    if folds < 2:
        raise UsageError(f"Expected at least 2 folds but got {folds}. Name them with --set split.folds=N.")


def check_number(cells: Cells, audit: Audit, folds: int) -> None:
    """Raise `UsageError` unless every fold can test a group of each label and leave one for every other side."""
    check_folds(folds)
    group_of = {subject: group[0] for group in audit.groups for subject in group}
    units = units_by_label(cells.rows.assign(unit=cells.rows["subject"].map(group_of)))
    others = len(SIDES) - 1
    for label, of_label in units.items():
        groups = len(of_label)
        largest = -(-groups // folds)
        if folds > groups or groups - largest < others:
            raise UsageError(
                f"{folds} folds do not fit: the label {label} has {groups} groups of patients, and every fold needs "
                f"one of them to be tested and leaves {others} others to train, validate and calibrate. Set "
                "split.folds, or import more patients."
            )


def check_tested_once(splits: Sequence[pd.DataFrame]) -> None:
    """Raise `LeakFound` unless every cell, and so every group, lies on the test side of exactly one split."""
    paths = set(splits[0]["path"])
    tested = pd.concat([rows.loc[rows["side"] == TEST, ["path", "group"]].drop_duplicates() for rows in splits])
    groups = pd.concat([rows.loc[rows["side"] == TEST, "group"].drop_duplicates() for rows in splits])
    twice = sorted(set(map(str, groups[groups.duplicated()])))
    missing = paths - set(tested["path"])
    if twice or missing or tested["path"].duplicated().any():
        raise LeakFound(
            f"Expected every group to be tested exactly once but {len(twice)} are tested more often "
            f"({', '.join(twice[:3]) or 'none'}) and {len(missing)} cells never. Run blastwatch data audit anew."
        )


def write_folds(
    splits: Sequence[pd.DataFrame], cells: Cells, audit: Audit, parameters: SplitParameters, out: Path
) -> list[Path]:
    """Write each split as `blastwatch data split` would, into `out/0`, `out/1`, ...; returns these folders. Splits of
    more folds, which lie there from before, are removed: whoever reads the folder would take them for some of these."""
    folders = [out / str(fold) for fold in range(len(splits))]
    for fold, (rows, folder) in enumerate(zip(splits, folders, strict=True)):
        write_split(rows, cells, audit, replace(parameters, fold=fold), folder)
    for folder in out.iterdir():
        if folder.name.isdecimal() and folder not in folders:
            shutil.rmtree(folder)
    return folders


def folds_digest(splits: Sequence[pd.DataFrame]) -> str:
    """One SHA-256 (hex) for all folds, in their order."""
    return json_digest([split_digest(rows) for rows in splits])


def counts(rows: pd.DataFrame) -> Mapping[str, int]:
    """Groups on each side."""
    return {side: int(rows.loc[rows["side"] == side, "group"].nunique()) for side in SIDES}
