"""Small files by which processes tell each other how things stand."""

import fcntl
import json
import os
from pathlib import Path
from typing import IO, Any


def write_state(path: Path, value: dict[str, Any]) -> Path:
    """Replace a JSON file in one step: whoever reads meanwhile gets all of the old one or all of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f"{path.name}.{os.getpid()}")
    written.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    return written.replace(path)


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
