"""The predictions that drift is looked for in: each image of a patient once, and cells of two patients at least.

Cells of one patient are alike, and the thresholds are for windows of three patients (`monitoring.calibration`). A
laboratory sends a patient's cells together, so that the latest cells may all be one patient's. How many patients a
window is of is counted as their effective number, (sum n)^2 / sum n^2 of their cells (Kish 1965, Survey Sampling): two
with 30 cells each are 2, one with 54 and two with 3 are 1.2. Below `ENOUGH` windows without drift alarm
(`tests/benchmarks/few_patients.py`), so a window reaches back beyond its cells until it is reached.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.performance import PATIENT, unit_of
from monitoring.store import Store

AHEAD = timedelta(minutes=5)  # of this clock; a time beyond it is a wrong clock's

ENOUGH = 2
"""Effective number of patients for a verdict."""

FURTHEST = 10
"""A window reaches back, for patients and for images that came once, at most so many times its cells."""

MOST_ANSWERS = 50_000
"""Predictions that are looked through where images repeat, as many as a report on performance reads."""

CAUTION = (
    "Fewer than half of the cells carry a patient key, so the rate of false alarms is not known: cells of few patients "
    "alarm falsely."
)

SAME = ["patient", "pixel_sha256"]
"""What two predictions of one image of a patient share."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """cells: of `Store.read`, oldest first, each image of a patient where it first came. repeated: predictions that
    were left out, since their image of that patient is among them. keyed: False where the cells before these carry too
    few keys to reach other patients, so that nobody knows whose a window would be."""

    cells: pd.DataFrame
    repeated: int
    keyed: bool = True


@dataclass(frozen=True, kw_only=True)
class Who:
    """Whose the cells of a window are: how many patients, and their effective number. None where fewer than half of
    the cells carry a key: then nobody knows."""

    patients: int | None
    effective: float | None


def latest(store: Store, *, model_digest: str, size: int, until: datetime) -> Window:
    """The latest `size` images that a version answered before a moment, and those before them until `ENOUGH` patients
    are reached, among the latest `FURTHEST` times `size` predictions. Where these are of fewer patients, or fewer than
    half of the cells that it takes carry a key, the latest `size` images alone. Where these predictions are of fewer
    than `size` images, since some repeat, those before them as well, `MOST_ANSWERS` in all at most."""
    limit = size * FURTHEST
    while True:
        known = store.answers(model_digest=model_digest, until=until, limit=limit)
        newest = known.drop_duplicates(SAME, keep="last")
        if len(newest) >= size or len(known) < limit or limit >= MOST_ANSWERS:
            break
        limit = min(3 * limit, MOST_ANSWERS)
    if newest.empty:
        return Window(cells=store.read(model_digest=model_digest, until=until, limit=0), repeated=0)
    # Back to the image that is the first too many. Of equal ones the first counts: one that is sent again and again
    # then leaves the window as it is.
    count, keyed = _reach(newest, size)
    span = known.loc[newest.index[-count - 1] + 1 :] if count < len(newest) else known
    wanted = span.drop_duplicates(SAME)["id"]
    cells = store.read(model_digest=model_digest, since=span["time"].iloc[0], until=until)
    cells = cells[cells["id"].isin(wanted)].reset_index(drop=True)
    return Window(cells=cells, repeated=len(span) - len(wanted), keyed=keyed)


def ends(answers: pd.DataFrame, size: int) -> list[datetime]:
    """The first moments after the windows of `size` images that these answers fill, one behind the other, but for the
    last one: at most `size` images are left behind the last moment.

    Args:
        answers: of `Store.answers`, oldest first.
    """
    found: list[datetime] = []
    while True:
        beyond = np.flatnonzero((~answers.duplicated(SAME)).cumsum() > size)
        if not len(beyond):
            return found
        times = answers["time"]
        # The cells of one request share their time and stay together.
        moment = times.iloc[beyond[0]]
        later = times[times > times.iloc[0]]
        if moment == times.iloc[0] and later.empty:
            return found
        moment = max(moment, later.iloc[0])
        found.append(moment.to_pydatetime())
        answers = answers[times >= moment]


def spanned(store: Store, *, model_digest: str, since: datetime | None, until: datetime | None) -> Window:
    """What a version answered with since <= time < until, each image of a patient once."""
    read = store.read(model_digest=model_digest, since=since, until=until)
    cells = once(read)
    return Window(cells=cells, repeated=len(read) - len(cells))


def not_ahead(store: Store, *, model_digest: str) -> tuple[datetime, str]:
    """Until when predictions count where nobody names a span: a cell of a clock that ran ahead would be among the
    latest until its time has come. And in words how many of a version's are left out so; "" for none."""
    until = datetime.now(UTC) + AHEAD
    count = store.count(since=until, model_digest=model_digest)
    minutes = AHEAD // timedelta(minutes=1)
    said = f"{count} predictions carry a time more than {minutes} minutes ahead of this clock and are left out."
    return until, f"{said} Name a span with --since or --until for them." if count else ""


def once(cells: pd.DataFrame) -> pd.DataFrame:
    """Each image of a patient where it first came; where a `truth` stands beside the answers, where it first came of
    those whose label is known."""
    order = cells.index if "truth" not in cells else cells["truth"].isna().sort_values(kind="stable").index
    return cells.loc[order].drop_duplicates(SAME).sort_index().reset_index(drop=True)


def who(cells: pd.DataFrame) -> Who:
    """Whose these cells are, by their hashed keys."""
    if unit_of(cells) != PATIENT:
        return Who(patients=None, effective=None)
    keys = cells["patient"]
    return Who(patients=keys[keys != ""].nunique(), effective=float(_effective(keys)[-1]))


def reaching(reached: NDArray[Any], size: int, wanted: float) -> int | None:
    """How many of the latest cells it takes until enough is reached, `size` at least; None where it never is.

    Args:
        reached: among the latest 1, 2, ... cells, shape (n,).
    """
    enough = np.flatnonzero(reached[size - 1 :] >= wanted)
    return size + int(enough[0]) if len(enough) else None


def told(cells: pd.DataFrame, repeated: int, *, keyed: bool = True) -> dict[str, Any]:
    """What a report says of the window that it is on: since, until, cells, patients and effective_patients (None where
    nobody knows), repeated, and caution: what keeps the verdict from having the stated rate of false alarms.

    Args:
        repeated, keyed: of `Window`.
    """
    owners = who(cells) if keyed else Who(patients=None, effective=None)
    return {
        "since": cells["time"].min().isoformat(),
        "until": cells["time"].max().isoformat(),
        "cells": len(cells),
        "patients": owners.patients,
        "effective_patients": owners.effective,
        "repeated": repeated,
        "caution": CAUTION if owners.patients is None else None,
    }


def words(window: dict[str, Any], compared: int | None = None) -> str:
    """What a report's `window` holds, in words.

    Args:
        compared: cells of it that were compared, None where that is not to be said.
    """
    patients, repeated = window["patients"], window["repeated"]
    of = "" if patients is None else f" of {patients} patient{'' if patients == 1 else 's'}"
    some = "" if compared in (None, window["cells"]) else f", {compared} of them compared"
    left = f", {repeated} repeated left out" if repeated else ""
    return f"{window['cells']} cells{of}{some}{left}"


def _reach(newest: pd.DataFrame, size: int) -> tuple[int, bool]:
    """How many of these cells, oldest first, the window holds, and whether it goes by patients.

    Where somebody's cells carry keys and others' between them do not, the latest ones may all be of one who is named.
    Without this a verdict would come and go each time that they do.
    """
    least = min(size, len(newest))
    if unit_of(newest.tail(least)) != PATIENT:
        return least, False
    count = reaching(_effective(newest["patient"].iloc[::-1]), least, ENOUGH)
    if unit_of(newest if count is None else newest.tail(count)) != PATIENT:
        return least, False
    return count or least, True


def _effective(keys: pd.Series) -> NDArray[np.float64]:
    """Effective number of patients among the first 1, 2, ... of these cells, shape (n,); 0 while none carries a key."""
    named = (keys != "").to_numpy()
    total = named.cumsum()
    squares = np.where(named, 2 * keys.groupby(keys).cumcount().to_numpy() + 1, 0).cumsum()
    return np.asarray(total**2 / np.maximum(squares, 1), dtype=np.float64)
