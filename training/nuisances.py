"""Directions along which a camera moves what a network makes of a cell; a last layer has no weight in them.

A network whose last layer alone is fitted knows cells of one camera. Under another white balance, focus or compression
the numbers that it reads move, of all cells alike, and with them every answer. So some cells are looked at once more
under each simulated cause of drift (`monitoring.shifts`), and the main directions of all these moves are taken out of
what the layer is fitted to: nuisance attribute projection (Solomonoff, Campbell & Boardman 2005,
doi:10.1109/ICASSP.2005.1415189). It costs the layer what it read along them, and the service nothing: the layer is a
linear one as before.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blastwatch.errors import UsageError
from blastwatch.images import Pixels, Preprocessing, crop_cell
from monitoring.shifts import SHIFTS, shift

STRENGTHS = (0.5, 1.0)
CAMERAS = tuple((name, strength) for name in SHIFTS for strength in STRENGTHS)
LOOKED_AT = 160  # cells, shared evenly among the patients: with four times as many the directions are no better


@dataclass(frozen=True)
class Moves:
    """How cameras move cells. differences: float32 (m, d), the embedding of a cell under one of `CAMERAS` less that of
    the cell as it is; patients: (m,), whose cell it is."""

    differences: NDArray[np.float32]
    patients: NDArray[Any]

    def of(self, patients: NDArray[Any]) -> "Moves":
        """Those of the cells of some patients."""
        kept = np.isin(self.patients, patients)
        return Moves(self.differences[kept], self.patients[kept])


def under_cameras(crop: Pixels, preprocessing: Preprocessing, random: np.random.Generator) -> Pixels:
    """A cell as it is and under each of `CAMERAS`, uint8 (1 + cameras, size, size, 3), of a crop (size, size, 3).

    The causes are those of a camera, whose pixels are others than a crop's. So the crop is resampled to the camera's
    pixels and back, the first as well: what that does to it is no camera.
    """
    side = preprocessing.crop
    image = _enlarged(crop, side)
    shown = [image, *(shift(image, name, strength, random=random) for name, strength in CAMERAS)]
    return np.stack([crop_cell(one, preprocessing) for one in shown])


def _enlarged(crop: Pixels, side: int) -> Pixels:
    """Resampled to (side, side, 3); black stays black, and a pixel of the cell never becomes it."""
    image = np.array(Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC))
    cell = Image.fromarray((crop.max(axis=2) > 0).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    inside = np.asarray(cell) > 0
    image[~inside] = 0
    image[inside] = np.maximum(image[inside], 1)
    return image


def check_fewer(count: int, width: int) -> None:
    """Raise `UsageError` unless there are more numbers that a layer reads than directions: known before any cell is
    looked at."""
    if count >= width:
        raise UsageError(
            f"Expected train.nuisances to be fewer than the {width} numbers that the last layer reads but got {count}."
        )


def directions(differences: NDArray[np.floating], count: int) -> NDArray[np.float64]:
    """The directions that hold most of the moves: orthonormal, shape (d, count), the first eigenvectors of their mean
    square. Not of their covariance: what moves all cells alike counts most.

    Args:
        differences: (m, d), on the scale that the last layer reads.

    Raises:
        UsageError: where there are not more numbers than directions, or fewer moves.
    """
    from scipy.linalg import eigh

    moves, width = differences.shape
    if count >= min(moves + 1, width):
        raise UsageError(
            f"Expected train.nuisances to be fewer than the {width} numbers that the last layer reads, and at most "
            f"the {moves} moves they are found in, but got {count}."
        )
    square = differences.T.astype(np.float64) @ differences
    return np.asarray(eigh(square, subset_by_index=[width - count, width - 1])[1])
