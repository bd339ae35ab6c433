"""What the scoring of a folder has done so far, in a file beside the one that it will write.

An archive takes hours. Who is stopped before its end, by a kill or a full disk, goes on with what is here. The file is
a line of JSON that says what scores, then a line for each batch; a last line that was cut off is left out.
"""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from blastwatch.errors import BlastwatchError

Mark = tuple[int, int, int]
"""Of a file: its size in bytes, and in ns the times of the last change of its content (mtime) and of anything about it
(ctime). Another one at its place has others, also where a copy kept the time of its content, or two names changed
places. The number of a file (inode) is none of it: a network disk gives another each time it is mounted."""
Row = dict[str, Any]
"""One image: `serving.scoring.COLUMNS`."""

OURS = {"folder", "package", "version"}
"""In the first line, whichever release wrote it. With other names beside them it is of another, and all begins anew."""
_MARK = "mark"


def mark_of(path: Path) -> Mark | None:
    """None where there is no such file now, or no right to look at it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


class KeptScores:
    """The rows of one scoring. `open_kept` makes it.

    of_another: whether rows of another version, folder, limit, program or Pillow stood here, which are gone.
    """

    def __init__(self, path: Path, file: FileIO, by: Mapping[str, Any]) -> None:
        self.path = path
        self._file = file
        self._known: dict[str, tuple[Mark, Row]] = {}
        *lines, cut_off = file.read().split(b"\n")
        first: dict[str, Any] = dict(json.loads(lines[0])) if lines else dict(by)
        begin = f'{{"{next(iter(by))}": '.encode()  # of a first line that a kill or a full disk cut off
        if not set(first) >= OURS or (not lines and cut_off[: len(begin)] != begin[: len(cut_off)]):
            raise ValueError(first)
        self.of_another = first != by
        if self.of_another or not lines:
            file.truncate(0)
            self._write(by)
        else:
            file.truncate(file.tell() - len(cut_off))
            for line in lines[1:]:
                self._hold(json.loads(line))

    def __len__(self) -> int:
        return len(self._known)

    def find(self, name: str, mark: Mark | None) -> Row | None:
        """The row of an image, where the file is the one that was scored."""
        known = self._known.get(name)
        return known[1] if known is not None and known[0] == mark else None

    def add(self, rows: Sequence[Row], marks: Sequence[Mark | None]) -> None:
        """Keep the rows of a batch; those of files without a mark are not kept.

        Raises:
            BlastwatchError: they cannot be written.
        """
        batch = [row | {_MARK: mark} for row, mark in zip(rows, marks, strict=True) if mark is not None]
        self._write(batch)
        self._hold(batch)

    def remove(self) -> None:
        """All is written where it belongs, or nothing can be."""
        self.path.unlink(missing_ok=True)

    def _write(self, value: Any) -> None:
        line = json.dumps(value).encode() + b"\n"
        try:
            written = self._file.write(line)
        except OSError as error:
            raise _unkept(self.path, error) from error
        if written < len(line):  # the disk took a part and is full
            raise _unkept(self.path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def _hold(self, batch: Sequence[Row]) -> None:
        for row in batch:
            size, content, any_change = row[_MARK]
            self._known[row["path"]] = (size, content, any_change), {name: row[name] for name in row if name != _MARK}


@contextmanager
def open_kept(out: Path, by: Mapping[str, Any]) -> Iterator[KeptScores]:
    """What was kept for `out`, in `OUT.part`.

    Args:
        by: what scores and what, with the names in `OURS` among others: rows of anything else are not taken.

    Raises:
        BlastwatchError: another process writes it, it is none of ours, or it cannot be written.
    """
    path = out.with_name(f"{out.name}.part")
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlastwatchError(f"Another `blastwatch score` writes {out} just now.") from error
        file.seek(0)
        try:
            kept = KeptScores(path, file, by)
        except (ValueError, TypeError, KeyError) as error:
            raise BlastwatchError(
                f"Expected the scores that an earlier `blastwatch score` kept in {path} but it holds something else. "
                "Remove it, or name another --out."
            ) from error
        yield kept


def _opened(path: Path) -> FileIO:
    """Without a buffer: what it could not write it would try again when the file is closed."""
    try:
        return path.open("a+b", buffering=0)
    except OSError as error:
        raise _unkept(path, error) from error


def _unkept(path: Path, error: OSError) -> BlastwatchError:
    return BlastwatchError(f"The scores so far cannot be kept in {path}: {error.strerror or error}.")
