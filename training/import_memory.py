"""What earlier imports read: so that one that was stopped goes on, and one of unchanged files reads none of them.

A file counts as unchanged while its place, size, and times of change (mtime and ctime, in nanoseconds) are the same, as
for git and DVC. SQLite keeps what was committed through a kill of the process at any moment.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import PIL
from filelock import FileLock

from blastwatch.errors import DataError
from blastwatch.images import FORMATS, MAX_BYTES, MAX_PIXELS

SCHEMA = """
create table if not exists seen (
    place text primary key, stamp text not null, fact text not null
) without rowid
"""
# What else decides how a file is read: another Pillow or other limits read all anew.
DECODER = f"{PIL.__version__}:{MAX_BYTES}:{MAX_PIXELS}:{','.join(FORMATS)}"
WAIT_SECONDS = 60  # for another import that writes
ASKED = 500  # places in one question; SQLite allows 32,766 parameters

Fact = dict[str, Any]
"""What was read of one file: digests and size in px, or the reason and message of its refusal."""


def stamp(path: Path) -> str:
    """What changes when the file does.

    Raises:
        OSError: where it cannot be looked at.
    """
    state = path.stat()
    return f"{state.st_size}:{state.st_mtime_ns}:{state.st_ctime_ns}:{DECODER}"


class ImportMemory:
    """A SQLite file of facts by place; several imports may share it.

    Every method raises `DataError` where the file is damaged, locked for too long, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        with self._told():
            self._database = sqlite3.connect(path, timeout=WAIT_SECONDS)
            # SQLite waits for nobody while it changes a new file to its write-ahead log, it says "database is locked".
            with FileLock(path.with_suffix(".lock"), timeout=WAIT_SECONDS):
                self._database.execute("pragma journal_mode = wal")
                self._database.execute("pragma synchronous = normal")
                self._database.execute(SCHEMA)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"What earlier imports read cannot be looked up or kept in {self._path}: {error}. Import with --fresh, "
                "or delete that file where it is damaged: it spares reading images again and holds nothing else."
            ) from error

    def __enter__(self) -> "ImportMemory":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def recall(self, root: Path, stamps: Mapping[str, str]) -> dict[str, Fact]:
        """Facts of the files that are unchanged.

        Args:
            root: folder that the paths are relative to. stamps: by path.
        """
        known: dict[str, Fact] = {}
        paths = {_place(root, path): path for path in stamps}
        places = list(paths)
        for start in range(0, len(places), ASKED):
            asked = places[start : start + ASKED]
            marks = ",".join("?" * len(asked))
            query = f"select place, stamp, fact from seen where place in ({marks})"  # noqa: S608 - marks only
            with self._told(), closing(self._database.execute(query, asked)) as rows:
                for place, seen, fact in rows:
                    if seen == stamps[paths[place]]:
                        known[paths[place]] = json.loads(fact)
        return known

    def keep(self, root: Path, facts: Iterable[tuple[str, str, Fact]]) -> None:
        """Remember (path, stamp, fact) of files that were read; all of them or, where the process is killed, none."""
        rows = [(_place(root, path), seen, json.dumps(fact)) for path, seen, fact in facts]
        with self._told(), self._database:
            self._database.executemany("insert or replace into seen values (?, ?, ?)", rows)


def _place(root: Path, path: str) -> str:
    return str(root.absolute() / path)
