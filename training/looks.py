"""One look at every image of a data set: the patch that copies are found by, and the statistics of its cell."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.console import progress
from blastwatch.cores import cores
from blastwatch.errors import DataError, ImageRejected
from blastwatch.images import MAX_BYTES, Pixels, Preprocessing, crop_cell, decode
from blastwatch.manifest import Cells
from monitoring.statistics import BACKGROUND_LEVEL, STATISTICS, image_statistics
from training.fingerprints import SIDE, Patch, patch

SATURATED = "saturated"
LOOKED_AT = (*STATISTICS, SATURATED)
"""The statistics of monitoring, and the share of the cell's pixels, 0 to 1, that are full in all three channels."""

# Small, since thousands are looked at: the statistics are in px of the image whatever the size.
PREPROCESSING = Preprocessing(crop=320, size=80)
FULL = 255


@dataclass(frozen=True)
class Looks:
    """paths: sorted; of images with equal pixels the first stands for all. patches: uint8, shape (n, SIDE, SIDE).
    statistics: float32, shape (n, len(LOOKED_AT))."""

    paths: list[str]
    patches: NDArray[np.uint8]
    statistics: NDArray[np.float32]

    def table(self) -> pd.DataFrame:
        """The statistics with the column `path`."""
        table = pd.DataFrame(self.statistics, columns=list(LOOKED_AT))
        table.insert(0, "path", self.paths)
        return table


def look(cells: Cells) -> Looks:
    """Read every image once, on all cores; memory holds one image a core besides about 1.1 kB of each.

    Raises:
        DataError: naming a file that is missing or no longer an image.
    """
    paths = cells.rows.sort_values("path").drop_duplicates("pixel_sha256")["path"].tolist()
    patches = np.empty((len(paths), SIDE, SIDE), np.uint8)
    statistics = np.empty((len(paths), len(LOOKED_AT)), np.float32)
    found = progress(_read(cells.root, paths), total=len(paths), what="Looking at images")
    for index, (seen, values) in enumerate(found):
        patches[index], statistics[index] = seen, values
    return Looks(paths=paths, patches=patches, statistics=statistics)


def _read(root: Path, paths: Sequence[str]) -> Iterator[tuple[Patch, list[float]]]:
    with ThreadPoolExecutor(max_workers=cores()) as pool:  # Pillow and numpy let go of the interpreter
        yield from pool.map(lambda path: _look_at(root / path), paths)


def _look_at(path: Path) -> tuple[Patch, list[float]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ImageRejected("too-large", f"Expected at most {MAX_BYTES} bytes.")
        image = decode(path.read_bytes())
    except (OSError, ImageRejected) as error:
        raise DataError(f"{path} was imported but cannot be read now: {error}. Import the source anew.") from error
    crop = crop_cell(image, PREPROCESSING)
    values = image_statistics(crop, PREPROCESSING)
    return patch(image), [*(values[name] for name in STATISTICS), saturated_share(crop)]


def saturated_share(crop: Pixels) -> float:
    """Share of the cell's pixels whose three channels are all full; 0 without a cell."""
    cell = crop.max(axis=2) > BACKGROUND_LEVEL
    return float((crop.min(axis=2) == FULL).sum() / max(cell.sum(), 1))
