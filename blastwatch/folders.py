"""Folders that a command writes into: asked for before the work is done whose result would have no place."""

import contextlib
import tempfile
from pathlib import Path

from blastwatch.errors import UsageError


def check_folder(folder: Path, name: str) -> None:
    """Refuse a folder that cannot be made or written to; what is made to find out is taken away again.

    Args:
        name: the option or setting that it came from, for the message.

    Raises:
        UsageError: saying why not.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"Expected a folder that can be made and written to as {name} but got {folder}: "
            f"{error.strerror or error}. Name another one, or mend it."
        ) from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # not made, or somebody else's by now
                path.rmdir()
