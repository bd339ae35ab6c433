"""Keeping an earlier split: which side each group of patients lay on, known by names, paths and pixels.

Names alone would not do. Where the next delivery writes its ids in another way no patient would be known, and those
that were tested would be dealt to any side. So a cell is known by its pixels too, and its group with it. A path proves
little, since files that are numbered shift by one added cell: it counts where nothing else tells of either cell.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from blastwatch.errors import CheckRefused, DataError
from blastwatch.manifest import (
    KEPT_COLUMNS,
    SPLIT,
    SPLIT_FACTS,
    check_columns,
    columns_digest,
    read_json,
    read_rows,
    split_digest,
)

KNOWN_BY = ("subject", "path", "pixel_sha256")
MADE_BY = "blastwatch data split"


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What is kept of an earlier split.

    digest: of that split. sides: side by the name of a group. subjects: `named`, subjects that it knows by their names;
    `by_image`, those of which it knows a cell alone, under another subject; `by_path`, those of which it knows but the
    path of a cell; `new`, all others; `gone`, its own of which neither the name nor a cell is left.
    """

    digest: str
    sides: Mapping[str, str]
    subjects: Mapping[str, int]


def keep_split(rows: pd.DataFrame, earlier: Path) -> Kept:
    """Side of every group of which the earlier split knows a patient or a cell.

    Args:
        rows: of the manifest, with the column `group`. earlier: folder of the split.

    Raises:
        CheckRefused: where what lay on two sides now forms one group, or the earlier split parted one patient: no side
            is right then, a patient that was tested on must not be trained on, and one that was trained on cannot be
            tested on. Or where none of its patients is known.
        DataError: where the earlier split is missing or was changed.
    """
    known, digest = _read(earlier)
    apart = known.groupby("subject")["side"].nunique()
    if (apart > 1).any():
        told = ", ".join(map(str, apart.index[apart > 1][:5]))
        raise CheckRefused(
            f"Expected every patient of the split in {earlier} (split.keep) on one side but {(apart > 1).sum()} have "
            f"images on several, such as {told}. Keep a split by group, or split anew with split.keep empty."
        )
    found = pd.concat([_known_by(column, rows, known) for column in KNOWN_BY if column in known])
    subjects = _counts(rows, known, found)
    if found.empty:
        raise CheckRefused(
            f"Expected cells of the {subjects['gone']} patients of the split in {earlier} (split.keep) but none of its "
            "subjects and none of its images is among these: nobody would stay where they were. Name subjects as they "
            "were named then, or split anew with split.keep empty, and train anew."
        )
    _refuse_parted(found, earlier)
    sides = dict(zip(found["group"], found["side"], strict=True))
    return Kept(digest=digest, sides=sides, subjects=subjects)


def kept_told(keep: str, subjects: Mapping[str, int]) -> str:
    """A sentence for people about what was kept, by the `subjects` of `Kept`."""
    by = {what: subjects.get(f"by_{what}", 0) for what in ("image", "path")}
    told = "; ".join(f"{count} under another name, known by their {what}s" for what, count in by.items() if count)
    others = f" ({told})" if told else ""
    gone = f" {subjects['gone']} of its subjects are gone." if subjects["gone"] else ""
    return (
        f"Kept the sides of {subjects['named'] + sum(by.values())} subjects{others} of the split in {keep}; "
        f"{subjects['new']} are new.{gone}"
    )


def _read(earlier: Path) -> tuple[pd.DataFrame, str]:
    """Rows and digest of the earlier split, checked: whoever edits a side or a name in it moves patients unseen."""
    path = earlier / SPLIT
    if not path.is_file():
        raise DataError(f"Expected an earlier split in {earlier} (split.keep) but {path} is missing.")
    facts, known = read_json(earlier / SPLIT_FACTS, made_by=MADE_BY), read_rows(path, made_by=MADE_BY)
    whole = "rows_digest" in facts  # a split of an earlier program has no pixels and no digest of whole rows
    wanted = KEPT_COLUMNS if whole else ("path", "subject", "group", "side")
    check_columns(known, wanted, path)
    if split_digest(known) != facts["digest"] or (whole and columns_digest(known, wanted) != facts["rows_digest"]):
        raise DataError(
            f"{path} (split.keep) was changed after it was made: its digest is not the one in {SPLIT_FACTS}. Name the "
            "folder of the split as it was trained on."
        )
    return known, str(facts["digest"])


def _known_by(column: str, rows: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """What both have in this column: group, subject, told (for people), by; earlier (subject) and side of then."""
    if column == "path":
        rows, known = _untold(rows, known), _untold(known, rows)
    told = rows["subject"] if column == "subject" else ("path " if column == "path" else "image ") + rows["path"]
    now = pd.DataFrame({"key": rows[column], "group": rows["group"], "subject": rows["subject"], "told": told})
    then = pd.DataFrame({"key": known[column], "earlier": known["subject"], "side": known["side"]})
    found = now.drop_duplicates().merge(then.drop_duplicates(), on="key")
    return found.assign(by=column)


def _untold(rows: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Rows of which the others have neither the subject nor, where both hold pixels, these."""
    told = rows["subject"].isin(others["subject"])
    if "pixel_sha256" in rows and "pixel_sha256" in others:
        told |= rows["pixel_sha256"].isin(others["pixel_sha256"])
    return rows[~told]


def _counts(rows: pd.DataFrame, known: pd.DataFrame, found: pd.DataFrame) -> dict[str, int]:
    named = set(found.loc[found["by"] == "subject", "subject"])
    seen = set(found.loc[found["by"] == "pixel_sha256", "subject"]) - named
    told = set(found["subject"])
    return {
        "named": len(named),
        "by_image": len(seen),
        "by_path": len(told - named - seen),
        "new": len(set(rows["subject"]) - told),
        "gone": len(set(known["subject"]) - set(found["earlier"])),
    }


def _refuse_parted(found: pd.DataFrame, earlier: Path) -> None:
    apart = found.groupby("group", sort=False)["side"].nunique()
    if not (apart > 1).any():
        return
    first = found[found["group"] == apart.index[apart > 1][0]]
    # All subjects that are known by their names, and of a side on which there is none the first image.
    proof = pd.concat([first[first["by"] == "subject"], first.drop_duplicates("side")])
    proof = proof.drop_duplicates(["told", "side"])
    told = ", ".join(f"{row.told} ({row.side})" for row in proof.itertuples())
    raise CheckRefused(
        f"One group of patients lay on several sides of the split in {earlier} (split.keep): {told}; "
        f"{(apart > 1).sum()} groups in all. Remove the images of those on one of the sides from the source, give a "
        "path that now holds another cell another name, or split anew with split.keep empty, and train anew."
    )
