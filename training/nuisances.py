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

from blastwatch.errors import UsageError
from blastwatch.images import Pixels
from monitoring.shifts import SHIFTS, shift

STRENGTHS = (0.5, 1.0)
CAMERAS = tuple((name, strength) for name in SHIFTS for strength in STRENGTHS)
LOOKED_AT = 640  # cells, shared evenly among the patients: memory does not grow with the number of cells


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


def under_cameras(crop: Pixels, random: np.random.Generator) -> Pixels:
    """A cell under each of `CAMERAS`, uint8 (cameras, s, s, 3), of a crop (s, s, 3) on black."""
    return np.stack([shift(crop, name, strength, random=random) for name, strength in CAMERAS])


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
