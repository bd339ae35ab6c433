"""What the monitor knows, as one document for its page: written by the looks, read by the server's thread."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blastwatch import DISCLAIMER, clocks
from blastwatch.errors import HistoryBroken, RegistryError
from blastwatch.history import CHAMPION
from blastwatch.registry import Fetched, Registry
from blastwatch.settings import Settings
from monitoring.cause_words import TITLES
from monitoring.doubts import doubts
from monitoring.drift import names_of
from monitoring.examples import Examples
from monitoring.report_page import by_distance
from monitoring.retention import Usage
from monitoring.timeline import Row, Timeline, before, counted, row_of, since, thinned

DRIFT, PATIENTS, CALM, WAITING = "drift", "patients", "calm", "waiting"
"""Of the latest window; `patients` where it has no drift but the patients, one after another, changed."""

MOST_COLUMNS = 40


class Status:
    """The document that `/drift.json` gives, and the pictures of its example cells. Each look replaces both whole, so a
    reader never sees half of one, and a picture that was deleted is gone with the next look, also where that fails."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._registry = registry
        self._folder = settings.drift
        self._timeline = Timeline(settings.drift)
        self._interval = settings.drift_interval
        self.begin("The monitor has not looked yet.")

    def begin(self, note: str) -> None:
        """Nothing is watched, or not yet: forget what was known, and say why. From this moment on a look that works is
        awaited (`begun_at`)."""
        self._version = self._digest = ""
        self._known: dict[str, Any] | None = None
        self._found: dict[str, Any] = {}
        self._pictures: dict[str, bytes] = {}
        self._document: dict[str, Any] = {
            "state": WAITING,
            "begun_at": _now(),
            "looked_at": None,
            "problem": None,
            "note": note,
            "interval_seconds": self._interval,
            "titles": TITLES,
            "disclaimer": DISCLAIMER,
        }

    def watch(self, fetched: Fetched) -> None:
        """Another version is watched: what was said of the one before says nothing of it."""
        self.begin("The first look at it is not over.")
        self._version, self._digest = fetched.entry.version, fetched.package.digest
        self._found = {
            "model": {
                "version": fetched.entry.version,
                "digest": fetched.package.digest,
                "synthetic": fetched.package.info.synthetic,
            },
            "patients": None,
            "performance": None,
            "examples": None,
            "promotions": self._promotions(),
        }
        self.judge(None)
        self._document = self._document | self._found

    def judge(self, report: dict[str, Any] | None) -> None:
        """What is known from now on, as the gauges are told it.

        Args:
            report: the document of a report on the watched version, the last that was made; None: nothing is known, or
                no longer.
        """
        self._known = report
        nothing: dict[str, Any] = {"window": None, "basis": None, "columns": [], "causes": [], "report": None}
        said = nothing if report is None else self._said(report)
        self._found = self._found | said | self._over_time()

    def see(self, **parts: dict[str, Any]) -> None:
        """What a look has found so far, told to the gauges as well.

        Args:
            parts: `patients`, from `monitoring.patient_report`; `performance`, from
                `monitoring.performance_report.report`.
        """
        self._found = self._found | parts

    def doubts(self) -> list[dict[str, str | None]]:
        """Why the estimate of the performance is not to be relied on (`monitoring.doubts`), by what is known now."""
        performance = self._found.get("performance")
        if performance is None:
            return []
        drifted, since = self._known is not None and self._known["drifted"], self._found.get("since")
        labelled = performance["now"]["labelled"]
        return doubts(labelled, drifted=drifted, since=since, patients=self._found.get("patients"))

    def document(self) -> dict[str, Any]:
        """With the monitor's own time, by which whoever reads it sees how old it is: no other clock need be right."""
        return self._document | {"now": _now()}

    def picture(self, identity: str) -> bytes | None:
        """PNG of an example cell; None for any other."""
        return self._pictures.get(identity)

    def report(self, name: str) -> Path | None:
        """Evidently's page of a report of that name; None where there is none, or no longer."""
        return self._folder / name if name in names_of(self._folder, ".html") else None

    def standing(self) -> tuple[dict[str, Any] | None, str | None]:
        """The document of the last report on the watched version, None where no verdict stands, and until when the last
        one that said otherwise was."""
        row = self._row()
        if row is not None and self._known is not None and row.drifted != self._known["drifted"]:
            return self._known, row.last  # the timeline has not come to the report yet
        return self._known, before(self._timeline.rows(), self._version, self._digest)

    def hold(self, usage: Usage) -> None:
        """What is stored, as the gauges are told it."""
        self.see(stored={"predictions": usage.predictions, "images": usage.images, "bytes": usage.bytes})

    def fail(self, problem: str) -> None:
        """A look failed: the reason stands beside what was known, and beside what the look had found before. Of the
        example cells nobody knows then whether they were deleted meanwhile: none is shown."""
        self._pictures = {}
        self._found = self._found | {"examples": None}
        self._document = self._document | self._found | self._verdicts() | {"problem": problem}

    def tell(
        self,
        note: str,
        usage: Usage,
        retraining: dict[str, Any] | None,
        examples: Examples,
        *,
        problem: str = "",
    ) -> None:
        """A look worked; what it found was told before, to `judge` and `see`.

        Args:
            note: in a few words why it made no report, "" where it made one.
            retraining: from `monitoring.retraining.Retraining.document`.
            problem: what hindered it all the same, "" for nothing.
        """
        self._found = self._found | self._over_time() | {
            "examples": examples.document,
            "promotions": self._promotions(),
            "retraining": retraining,
        }  # fmt: skip
        self.hold(usage)
        self._pictures = examples.pictures
        told = {"looked_at": _now(), "problem": problem or None, "note": note}
        self._document = self._document | self._found | self._verdicts() | told

    def _verdicts(self) -> dict[str, Any]:
        return {"state": self._state(), "doubts": self.doubts()}

    def _state(self) -> str:
        if self._known is not None and self._known["drifted"]:
            return DRIFT
        if (self._found.get("patients") or {}).get("drifted"):
            return PATIENTS
        return WAITING if self._known is None else CALM

    def _said(self, report: dict[str, Any]) -> dict[str, Any]:
        """What a report says."""
        return {
            "window": report["window"],
            "basis": report.get("basis"),  # one of an earlier release has none
            "columns": by_distance(report["columns"])[:MOST_COLUMNS],
            "causes": report["causes"],
            "report": self._page(report),
        }

    def _over_time(self) -> dict[str, Any]:
        """The reports of before, read again at every look: one that could not be read holds up those after it."""
        self._timeline.refresh()
        points = self._timeline.points()
        return {"since": self._since(), "timeline": thinned(points), "timeline_of": counted(points)}

    def _since(self) -> dict[str, Any] | None:
        """Since when the verdict stands, None without one. Where the timeline has not come to the report, which another
        one that cannot be read holds up or a full disk lost, no more is known than that it says so itself."""
        if self._known is None:
            return None
        row, until = self._row(), self._known["window"]["until"]
        if row is None or (row.last, row.drifted) != (until, self._known["drifted"]):
            return {"at": until, "at_least": True, "reports": 1}
        return since(self._timeline.rows(), self._version, self._digest)

    def _row(self) -> Row | None:
        return row_of(self._timeline.rows(), self._version, self._digest)

    def _page(self, report: dict[str, Any]) -> str | None:
        """Where the monitor serves Evidently's page of a report, beside `/drift`; of old ones only the JSON is kept."""
        name = Path(report["report"]).name
        return f"reports/{name}" if self.report(name) else None

    def _promotions(self) -> list[dict[str, str]] | None:
        """Every move of the champion, oldest first; None where the history cannot be read."""
        try:
            records = self._registry.records()
        except (RegistryError, HistoryBroken):
            return None
        return [
            {"at": at, "version": record.after, "before": record.before, "who": record.who,
             "action": record.action}
            for record, at in zip(records, clocks.told_times(records), strict=True)
            if record.alias == CHAMPION and record.after != record.before
        ]  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat()
