"""Drift columns that look for what is known to happen: how far a cell lies in the direction of a simulated cause.

Every statistic by itself must move by more than patients differ in it. A change of stain or of light moves many
together in one direction, along which patients hardly differ: their spread is that of their covariance, by which a
signature is whitened (`monitoring.signatures`). A cell's place along the signature of a cause is therefore a column of
its own, `toward_stain` and so on, scored and calibrated like every other: of all weighted sums of statistics the one
along which that cause moves farthest in spreads between patients (the linear discriminant of Fisher 1936,
doi:10.1111/j.1469-1809.1936.tb02137.x).

A changed mix of patients has no column: it moves as patients differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.signatures import CAUSES, DISEASE_MIX, Floats, between_patients, transform, unit

PREFIX = "toward_"
FEWEST_KNOWN = 10  # patients
DIRECTIONS: tuple[str, ...] = tuple(PREFIX + cause for cause in CAUSES if cause != DISEASE_MIX)


@dataclass(frozen=True)
class Fit:
    """Directions fitted to patients. along: what is added up of each standardised statistic, shape (statistics,
    directions)."""

    centre: Floats
    spread: Floats
    along: Floats

    def columns(self, values: Floats) -> Floats:
        """Of `monitoring.signatures.transform`, shape (n, statistics), the places along the directions, shape (n,
        directions), in spreads between patients."""
        return np.asarray((values - self.centre) / self.spread @ self.along)


def directions_of(signatures: dict[str, Any]) -> tuple[str, ...]:
    """The columns that signatures have; none of a package from before there were any."""
    return tuple(name for name in DIRECTIONS if name.removeprefix(PREFIX) in signatures.get("movements", {}))


def with_directions(cells: pd.DataFrame, signatures: dict[str, Any] | None) -> pd.DataFrame:
    """The cells with a column for every direction that the signatures have.

    Args:
        cells: with the statistics that the signatures are of, finite.
        signatures: of `monitoring.signatures.measure_signatures`.
    """
    if signatures is None or not (names := directions_of(signatures)):
        return cells
    vectors = np.array([signatures["causes"][name.removeprefix(PREFIX)] for name in names])
    whitening = np.array(signatures["whitening"])
    fit = Fit(np.array(signatures["centre"]), np.array(signatures["spread"]), whitening @ vectors.T)
    return _added(cells, names, fit.columns(transform(cells, signatures["columns"])))


def with_directions_of_patients(
    known: pd.DataFrame, came: pd.DataFrame, signatures: dict[str, Any] | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means of known patients and of those who came, a row each, with the directions as columns; each known patient's
    by a fit without them, so that they differ along it nearly as a new one does (the jackknife of Barber et al. 2021,
    doi:10.1214/20-AOS1965). Nothing is added where fewer than `FEWEST_KNOWN` are known."""
    names = () if signatures is None else directions_of(signatures)
    if signatures is None or not names or len(known) < FEWEST_KNOWN:
        return known, came
    refitted = Refitted(transform(known, signatures["columns"]), signatures)
    own = np.stack([refitted.fit([place]).columns(refitted.means[place]) for place in range(len(known))])
    others = refitted.fit([]).columns(transform(came, signatures["columns"]))
    return _added(known, names, own), _added(came, names, others)


class Refitted:
    """Fits without some of the patients.

    Directions are those along which the patients they were fitted to hardly differ, so other patients differ more along
    them. A new patient is one of those others, and so must be one who stands for a new patient in calibration.

    Args:
        means: of `monitoring.signatures.transform`, a row a patient.
    """

    def __init__(self, means: Floats, signatures: dict[str, Any]) -> None:
        self.means = means
        self._columns = signatures["columns"]
        causes = [name.removeprefix(PREFIX) for name in directions_of(signatures)]
        self._movements = [np.array(signatures["movements"][cause]) for cause in causes]

    def fit(self, without: Sequence[int] | NDArray[np.intp]) -> Fit:
        """To all patients but those at these places; two at least are left."""
        centre, spread, whitening = between_patients(np.delete(self.means, without, axis=0), self._columns)
        vectors = [unit(movement / spread @ whitening) for movement in self._movements]
        return Fit(centre, spread, whitening @ np.stack(vectors, axis=1))


def _added(frame: pd.DataFrame, names: Sequence[str], values: Floats) -> pd.DataFrame:
    return frame.assign(**dict(zip(names, values.T, strict=True)))
