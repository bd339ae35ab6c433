"""Files that are there whole or as they were before, and small ones by which processes tell how things stand."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any

from blastwatch.errors import DataError


def write_state(path: Path, value: dict[str, Any]) -> Path:
    """Replace a JSON file in one step: whoever reads meanwhile gets all of the old one or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace_file(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """Write a file into a folder that is there, in one step: a kill or a full disk leaves what stood there before.

    Raises:
        DataError: where it cannot be written.
    """
    try:
        replace_file(path, content)
    except OSError as error:
        raise DataError(
            f"Expected to write {len(content)} bytes to {path} but the machine refused: {error.strerror or error}. "
            "What stood there before stays. Make room there, or name another folder."
        ) from error


def replace_file(path: Path, content: bytes) -> Path:
    """Write a file beside its place and then into it; what cannot be written to its end is removed."""
    written = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        written.write_bytes(content)
        return written.replace(path)
    except OSError:
        written.unlink(missing_ok=True)
        raise


def try_lock(path: Path) -> IO[str] | None:
    """A lock, held as long as the file is open here or in a child that inherits it; None where another holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file
