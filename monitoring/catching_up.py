"""What came while no monitor looked: after an outage, window by window, oldest first, as if it had been looked at then.

Else a drift that came and went in the night would be in no report: a look is at the latest window alone. The windows
lie one behind the other, so they are fewer than the looks that were missed, each with the stated rate of false alarms.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from blastwatch.errors import DataError
from blastwatch.registry import Fetched
from blastwatch.settings import Settings
from monitoring.drift import DriftReport, TooFewPredictions, prune
from monitoring.log_lines import past_drift
from monitoring.store import Store
from monitoring.timeline import Timeline, row_of
from monitoring.windows import FURTHEST, MOST_ANSWERS, Window, ends, latest

MOST_WINDOWS = 20
"""Of one look. A report takes two to four seconds, so that the present waits for a minute or so, and the monitor is far
from the ten minutes after which it counts as stale. KEEP_PAGES of `monitoring.drift` holds the pages of them all."""

OUTAGE = 3  # intervals between two looks without one; who sends a window and more in each has no outage

TOLD_FOR = timedelta(days=1)  # what was not looked at stands on the page until whoever comes next has seen it

_MOMENT = timedelta(microseconds=1)  # a report names the time of its newest cell
_log = logging.getLogger("blastwatch.monitor")

Report = Callable[[Window, datetime], DriftReport]
"""Makes the report on a window, dated so, and keeps it."""


class CatchingUp:
    """Of one version: call `look` before each look of the monitor at the latest window, and `looked` after it."""

    def __init__(self, store: Store, fetched: Fetched, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._version, self._digest = fetched.entry.version, fetched.package.digest
        self._until: datetime | None = None  # time of the newest prediction that was looked at
        self._at: datetime | None = None  # when the last look ended
        self._not_looked_at: list[tuple[datetime, str]] = []  # when it was found, and what

    def looked(self, window: Window) -> None:
        """The latest window was looked at, whether there was a verdict or not."""
        self._at = datetime.now(UTC)
        if len(window.cells):
            self._until = window.cells["time"].max().to_pydatetime()

    def look(self, report: Report, *, until: datetime) -> None:
        """After an outage make a report of each window that came since the last look, or since the last report on the
        disk, where that is more than one window: but for the latest, at which the monitor looks anyhow.

        What comes before the last `MOST_WINDOWS`, or was refused, is told in the log and by `problem`. So is drift, in
        one line of the log: where it is over, nothing else calls anybody.

        Args:
            until: only predictions before this moment.

        Raises:
            BlastwatchError, OSError: database or disk could not do their part; the next look goes on from there.
        """
        pause = timedelta(seconds=OUTAGE * self._settings.drift_interval)
        if self._at is not None and abs(datetime.now(UTC) - self._at) < pause:
            return
        came = self._came(until)
        if came.empty:
            return
        moments = ends(came, self._settings.drift_window)
        starts = [came["time"].iloc[0].to_pydatetime(), *moments]
        kept = moments[-MOST_WINDOWS:]
        self._pass_over(before=starts[len(moments) - len(kept)])
        found: list[dict[str, Any]] = []
        try:
            for moment in kept:
                found += self._one(report, moment)
        finally:  # also where the next one failed
            if any(document["drifted"] for document in found):
                _log.warning("%s", past_drift(found))

    @property
    def problem(self) -> str:
        """What was not looked at, for as long as it is told; "" for nothing."""
        now = datetime.now(UTC)
        self._not_looked_at = [one for one in self._not_looked_at if abs(now - one[0]) < TOLD_FOR]
        return " ".join(said for _, said in self._not_looked_at)

    def _came(self, until: datetime) -> pd.DataFrame:
        """The predictions after those that were looked at; none where one window holds them."""
        size, digest = self._settings.drift_window, self._digest
        self._until = self._until or self._reported()
        nothing = pd.DataFrame()
        if self._until is None or self._store.count(since=self._until + _MOMENT, model_digest=digest) <= size:
            return nothing
        # Another monitor of this home may have looked at them meanwhile.
        self._until = max(self._until, self._reported() or self._until)
        most = max(MOST_ANSWERS, size * FURTHEST)
        return self._store.answers(model_digest=digest, since=self._until + _MOMENT, until=until, limit=most)

    def _reported(self) -> datetime | None:
        """Until when the last report of the version on the disk is; None where there is none."""
        timeline = Timeline(self._settings.drift, rows_alone=True)
        timeline.refresh()
        row = row_of(timeline.rows(), self._version, self._digest)
        return datetime.fromisoformat(row.last) if row else None

    def _one(self, report: Report, moment: datetime) -> list[dict[str, Any]]:
        """Look at the window before a moment; returns its document, or nothing where there is no verdict."""
        window = latest(self._store, model_digest=self._digest, size=self._settings.drift_window, until=moment)
        made: list[dict[str, Any]] = []
        if len(window.cells):  # it may have been deleted meanwhile
            newest = window.cells["time"].max().to_pydatetime()
            try:
                made.append(report(window, newest).document)
                prune(self._settings.drift)
            except TooFewPredictions:
                pass  # no verdict, as there would have been none then
            except DataError as error:  # what one window holds must not keep the monitor from the present
                first = window.cells["time"].min().to_pydatetime()
                self._tell(len(window.cells), first, newest + _MOMENT, str(error))
        self._until = moment - _MOMENT
        return made

    def _pass_over(self, *, before: datetime) -> None:
        """Say what lies before the windows that are looked at, where anything does."""
        assert self._until is not None
        first = self._until + _MOMENT
        after, kept = (self._store.count(since=moment, model_digest=self._digest) for moment in (first, before))
        if after > kept:
            self._tell(after - kept, first, before, f"One look makes up for {MOST_WINDOWS} windows at most.")
            self._until = before - _MOMENT

    def _tell(self, count: int, since: datetime, until: datetime, why: str) -> None:
        span = f"--since {since.isoformat()} --until {until.isoformat()}"
        said = (
            f"{count} predictions of version {self._version} that came while no monitor looked were not looked at for "
            f"drift: {why} Look at them: blastwatch drift report --ref {self._version} {span}"
        )
        self._not_looked_at.append((datetime.now(UTC), said))
        _log.warning("%s", said)
