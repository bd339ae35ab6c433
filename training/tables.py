"""Which images a table offers: CSV or Parquet with the columns `path`, `label`, `subject`, and `source` if wanted."""

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError
from blastwatch.manifest import check_columns
from training.sources import Candidate, Listing

TABLE_COLUMNS = ("path", "label", "subject")
COLUMNS = (*TABLE_COLUMNS, "source")  # what is read; others may hold anything


def list_table(table: Path, *, name: str) -> Listing:
    """The images that the rows of a table name.

    Paths are relative to the table's folder and must stay inside it: a row that leads outside, by `..` or as an
    absolute path, is refused, since the manifest would not survive a move and a table from elsewhere could name any
    file of this machine. Links inside the folder are followed; whoever made the folder put them there.
    An image that is named twice is taken once; where its rows disagree, it is refused.

    Args:
        table: the file, or a folder that holds one table beside its images.

    Raises:
        DataError: where the table is missing, cannot be read or lacks a column.
    """
    table = _only_table(table) if table.is_dir() else table
    rows = _read_rows(table)
    check_columns(rows, TABLE_COLUMNS, table)
    listing = Listing(root=table.parent)
    by_path: dict[str, list[Candidate]] = defaultdict(list)
    for row in rows.to_dict("records"):
        candidate = _candidate(listing, {key: _text(row[key]) for key in COLUMNS if key in row}, name)
        if candidate:
            by_path[candidate.path].append(candidate)
    for path, found in sorted(by_path.items()):
        if len(set(found)) > 1:
            listing.refuse(path, "repeated", f"{len(found)} rows name it with different labels, subjects or sources.")
            continue
        listing.candidates.append(found[0])
        for _ in found[1:]:
            listing.refuse(path, "repeated", "An equal row names it before; it is taken once.")
    return listing


def _read_rows(table: Path) -> pd.DataFrame:
    if not table.is_file():
        raise DataError(f"Expected a table (.csv or .parquet) but {table} is missing.")
    try:
        if table.suffix.lower() == ".parquet":
            return pd.read_parquet(table)
        # As text: the subject 007 keeps its zeros, and a subject named NA is a name.
        return pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:  # pandas' parser, unicode and Arrow errors are ValueErrors
        raise DataError(f"{table} cannot be read as a table (.csv in UTF-8, or .parquet): {error}") from error


def _only_table(folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".parquet"))
    if len(found) != 1:
        told = ", ".join(path.name for path in found) or "none"
        raise DataError(f"Expected one table (.csv or .parquet) in {folder} but found {told}. Name the file itself.")
    return found[0]


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()  # NaN is what differs from itself


def _candidate(listing: Listing, row: dict[str, str], name: str) -> Candidate | None:
    path, label, subject = (row[column] for column in TABLE_COLUMNS)
    inside = _inside(path, listing.root)
    if inside is None:
        listing.refuse(path, "outside", "Expected a path inside the table's folder, relative to it.")
    elif label not in CLASS_NAMES:
        listing.refuse(inside, "label", f"Expected the label all or hem but got {label!r}.")
    elif not subject:
        listing.refuse(inside, "subject", "Expected a subject but the field is empty.")
    elif not (listing.root / inside).is_file():
        listing.refuse(inside, "missing", "The table names it, but there is no such file.")
    else:
        return Candidate(path=inside, label=label, subject=subject, source=row.get("source") or name)
    return None


def _inside(path: str, root: Path) -> str | None:
    """The path relative to `root`, in its shortest form, or None where it leads outside or names nothing."""
    if not path or "\0" in path:
        return None
    short = os.path.normpath(root.absolute() / path)
    if not Path(short).is_relative_to(os.path.normpath(root.absolute())) or Path(short) == root.absolute():
        return None
    return PurePosixPath(os.path.relpath(short, root.absolute())).as_posix()
