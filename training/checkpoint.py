"""Checkpoints: written beside, then moved into place: a kill or a full disk never costs the last good one."""

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blastwatch.errors import DataError
from training.steps import held


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Keep other processes from a checkpoint, and from the run that goes on where it was.

    Raises:
        UsageError: where one is at the training that writes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    refusal = (
        f"Another process is at this training, whose checkpoint is {path}: its parameters, split and pack are the "
        "same. Wait for its end, or set another seed."
    )
    with held(lock, refusal):
        try:
            yield
        finally:
            # While it is held: who opened the file before finds it gone from the folder, and opens a new one.
            lock.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and text; raises `DataError` where the disk does not take them."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"The checkpoint {path} cannot be written: {error}. The one before it stays usable.") from error


def load_checkpoint(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint, None where there is none. Only tensors and plain values are unpickled.

    Raises:
        DataError: where the file cannot be read.
    """
    import torch

    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise DataError(
            f"The checkpoint {path} cannot be read: {error}. Remove it to start from the beginning."
        ) from error
    return state
