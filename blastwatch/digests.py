"""SHA-256 of files, folders and structured values: the names by which evidence is tied together."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON value, independent of the order of keys and of white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def rows_digest(rows: Iterable[tuple[str, ...]]) -> str:
    """SHA-256 (hex) of a set of rows of text, independent of their order."""
    digest = hashlib.sha256()
    for row in sorted(rows):
        digest.update(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def folder_digests(folder: Path, *, leave_out: Iterable[str] = ()) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path with forward slashes, sorted."""
    skipped = set(leave_out)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name: file_digest(folder / name) for name in names if name not in skipped}


def combined_digest(digests: Mapping[str, str]) -> str:
    """One SHA-256 (hex) for a set of named digests."""
    return json_digest(dict(digests))
