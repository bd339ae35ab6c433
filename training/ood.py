"""Fit the out-of-distribution score of a version and its limit, on patients that its embedding was not learned from."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.errors import DataError
from blastwatch.ood import Floats, OodScore, coordinates
from blastwatch.package import Projection
from training.conformal import patient_limit

FEWEST_PATIENTS = 3  # one is left out in turn, and the spread between the others must be seen
FLOOR = 1e-3  # of the cells' median distance from the projection's mean


def fit_ood(
    embeddings: NDArray[np.float32],
    groups: "pd.Series[str]",
    projection: Projection,
    others: Mapping[str, Projection] | None = None,
    *,
    rate: float,
) -> OodScore:
    """The score from held-out patients' cells, and the limit that a new patient's cells pass at a rate.

    Each patient weighs the same. The limit is taken from scores of each patient under mean and covariance of the
    others (leave one patient out, as in the jackknife+ of Barber et al. 2021, doi:10.1214/20-AOS1965), by the same
    conformal quantile over patients as the three-way decision (`training.conformal`, subsampled). With n patients no
    rate below 1 / (n + 1) can be promised; the limit then is no nearer than the plain quantile.

    Args:
        embeddings: float32 (n, d), of cells that they were not learned from; groups: patient of each, length n.
        projection: fitted on training cells.
        others: of each patient whose cells are among those, the projection that was fitted to the rest; None for none.
        rate: share of the next patient's cells that may be called out of distribution, between 0 and 1.

    Raises:
        DataError: for fewer than three patients, or values that are not finite.
    """
    patients = sorted(set(groups))
    if len(patients) < FEWEST_PATIENTS:
        raise DataError(
            f"Expected at least {FEWEST_PATIENTS} patients on the validation and calibration sides for a limit of the "
            f"out-of-distribution score but got {len(patients)}. Put more patients there (split.calibration)."
        )
    if not np.isfinite(embeddings).all():
        raise DataError("Expected finite embeddings for the out-of-distribution score but got others.")
    distance = np.linalg.norm(np.asarray(embeddings, dtype=np.float64) - projection.mean, axis=1)
    floor = FLOOR * max(float(np.median(distance)), 1e-6)
    points, names = coordinates(embeddings, projection, floor), groups.to_numpy()
    scores = np.empty(len(points))
    for patient in patients:
        own = names == patient
        axes = (others or {}).get(patient, projection)
        rest = points[~own] if axes is projection else coordinates(embeddings[~own], axes, floor)
        scores[own] = _score(rest, names[~own], axes, floor)(embeddings[own])
    limit = patient_limit(scores, names, error=rate)
    fitted = _score(points, names, projection, floor)
    return OodScore(projection=projection, floor=floor, mean=fitted.mean, whitener=fitted.whitener, limit=limit)


def _score(points: Floats, names: NDArray[np.object_], projection: Projection, floor: float) -> OodScore:
    """Mean and covariance of points, each patient weighing the same; the covariance is shrunk (Ledoit & Wolf 2004)."""
    from sklearn.covariance import ledoit_wolf

    _, patient, counts = np.unique(names, return_inverse=True, return_counts=True)
    weights = (1 / counts)[patient] / len(counts)
    mean = weights @ points
    # Coordinates of very different spread are brought to one first, since the shrinkage target is a sphere.
    spread = np.maximum(np.sqrt(weights @ (points - mean) ** 2), 1e-9)
    weighted = (points - mean) / spread * np.sqrt(weights * len(points))[:, None]
    covariance, _ = ledoit_wolf(weighted, assume_centered=True)
    whitener = np.linalg.cholesky(np.linalg.inv(covariance)) / spread[:, None]
    return OodScore(projection=projection, floor=floor, mean=mean, whitener=whitener, limit=float("inf"))
