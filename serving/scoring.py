"""Score a folder of images on this machine, the same way as the service: `serving.predictor`, in batches."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.errors import DataError, ImageRejected
from blastwatch.inference import in_batches
from blastwatch.settings import Settings
from serving.live import LiveModel
from serving.names import line_of, text_of
from serving.predictor import Judge, Prepared, check_size, finite, prepare, reading_threads

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
# Beside the reasons of `ImageRejected`:
UNREADABLE = "unreadable"  # no right to read, or gone meanwhile
NO_ANSWER = "no-answer"  # the model's outputs for it are no numbers
COLUMNS = ("path", "probability", "label", "decision", "model_version", "reasons")


@dataclass(frozen=True)
class Refused:
    """One image that was not scored, and why."""

    path: str
    reason: str
    message: str


def find_images(folder: Path) -> list[Path]:
    """Every image file below a folder, sorted.

    Raises:
        DataError: the folder is missing or has none, or a folder below it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"Expected a folder of images but {folder} is none.")
    paths = (Path(place) / name for place, _, names in os.walk(folder, onerror=_unread) for name in names)
    found = sorted(path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise DataError(f"Expected images ({', '.join(SUFFIXES)}) in {folder} but found none.")
    return found


def _unread(error: OSError) -> None:
    """Left out in silence, its cells would look as if there were none."""
    place = line_of(str(error.filename))
    raise DataError(f"Expected a folder that can be read but {place} cannot: {error.strerror}.") from error


def score(
    folder: Path,
    live: LiveModel,
    settings: Settings,
    *,
    watched: Callable[[list[list[Path]]], Iterable[list[Path]]] = iter,
) -> tuple[pd.DataFrame, list[Refused]]:
    """Score every image below a folder.

    Args:
        watched: goes around the loop over batches, for a progress bar.

    Returns:
        One row an image with `COLUMNS` (path relative to the folder, as `serving.names.text_of`; reasons of a decision
        to refer, else ""), and the images that were refused.
    """
    package = live.served.package
    judge = Judge(package)
    paths = find_images(folder)
    parts = [paths[start : start + settings.max_batch_size] for start in range(0, len(paths), settings.max_batch_size)]
    rows: list[dict[str, object]] = []
    refused: list[Refused] = []

    def named(path: Path) -> str:
        return text_of(path.relative_to(folder).as_posix())

    def read(path: Path) -> Prepared | Refused:
        name = named(path)
        try:
            size = path.stat().st_size  # a slide is refused before it fills the memory
            data = path.read_bytes() if size <= settings.max_image_bytes else b""
            check_size(max(size, len(data)), settings.max_image_bytes)
            return prepare(data, package, max_pixels=settings.max_image_pixels)
        except ImageRejected as error:
            return Refused(name, error.reason, str(error))
        except OSError as error:
            return Refused(name, UNREADABLE, f"The file cannot be read: {error.strerror or error}.")

    with ThreadPoolExecutor(reading_threads()) as pool:
        for part in watched(parts):
            read_part = list(zip(map(named, part), pool.map(read, part), strict=True))
            refused += [item for _, item in read_part if isinstance(item, Refused)]
            good = [(name, item) for name, item in read_part if isinstance(item, Prepared)]
            if not good:
                continue
            outputs = in_batches(live.engine.infer, np.stack([item.crop for _, item in good]))
            for (name, item), logits, embedding in zip(good, outputs.logits, outputs.embeddings, strict=True):
                if not finite(logits, embedding):
                    refused.append(Refused(name, NO_ANSWER, "The model gives no answer for this cell."))
                    continue
                said = judge(item, logits, embedding)
                rows.append(
                    {
                        "path": name,
                        "probability": said.probability,
                        "label": said.label,
                        "decision": said.decision,
                        "model_version": live.served.entry.version,
                        "reasons": "; ".join(said.reasons),
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS)), refused
