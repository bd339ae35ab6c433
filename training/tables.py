"""Which images a table offers: CSV or Parquet with the columns `path`, `label`, `subject`, and `source` if wanted."""

import csv
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError
from blastwatch.manifest import AUDIT, IMPORT, MANIFEST, REFUSED, SPLIT, SPLIT_FACTS, STATISTICS, check_columns
from training.sources import Candidate, Listing
from training.subjects import one_spelling

TABLE_COLUMNS = ("path", "label", "subject")
COLUMNS = (*TABLE_COLUMNS, "source")  # what is read; others may hold anything
WRITTEN = {MANIFEST: IMPORT, REFUSED: IMPORT, STATISTICS: AUDIT, SPLIT: SPLIT_FACTS}
"""Tables that an earlier step leaves in its folder, with the file that it leaves beside them."""
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
EXACT = 2**53  # the first whole number after which a float skips some


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
            listing.skip("equal rows")
    return listing


def _read_rows(table: Path) -> pd.DataFrame:
    if not table.is_file():
        raise DataError(f"Expected a table (.csv or .parquet) but {table} is missing.")
    try:
        if table.suffix.lower() == ".parquet":
            return pd.read_parquet(table)
        # As text: the subject 007 keeps its zeros, and a subject named NA is a name.
        _check_fields(table)
        return pd.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except (ValueError, OSError, csv.Error) as error:  # pandas' parser, unicode and Arrow errors are ValueErrors
        raise DataError(f"{table} cannot be read as a table (.csv in UTF-8, or .parquet): {error}") from error


def _check_fields(table: Path) -> None:
    """Of rows with a field more than the first line pandas makes an index, and moves every value by a column."""
    with table.open(newline="", encoding="utf-8-sig") as file, _fields_of_any_length():
        lines = csv.reader(file)
        columns = next((row for row in lines if row), [])  # pandas passes over empty lines before them, too
        for sign, name in OTHER_SEPARATORS.items():
            if len(columns) == 1 and sign in columns[0]:
                raise DataError(
                    f"Expected commas between the fields of {table} but its first line, {columns[0]!r}, has {name}. "
                    "Save it with commas."
                )
        for row in lines:
            if len(row) > len(columns):
                raise DataError(
                    f"Expected {len(columns)} fields, as in the first line, in line {lines.line_num} of {table} but "
                    f"got {len(row)}. Put a field with a comma in quotes, or name the column that lacks a name."
                )


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    """Without it csv refuses one of over 131,072 characters, such as a report or an outline, which pandas reads."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _only_table(folder: Path) -> Path:
    tables = sorted(path for path in folder.iterdir() if path.suffix.lower() in (".csv", ".parquet"))
    found = [path for path in tables if path.name not in WRITTEN or not (folder / WRITTEN[path.name]).is_file()]
    if len(found) != 1:
        told = ", ".join(path.name for path in found) or "none"
        raise DataError(f"Expected one table (.csv or .parquet) in {folder} but found {told}. Name the file itself.")
    return found[0]


def _text(value: object) -> str:
    if value is None or value != value:  # NaN is what differs from itself
        return ""
    if isinstance(value, float) and value.is_integer():  # whole numbers with a gap among them are floats in Parquet
        if abs(value) >= EXACT:
            raise DataError(f"Expected subjects as text but got the number {value!r}, whose last digits are lost.")
        return str(int(value))
    return str(value).strip()


def _candidate(listing: Listing, row: dict[str, str], name: str) -> Candidate | None:
    path, label, subject = row["path"], row["label"], one_spelling(row["subject"])
    inside = _inside(path, listing.root)
    if inside is None:
        listing.refuse(path, "outside", "Expected a path inside the table's folder, relative to it.")
    elif label not in CLASS_NAMES:
        listing.refuse(inside, "label", f"Expected the label all or hem but got {label!r}.")
    elif not subject:
        listing.refuse(inside, "subject", "Expected a subject but the field is empty.")
    elif not (listing.root / inside).is_file():
        advice = " Write folders apart by / and not by \\." if "\\" in inside else ""
        listing.refuse(inside, "missing", f"The table names it, but there is no such file.{advice}")
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
