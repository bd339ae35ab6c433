"""Score a folder of images on this machine, the same way as the service: `serving.predictor`, in batches."""

import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.errors import DataError, ImageRejected
from blastwatch.image_files import IMAGE_SUFFIXES, files_below, in_words
from blastwatch.inference import in_batches
from blastwatch.settings import Settings
from serving.kept_scores import KeptScores, Row, mark_of
from serving.live import LiveModel
from serving.names import line_of, text_of
from serving.predictor import Judge, Prepared, check_size, finite, prepare
from serving.readers import reading_threads

# Beside the reasons of `ImageRejected`:
UNREADABLE = "unreadable"  # no right to read, gone meanwhile, a link to nothing, or no file
NO_ANSWER = "no-answer"  # the model's outputs for it are no numbers
COLUMNS = ("path", "probability", "label", "decision", "model_version", "reasons", "seen_in_training")


@dataclass(frozen=True)
class Refused:
    """One image that was not scored, and why."""

    path: str
    reason: str
    message: str


def find_images(folder: Path, aside: Callable[[str], None] | None = None) -> list[Path]:
    """Every image file below a folder, sorted, as the import finds them: `blastwatch.image_files.files_below`.

    A link to nothing that may have been one to a folder is among them, to be refused when it is read: it costs no cell.

    Args:
        aside: told why, for each thing that was passed over and may have been meant.

    Raises:
        DataError: the folder is missing or has none, or a folder below it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"Expected a folder of images but {folder} is none.")
    passed_over: Counter[str] = Counter()

    def tell(why: str) -> None:
        passed_over[why] += 1
        if aside:
            aside(why)

    try:
        found = sorted(folder / name for name in files_below(folder, IMAGE_SUFFIXES, aside=tell, dead=True))
    except OSError as error:  # left out in silence, its cells would look as if there were none
        place = line_of(str(error.filename))
        raise DataError(f"Expected a folder that can be read but {place} cannot: {error.strerror}.") from error
    if not found:
        left = f" Left aside were {in_words(passed_over)}." if passed_over else ""
        raise DataError(f"Expected images ({', '.join(IMAGE_SUFFIXES)}) in {folder} but found none.{left}")
    return found


def score(
    folder: Path,
    live: LiveModel,
    settings: Settings,
    *,
    watched: Callable[[list[list[Path]]], Iterable[list[Path]]] = iter,
    kept: KeptScores | None = None,
) -> tuple[pd.DataFrame, list[Refused]]:
    """Score every image below a folder.

    Args:
        watched: goes around the loop over batches, for a progress bar.
        kept: what an earlier call did before it was stopped is not done again, and where this one is, nothing is lost.

    Returns:
        One row an image with `COLUMNS` (path relative to the folder, as `serving.names.text_of`; reasons of a decision
        to refer, else ""), sorted by path, and the images that were refused.

    Raises:
        DataError: as `find_images`.
        BlastwatchError: as `KeptScores.add`.
    """
    package = live.served.package
    judge = Judge(package)
    paths = find_images(folder)
    refused: list[Refused] = []

    def named(path: Path) -> str:
        return text_of(path.relative_to(folder).as_posix())

    def read(path: Path) -> Prepared | Refused:
        name = named(path)
        try:
            state = path.stat()
            if not stat.S_ISREG(state.st_mode):  # whoever reads it waits for somebody who writes, or has no end
                return Refused(name, UNREADABLE, "Expected a file but got a pipe, a socket or a device.")
            size = state.st_size  # a slide is refused before it fills the memory
            data = path.read_bytes() if size <= settings.max_image_bytes else b""
            check_size(max(size, len(data)), settings.max_image_bytes)
            return prepare(data, package, max_pixels=settings.max_image_pixels)
        except ImageRejected as error:
            return Refused(name, error.reason, str(error))
        except OSError as error:
            return Refused(name, UNREADABLE, f"The file cannot be read: {error.strerror or error}.")

    found = {path: kept.find(named(path), mark_of(path)) if kept else None for path in paths}
    left = [path for path, row in found.items() if row is None]
    parts = [left[start : start + settings.max_batch_size] for start in range(0, len(left), settings.max_batch_size)]
    with ThreadPoolExecutor(reading_threads()) as pool:
        for part in watched(parts):
            marks = [mark_of(path) for path in part]  # before they are read: a change meanwhile is seen next time
            said = _answers(live, judge, [named(path) for path in part], list(pool.map(read, part)))
            refused += [row for row in said if isinstance(row, Refused)]
            new = [
                (path, mark, row) for path, mark, row in zip(part, marks, said, strict=True) if isinstance(row, dict)
            ]
            found |= {path: row for path, _, row in new}
            if kept is not None:
                kept.add([row for *_, row in new], [mark for _, mark, _ in new])
    return pd.DataFrame([row for row in found.values() if row is not None], columns=list(COLUMNS)), refused


def _answers(
    live: LiveModel, judge: Judge, names: Sequence[str], images: Sequence[Prepared | Refused]
) -> list[Row | Refused]:
    """The row of each image of a batch, or why there is none."""
    crops = [item.crop for item in images if isinstance(item, Prepared)]
    if not crops:
        return [item for item in images if isinstance(item, Refused)]
    outputs = in_batches(live.engine.infer, np.stack(crops))
    answers = zip(outputs.logits, outputs.embeddings, strict=True)
    rows: list[Row | Refused] = []
    for name, item in zip(names, images, strict=True):
        if isinstance(item, Refused):
            rows.append(item)
            continue
        logits, embedding = next(answers)
        if not finite(logits, embedding):
            rows.append(Refused(name, NO_ANSWER, "The model gives no answer for this cell."))
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
                "seen_in_training": said.seen,
            }
        )
    return rows
