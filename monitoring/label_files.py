"""The file that `blastwatch labels add` reads, as spreadsheets write it: with commas, semicolons or tabs."""

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError

NEEDED = ("id", "label")
DELIMITERS = (",", ";", "\t")
MOST_LINES = 10  # that an error names


class Given(NamedTuple):
    """One label of a file, and the line that it stands in."""

    id: str
    label: str
    line: int


def read_labels(file: Path, *, skip_empty: bool) -> Iterator[Given]:
    """The labels of a file whose first line names the columns id and label; other columns are not read.

    Args:
        skip_empty: pass over lines that have an id and no label.

    Raises:
        DataError: the file cannot be read, or a line of it is not what was expected; it names the line.
    """
    text = _text(file)
    try:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, file))
        names = _names(next(lines))
        places = [names.index(name) for name in NEEDED]
        for cells in lines:
            if not any(map(str.strip, cells)):  # a spreadsheet writes ;; for a row that was emptied
                continue
            id_, label = ((cells[place] if place < len(cells) else "").strip().lower() for place in places)
            if id_ and not label and skip_empty:
                continue
            _check(id_, label, f"line {lines.line_num} of {file}")
            yield Given(id_, label, lines.line_num)
    except csv.Error as error:
        raise DataError(f"Expected a CSV file but {file} cannot be read: {error}. Save it as CSV UTF-8.") from error


def lines_of(given: Sequence[Given], ids: Sequence[str]) -> str:
    """Where these ids stand, for an error: "line 3", or "lines 3, 7 and 9"; of many the first, and how many more."""
    wanted = set(ids)
    found = [str(row.line) for row in given if row.id in wanted]
    if len(found) == 1:
        return f"line {found[0]}"
    named, more = found[:MOST_LINES], len(found) - MOST_LINES
    last = f"{more} more" if more > 0 else named.pop()
    return f"lines {', '.join(named)} and {last}"


def _text(file: Path) -> str:
    """What is in the file. UTF-16 is known by its mark at the beginning, as a spreadsheet writes it."""
    content = file.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"Expected text in UTF-8, or in UTF-16 with its mark, but line {line} of {file} is neither. Save it as CSV "
            "UTF-8."
        ) from error


def _delimiter(text: str, file: Path) -> str:
    """By what the first line parts its columns.

    Raises:
        DataError: by nothing known does it give the columns that are needed.
    """
    first = io.StringIO(text, newline="").readline().rstrip("\r\n")
    for delimiter in DELIMITERS:
        if set(NEEDED) <= set(_names(next(csv.reader([first], delimiter=delimiter), []))):
            return delimiter
    found = f"its first line is {first[:200]!r}" if text else "it is empty"
    raise DataError(
        f"Expected the columns id and label, parted by commas, semicolons or tabs, in the first line of {file} but "
        f"{found}."
    )


def _names(cells: Sequence[str]) -> list[str]:
    return [name.strip() for name in cells]


def _check(id_: str, label: str, where: str) -> None:
    if not id_ or not label:
        raise DataError(
            f"Expected an id and a label in {where}. Lines without a label are passed over with --skip-empty."
        )
    if "\0" in id_:  # SQLite would look for it, PostgreSQL refuses it without naming the line
        raise DataError(f"Expected no NUL in the id in {where}. Take it out.")
    if label not in CLASS_NAMES:
        raise DataError(f"Expected the label {' or '.join(CLASS_NAMES)} in {where} but got {label[:64]!r}.")
