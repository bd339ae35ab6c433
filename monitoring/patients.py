"""Who came: the patients of a version's predictions, each with the mean of every column over their first cells.

A patient enters once, `BLASTWATCH_DRIFT_PATIENT_MINUTES` after their first cell, with at most `MOST_CELLS` cells of
that time; what comes later changes nothing, so the sequence that `monitoring.patient_drift` bets on only grows. Who
had too few cells is not in it, and enters behind everybody where more of that time are stored later.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.scores import PROBABILITY
from monitoring.statistics import STATISTICS
from monitoring.store import Store
from monitoring.windows import AHEAD

MOST_CELLS = 50
FEWEST_CELLS = 10
"""Cells of a patient who enters; fewer say too little of them."""

MOST_PATIENTS = 1000
"""The latest so many are looked at."""

ALL_AGAIN = timedelta(hours=1)
"""How often everybody is looked for: who was deleted is forgotten here as well, and who had too few cells enters
where more are stored by now: they may have waited on a service's disk."""

OVERLAP = timedelta(days=1)
"""How far back each look goes for new patients, since cells may have waited while the database was away."""


Entered = dict[str, tuple[datetime, pd.Series | None]]
"""Time of the first cell and means of each patient, None for the means of too few cells, in the order of entering."""


@dataclass(frozen=True, kw_only=True)
class Came:
    """rows: mean of each statistic and of the probability, a row a patient, in the order in which they entered. first:
    time of the first cell of each. uniforms: of [0, 1), shape (n,), drawn from the patient's hashed key, so the same at
    every look. few: how many had too few cells. waiting: how many are not complete yet. cut: whether as many are looked
    at as ever are, so that others may have come before them."""

    rows: pd.DataFrame
    first: pd.Series
    uniforms: NDArray[np.float64]
    few: int
    waiting: int
    cut: bool = False


class Patients:
    """The patients whom one version answered; remembers them between looks.

    Args:
        settle: time after a patient's first cell in which their cells count.
    """

    def __init__(self, store: Store, *, model_digest: str, settle: timedelta) -> None:
        self._store = store
        self._digest = model_digest
        self._settle = settle
        self._entered = Entered()
        self._returning: set[str] = set()  # who came within the last hour or so, but first before `OVERLAP`
        self._full = False  # whether somebody may have made room
        self._all_seen: datetime | None = None

    def look(self, at: datetime) -> Came:
        """Who has entered by now."""
        # Either way: a look that lies ahead was made by a clock that was, and must not hold off for as long as that.
        everybody = self._all_seen is None or abs(at - self._all_seen) >= ALL_AGAIN
        # Cells whose time lies ahead are a wrong clock's; before it comes their patients would be the latest.
        seen = self._store.patients(
            model_digest=self._digest, since=None if everybody else at - OVERLAP, until=at + AHEAD, most=MOST_PATIENTS
        )
        self._full |= len(seen) == MOST_PATIENTS
        entered, returning = self._entered, self._returning
        if everybody:
            # Whose first cells were deleted by age has left, and enters anew where they came again since.
            there = {name: kept for name, kept in entered.items() if name in seen and seen[name] <= kept[0]}
            entered = self._with_late(there, seen, at)
            returning = set()
        known = entered.keys() | returning
        new = {patient: first for patient, first in seen.items() if patient not in known}
        complete = {patient: first for patient, first in new.items() if first + self._settle <= at}
        if complete and not everybody:  # of who came again, `seen` has the first cell since `OVERLAP`
            firsts = self._store.first_cells(list(complete), model_digest=self._digest)
            returning = returning | {patient for patient, first in complete.items() if firsts.get(patient) != first}
        entered = self._enter(
            entered, {patient: first for patient, first in complete.items() if patient not in returning}
        )
        # Only now: a look that the database leaves half way counts as none, and the next one sees the same again.
        self._entered, self._returning = entered, returning
        if everybody:
            self._all_seen = at
        return self._came(waiting=len(new) - len(complete))

    def _with_late(self, entered: Entered, seen: dict[str, datetime], at: datetime) -> Entered:
        """Who had too few cells and has enough now stands behind everybody who entered."""
        late = Entered()
        for patient, (_, row) in entered.items():
            if row is None and (first := seen[patient]) + self._settle <= at:
                means = self._means(patient, first)
                if means is not None:
                    late[patient] = (first, means)
        return {patient: kept for patient, kept in entered.items() if patient not in late} | late

    def _enter(self, before: Entered, complete: dict[str, datetime]) -> Entered:
        """Behind those who entered before; but who once made room, and has room again since others were deleted,
        stands before them as then."""
        oldest = min((first for first, _ in before.values()), default=None)
        entered, back = dict(before), Entered()
        for patient, first in sorted(complete.items(), key=lambda one: (one[1], one[0])):
            again = self._full and oldest is not None and first < oldest
            (back if again else entered)[patient] = (first, self._means(patient, first))
        return dict(list((back | entered).items())[-MOST_PATIENTS:])

    def _means(self, patient: str, first: datetime) -> pd.Series | None:
        """Of a patient's first cells; None of too few."""
        cells = self._store.patient_cells(
            patient, model_digest=self._digest, since=first, until=first + self._settle, most=MOST_CELLS
        )
        return cells.mean(skipna=False) if len(cells) >= FEWEST_CELLS else None

    def _came(self, waiting: int) -> Came:
        kept = {patient: (first, row) for patient, (first, row) in self._entered.items() if row is not None}
        rows = [row for _, row in kept.values()]
        return Came(
            rows=pd.DataFrame(rows, columns=[*STATISTICS, PROBABILITY], index=range(len(rows)), dtype=np.float64),
            first=pd.Series([first for first, _ in kept.values()], dtype="datetime64[us, UTC]"),
            uniforms=np.array([_uniform(patient) for patient in kept], dtype=np.float64),
            few=len(self._entered) - len(kept),
            waiting=waiting,
            cut=len(self._entered) >= MOST_PATIENTS,
        )


def _uniform(patient: str) -> float:
    """A number of [0, 1) from a patient's key that says nothing of the patient."""
    return int.from_bytes(hashlib.sha256(patient.encode()).digest()[:6]) / (1 << 48)
