"""What is known of drift over patients, as one document: for the page, the gauges, and `blastwatch drift patients`."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pandas as pd

from blastwatch import DISCLAIMER
from blastwatch.package import Package
from blastwatch.settings import Settings
from monitoring.directions import with_directions_of_patients
from monitoring.patient_alarms import Alarms, Kept, State, begun, kept_after, not_ahead
from monitoring.patient_blocks import block_now
from monitoring.patient_drift import LATEST, PATIENTS_PER_FALSE_ALARM, Course, Unlike, courses, patient_means, watched
from monitoring.patients import FEWEST_CELLS, MOST_CELLS, Came, Patients
from monitoring.scores import PROBABILITY
from monitoring.signatures import name_causes
from monitoring.statistics import STATISTICS
from monitoring.store import Store


class PatientWatch:
    """Holds the patients of one version against its reference; works only where somebody came since the last look.

    Args:
        keeps: whether the alarms that it finds, and where the sequence begins, are kept for the time when the patients
            of before have left it, as the monitor does. What is kept is known in any case.
    """

    def __init__(
        self, store: Store, package: Package, *, version: str, settings: Settings, keeps: bool = False
    ) -> None:
        self._alarms = Alarms(settings.drift, package.digest)
        self._stored = self._alarms.read()
        self._kept = self._stored  # other than stored while that could not be written
        self._unlike = Unlike()
        self._keeps = keeps
        self._settle = timedelta(minutes=settings.drift_patient_minutes)
        self._patients = Patients(store, model_digest=package.digest, settle=self._settle)
        self._known = patient_means(package.reference().cells, MOST_CELLS)
        self._signatures = package.drift().get("signatures")
        self._version = version
        self._last: tuple[tuple[object, ...], dict[str, Any]] | None = None

    def look(self, at: datetime) -> dict[str, Any]:
        """The document of now.

        Returns:
            version; known, answered: patients of the reference, and those of them with answers; entered, waiting, few:
            patients who came, who are not complete yet, and who had too few cells; stated_patients: one false alarm in
            so many at most; minutes, fewest_cells: when a patient is complete, and how many cells it takes to count;
            drifted; columns: the most evidence first; causes: of what stands, the likeliest first; changes: every
            alarm, oldest first. `since_or_before` is true where others came before those who are held against the
            known ones, so that a change of theirs is dated to one of these.
        """
        came = self._patients.look(at)
        self._read_again()
        self._kept = not_ahead(self._kept, at)
        counts = _counts(came)
        if self._last is None or self._last[0] != counts:
            found, self._kept = followed(
                self._known,
                came,
                self._signatures,
                version=self._version,
                settle=self._settle,
                state=self._kept,
                unlike=self._unlike,
            )
            self._last = counts, found
        if self._keeps and self._kept != self._stored and self._alarms.write(self._kept):
            self._stored = self._kept
        return self._last[1]

    def _read_again(self) -> None:
        """Where somebody brought the file back, changed it or removed it, what it says now counts; while it cannot be
        read, what is known."""
        if not self._alarms.changed():
            return
        stored = self._alarms.read()
        if not self._alarms.unread and stored != self._stored:
            self._stored = self._kept = stored
            self._last = None

    @property
    def problem(self) -> str:
        """Why alarms of before are not known, or those of now not kept; "" for nothing."""
        return self._alarms.problem


def _counts(came: Came) -> tuple[object, ...]:
    """What is other where anything is to be said anew."""
    return (came.waiting, came.few, came.cut, *came.first)


def told(
    known: pd.DataFrame, came: Came, signatures: dict[str, Any] | None, *, version: str, settle: timedelta
) -> dict[str, Any]:
    """The document of `PatientWatch.look` where nothing is kept; arguments as for `followed`."""
    return followed(known, came, signatures, version=version, settle=settle, state=State())[0]


def followed(
    known: pd.DataFrame,
    came: Came,
    signatures: dict[str, Any] | None,
    *,
    version: str,
    settle: timedelta,
    state: State,
    unlike: Unlike | None = None,
) -> tuple[dict[str, Any], State]:
    """The document of `PatientWatch.look`, and what is to be kept of it.

    Args:
        known: of `monitoring.patient_drift.patient_means`. signatures: of `monitoring.signatures`.
        settle: of `monitoring.patients.Patients`. state: what was kept of earlier looks.
        unlike: as for `monitoring.patient_drift.courses`.
    """
    known, rows = with_directions_of_patients(known, came.rows, signatures)
    came = replace(came, rows=rows)
    as_known = [name for name in watched(known) if name not in state.columns]
    state = replace(state, block=block_now(state.block, came, as_known))
    found = courses(known, came.rows, came.uniforms, begun(state, known, came), unlike)
    state = replace(state, columns=(kept := kept_after(state, found, came)))
    columns = [_column(name, course, came, kept.get(name)) for name, course in found.items()]
    changes = sorted(
        (change for column in kept.values() for change in column.changes), key=lambda row: (row["found"], row["name"])
    )
    document = {
        "version": version,
        "known": len(known),
        "answered": int(known[PROBABILITY].notna().sum()),
        "entered": len(came.rows),
        "waiting": came.waiting,
        "few": came.few,
        "minutes": settle / timedelta(minutes=1),
        "fewest_cells": FEWEST_CELLS,
        "stated_patients": PATIENTS_PER_FALSE_ALARM,
        "drifted": any(column["drifted"] for column in columns),
        "columns": sorted(columns, key=lambda row: -row["evidence"]),
        "causes": causes(found, known, came.rows, signatures),
        "changes": changes,
        "disclaimer": DISCLAIMER,
    }
    return document, state


def causes(
    found: dict[str, Course], known: pd.DataFrame, rows: pd.DataFrame, signatures: dict[str, Any] | None
) -> list[dict[str, str | None]]:
    """What probably happened to the latest patients since the first change that stands; nothing where none does, or
    where their cells lack a statistic."""
    places = [course.alarm.since for course in found.values() if course.alarm]
    if not places:
        return []
    since = min(places)
    measured = pd.concat([known, rows])[[name for name in STATISTICS if name in known]]
    before, now = measured.iloc[: len(known) + since].dropna(), measured.iloc[len(known) + since :].dropna()
    return name_causes(signatures, now.iloc[-LATEST:], before=before) if len(now) else []


def _column(name: str, course: Course, came: Came, kept: Kept | None) -> dict[str, Any]:
    """before, spread: mean and standard deviation over the patients before; now: mean over the latest, since the change
    where there is one; None where nobody came. An alarm after which nobody is looked at, as where all were deleted, has
    a `since` and is not `drifted`: nothing says how patients are now."""
    values, alarm = came.rows[name], course.alarm
    baseline = course.baseline if kept is None else pd.Series(kept.baseline).to_numpy()
    change = kept.changes[-1] if kept is not None and alarm is not None else None
    latest = (values if alarm is None else values.iloc[alarm.since :]).dropna().iloc[-LATEST:]
    return {
        "name": name,
        "evidence": course.evidence,
        "drifted": alarm is not None and len(latest) > 0,
        "before": float(baseline.mean()),
        "spread": float(baseline.std()),
        "now": float(latest.mean()) if len(latest) else None,
        "patients": len(latest),
        "since": None if change is None else change["since"],
        "since_or_before": change is not None and change["since_or_before"],
        "found": None if change is None else change["found"],
    }


NOBODY = "stands, but no patient since then is stored"
"""What is said of a column with an alarm after which nobody is looked at; the page says so too."""


def dated(change: dict[str, Any]) -> str:
    """Since when a change of a document is, in words; "" where nothing changed."""
    return f"{change['since'] or ''}{' or before' if change['since_or_before'] else ''}"
