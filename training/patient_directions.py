"""Directions in which patients of one label differ; a last layer leans less on what lies along them.

What tells the cells of one patient from those of another of the same label says nothing of the label, yet with a few
dozen patients a fit takes some of it for that. So before the layer is fitted, what it reads is made smaller along the
directions in which the means of patients of one label differ, the more they do: within-class covariance normalisation
(Hatch, Kajarekar & Stolcke 2006, https://www.isca-archive.org/interspeech_2006/hatch06_interspeech.html), with a
patient's mean in the place of an utterance. With a penalty on the squared weights that is a further penalty, on the
variance of patients' mean log odds within a label. The layer is a linear one as before: the service pays nothing.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shrinkage:
    """directions: orthonormal, shape (k, d); factors: (k,), above 0 and at most 1, of what lies along each."""

    directions: NDArray[np.float64]
    factors: NDArray[np.float64]

    def __call__(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Rows of an embedding (n, d) made smaller; or, of weights (d,) that were fitted to such, those of the rows as
        they were: the map is symmetric."""
        return np.asarray(rows + (rows @ self.directions.T * (self.factors - 1)) @ self.directions)


def shrinkage(
    rows: NDArray[np.float64], labels: NDArray[np.int64], patients: NDArray[Any], strength: float
) -> Shrinkage:
    """How to shrink rows (n, d), of standardised numbers, along the directions in which patients of one label differ.

    Args:
        patients: whose cell a row is; each weighs the same.
        strength: above 0; what lies along a direction in which the means of a label's patients have the variance 1,
            which is that of all cells in one number, is divided by the root of 1 + strength.
    """
    means = np.concatenate([_apart(rows[labels == label], patients[labels == label]) for label in np.unique(labels)])
    _, spreads, directions = np.linalg.svd(means / np.sqrt(len(means)), full_matrices=False)
    return Shrinkage(directions, 1 / np.sqrt(1 + strength * spreads**2))


def _apart(rows: NDArray[np.float64], patients: NDArray[Any]) -> NDArray[np.float64]:
    """The mean of each patient less the mean of these, shape (patients, d)."""
    means = np.stack([rows[patients == patient].mean(axis=0) for patient in np.unique(patients)])
    return np.asarray(means - means.mean(axis=0))
