"""What an alarm over patients was found against, and where the sequence begins, kept in a file while patients leave it.

Only the latest patients are looked at (`monitoring.patients.MOST_PATIENTS`). Without those of before a change nothing
in the sequence says that there was one, so of every column that ever alarmed it is kept what it is held against, and
every change that was found. A mean stands there without a key; of many patients before a change only quantiles are
kept. Beside it is the block that patients are in (`monitoring.patient_blocks`), the same for all columns.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from blastwatch.state_files import write_state
from monitoring.patient_blocks import Block, behind
from monitoring.patient_drift import Begun, Change, Course, Floats, watched
from monitoring.patients import Came
from monitoring.windows import AHEAD

FILE = "patients.json"
"""In the folder of the reports, written by the monitor; by package, the one that was written last at the end."""

MOST_PACKAGES = 20
MOST_CHANGES = 100  # of a column
MOST_VALUES = 500  # of a baseline; of more patients so many quantiles

CHANGE = ("name", "since", "since_or_before", "found", "until")
"""What is kept of a change."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Of a column that alarmed. baseline: values, or quantiles, of patients before the latest change, sorted. evidence:
    at the alarm that stands, over what is needed; None where it is over. after: the latest first cell of those behind
    whom the course goes on, ISO 8601; who came later counts. changes: oldest first, as in the document of
    `monitoring.patient_report`."""

    baseline: list[float]
    evidence: float | None
    after: str
    changes: list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class State:
    """What is kept of a package: of the columns that alarmed, and the block."""

    columns: Mapping[str, Kept] = field(default_factory=dict)
    block: Block = field(default_factory=Block)


class Alarms:
    """The file; `problem` says why it could not be read or written, "" for nothing.

    Attributes:
        unread: whether it could not be read. Then it is not written either, since that would end what a person may
            still bring back.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._path = folder / FILE
        self._digest = digest
        self._seen: tuple[int, int] | None = None
        self.unread = False
        self.problem = ""

    def changed(self) -> bool:
        """Whether the file is to be read again: it could not be read, or is no longer as it was read or written."""
        return self.unread or self._stamp() != self._seen

    def read(self) -> State:
        """What is kept of the package."""
        try:
            self._seen = self._stamp()  # before reading: what is written meanwhile is read at the next look
            package = self._whole().get(self._digest, {"columns": {}})
            columns = {name: _checked(name, Kept(**column)) for name, column in package["columns"].items()}
            # Where a release before blocks wrote it, the first one begins with whoever is first now.
            found = State(columns=columns, block=_checked_block(Block(**package.get("block", {}))))
            self.unread, self.problem = False, ""
            return found
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self.unread = True
            self.problem = (
                f"Alarms over patients that are kept in {self._path} cannot be read ({error}), so one whose patients "
                "of before are no longer among the latest may not be known, and none is kept meanwhile. Bring the file "
                "back, or remove it."
            )
            return State()

    def write(self, state: State) -> bool:
        """Keep this of the package, beside what is kept of others; whether that was done."""
        if self.unread:
            return False
        try:
            others = [package for digest, package in self._whole().items() if digest != self._digest]
            columns = {name: asdict(column) for name, column in state.columns.items()}
            own = {"digest": self._digest, "columns": columns, "block": asdict(state.block)}
            others.sort(key=lambda package: bool(package["columns"]))  # the first to go are those without an alarm
            write_state(self._path, {"packages": [*others, own][-MOST_PACKAGES:]})
            self._seen = self._stamp()
            self.problem = ""
            return True
        except (OSError, ValueError, TypeError, AttributeError) as error:
            self.problem = f"Alarms over patients cannot be kept in {self._path}: {error}."
            return False

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:  # no file; what else hinders is said where it is read
            return None
        return found.st_mtime_ns, found.st_size

    def _whole(self) -> dict[str, Any]:
        if not self._path.exists():
            return {}
        try:
            packages = json.loads(self._path.read_text())["packages"]
            return {one["digest"]: one | {"columns": one["columns"]} for one in packages}
        except KeyError as error:
            raise ValueError(f"it has no {error}") from error


def _checked(name: str, column: Kept) -> Kept:
    """A column as the monitor goes on with it.

    Raises:
        ValueError: something of it is missing, or is not what it is to be. TypeError: it is of another kind.
    """
    if not len(column.baseline) or not np.isfinite(np.asarray(column.baseline, dtype=np.float64)).all():
        raise ValueError(f"the baseline of {name} is not of finite numbers")
    if column.evidence is not None and not np.isfinite(column.evidence):
        raise ValueError(f"the evidence of {name} is no finite number")
    _check_time(name, "after", column.after)
    if not column.changes:
        raise ValueError(f"{name} has no change")
    for change in column.changes:
        missing = [key for key in CHANGE if key not in change]
        if missing:
            raise ValueError(f"a change of {name} has no {', '.join(missing)}")
        for key in ("since", "found", *(["until"] if change["until"] is not None else [])):
            _check_time(name, key, change[key])
    return column


def _check_time(name: str, key: str, value: Any) -> None:
    if not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is None:
        raise ValueError(f"{key} of {name} is no time with a time zone: {value!r}")


def _checked_block(block: Block) -> Block:
    """As `_checked`."""
    for key in ("after", "first", "seen"):
        if (moment := getattr(block, key)) is not None:
            _check_time("the block", key, moment)
    if (block.first is None) != (block.seen is None):
        raise ValueError("the block has one of first and seen, and not the other")
    for name, values in block.before.items():
        if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
            raise ValueError(f"what the block has of {name} is not of finite numbers")
    return block


def not_ahead(state: State, at: datetime) -> State:
    """What was kept by a clock that ran ahead, put right once the clock is: nobody who comes next is to wait for that
    time."""
    columns = {
        name: replace(kept, after=at.isoformat()) if pd.Timestamp(kept.after) > at + AHEAD else kept
        for name, kept in state.columns.items()
    }
    return replace(state, columns=columns)


def begun(state: State, known: pd.DataFrame, came: Came) -> dict[str, Begun]:
    """Where the course of each column goes on. An alarm that stands does so across blocks."""
    found, of_block = {}, state.block.counts(came)
    for name in watched(known):
        column = state.columns.get(name)
        if column is None:
            reference = known[name].dropna().to_numpy(np.float64)
            found[name] = Begun(baseline=state.block.baseline(name, reference), counts=of_block)
            continue
        later = behind(came, column.after)
        found[name] = Begun(
            baseline=np.array(column.baseline),
            counts=later if column.evidence is not None else later & of_block,
            since=_from(came.first, column.changes[-1]["since"]),
            evidence=column.evidence,
        )
    return found


def kept_after(state: State, found: Mapping[str, Course], came: Came) -> dict[str, Kept]:
    """What is to be kept of the columns once the courses were followed."""
    said = {name: _kept(state, name, course, came) for name, course in found.items()}
    return dict(state.columns) | {name: column for name, column in said.items() if column is not None}


def _kept(state: State, name: str, course: Course, came: Came) -> Kept | None:
    before = state.columns.get(name)
    rows = [] if before is None else list(before.changes)
    if course.ended is not None:
        rows[-1] = rows[-1] | {"until": _time(came, course.ended)}
    elif not course.changes:
        return before
    for change in course.changes:
        or_before = came.cut and not rows if state.block.after is None else _begins(state.block, name, change, came)
        rows.append(_row(name, change, came, or_before=or_before))
    assert course.behind is not None
    return Kept(
        baseline=_summary(course.baseline),
        evidence=course.evidence if course.alarm else None,
        after=came.first.iloc[: course.behind + 1].max().isoformat(),
        changes=rows[-MOST_CHANGES:],
    )


def _row(name: str, change: Change, came: Came, *, or_before: bool) -> dict[str, Any]:
    """or_before: whether it may be of before anybody who is looked at. In the first block that is only a column's first
    change, where others came before the block, since before a later one patients were as known."""
    return {
        "name": name,
        "since": _time(came, change.since),
        "since_or_before": or_before,
        "found": _time(came, change.found),
        "until": None if change.until is None else _time(came, change.until),
    }


def _begins(block: Block, name: str, change: Change, came: Came) -> bool:
    """Whether a change is dated to the first of a block: then the last ones of the block before may be of it."""
    places = np.flatnonzero(block.counts(came) & came.rows[name].notna().to_numpy())
    return len(places) > 0 and change.since == int(places[0])


def _summary(values: Floats) -> list[float]:
    ordered = np.sort(values)
    if len(ordered) > MOST_VALUES:
        ordered = np.quantile(ordered, (np.arange(MOST_VALUES) + 0.5) / MOST_VALUES)
    return [float(value) for value in ordered]


def _from(first: pd.Series, moment: str) -> int:
    """Place of the patient whose first cell came at a moment; where they are not among those who are looked at, of the
    first who came later."""
    at = pd.Timestamp(moment)
    there = np.flatnonzero(first == at)
    if len(there):
        return int(there[0])
    later = np.flatnonzero(first > at)
    return int(later[0]) if len(later) else len(first)


def _time(came: Came, place: int) -> str:
    return pd.Timestamp(came.first.iloc[place]).isoformat()
