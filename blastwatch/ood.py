"""Out of distribution: how unlike the cells of known patients an image is, told from the network's embedding.

A classifier must name a class, also for a cat. The score is the Mahalanobis distance of the embedding (Lee et al. 2018,
arXiv:1807.03888) on the version's own principal axes, with what lies beside those axes as one further coordinate
(the residual of ViM, Wang et al. 2022, arXiv:2203.10807). Mean and covariance come from patients that the embedding was
not learned from: features of such cells lie too close together to say what a new patient's look like.

    x     = (the k projected coordinates, log(residual + floor))
    score = sqrt((x - mean)' C^-1 (x - mean) / (k + 1))      about 1 for a cell of a known patient
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blastwatch.errors import PackageError
from blastwatch.package import OOD, SINCE, Package, Projection
from blastwatch.state_files import write_whole

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class OodScore:
    """One version's score and its limit.

    projection: of the version. floor: added to the residual, in units of the embedding. mean: (k + 1,) and whitener
    (k + 1, k + 1), float64: `whitener @ whitener.T` is the inverse of the covariance. limit: the score above which an
    image is out of distribution.
    """

    projection: Projection
    floor: float
    mean: Floats
    whitener: Floats
    limit: float

    def __call__(self, embeddings: NDArray[np.float32]) -> Floats:
        """Scores, 0 upwards, float64 (n,), of embeddings (n, d)."""
        away = (coordinates(embeddings, self.projection, self.floor) - self.mean) @ self.whitener
        return np.asarray(np.sqrt((away**2).mean(axis=1)))

    def concern(self, score: float) -> str | None:
        """The reason to refer an image of this score; None where it is like the known cells."""
        if score <= self.limit:
            return None
        # Not "unlike all that the network has seen": cells that it learnt from lie beyond the limit as well.
        return (
            "it lies farther out than nearly all cells of the patients who set the limit: another kind of image, stain "
            "or scanner, or a cell that the network was trained on (out-of-distribution score "
            f"{score:.4g}, expected at most {self.limit:.4g})"
        )

    def save(self, path: Path) -> None:
        """Write what does not stand in the projection already."""
        from safetensors.numpy import save

        values = {"floor": np.array([self.floor]), "limit": np.array([self.limit])}
        write_whole(path, save({"mean": self.mean, "whitener": np.ascontiguousarray(self.whitener), **values}))


def coordinates(embeddings: NDArray[np.float32], projection: Projection, floor: float) -> Floats:
    """What the score is computed on: (n, k + 1), float64, of embeddings (n, d)."""
    embeddings = np.asarray(embeddings, dtype=np.float64)
    centred = embeddings - projection.mean
    projected = centred @ projection.wide.T
    beside = np.linalg.norm(centred - projected @ projection.wide, axis=1)
    return np.column_stack([projected, np.log(beside + floor)])


def read_ood(package: Package) -> OodScore | None:
    """The score of a package; None for one of a format before 4, which has none.

    Raises:
        PackageError: where the file cannot be read or does not fit the projection.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if package.info.format < SINCE[OOD]:
        return None
    projection = package.projection()
    size = len(projection.components) + 1
    try:
        found = load_file(package.folder / OOD)
        score = OodScore(
            projection=projection,
            floor=float(found["floor"][0]),
            mean=found["mean"].astype(np.float64),
            whitener=found["whitener"].astype(np.float64),
            limit=float(found["limit"][0]),
        )
    except (OSError, SafetensorError, KeyError, IndexError, TypeError) as error:
        raise PackageError(f"{OOD} of the package cannot be read: {error!r}. Package the model again.") from error
    if score.mean.shape != (size,) or score.whitener.shape != (size, size):
        raise PackageError(
            f"Expected a mean of {size} values and a whitener of {size} x {size} in {OOD} but got "
            f"{score.mean.shape} and {score.whitener.shape}. Package the model again."
        )
    numbers = (score.mean, score.whitener, score.floor, score.limit)
    # A limit that no number is above would refer nobody, one that is no number everybody.
    if not all(np.isfinite(each).all() for each in numbers) or score.floor <= 0 or score.limit <= 0:
        raise PackageError(
            f"Expected finite numbers in {OOD}, floor and limit above 0, but got a floor of {score.floor:g}, a limit "
            f"of {score.limit:g} and {sum(int((~np.isfinite(each)).sum()) for each in numbers)} values that are not "
            "finite. Package the model again."
        )
    return score
