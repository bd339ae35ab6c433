"""What the monitor knows, as one document for its page: written by the looks, read by the server's thread."""

from datetime import UTC, datetime
from typing import Any

from blastwatch import DISCLAIMER
from blastwatch.errors import HistoryBroken, RegistryError
from blastwatch.history import CHAMPION
from blastwatch.registry import Fetched, Registry
from blastwatch.settings import Settings
from monitoring.examples import Examples
from monitoring.retention import Usage
from monitoring.timeline import Timeline, before, since, thinned

DRIFT, PATIENTS, CALM, WAITING = "drift", "patients", "calm", "waiting"
"""Of the latest window; `patients` where it has no drift but the patients, one after another, changed."""

MOST_COLUMNS = 40


class Status:
    """The document that `/drift.json` gives, and the pictures of its example cells. Each look replaces both whole, so a
    reader never sees half of one, and a picture that was deleted is gone with the next look."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._registry = registry
        self._pictures: dict[str, bytes] = {}
        self._known: dict[str, Any] | None = None
        self._timeline = Timeline(settings.drift)
        self._interval = settings.drift_interval
        self.begin("The monitor has not looked yet.")

    def begin(self, note: str) -> None:
        """Nothing is watched: forget what was known, and say why."""
        self._pictures, self._known = {}, None
        self._document: dict[str, Any] = {
            "state": WAITING,
            "looked_at": None,
            "problem": None,
            "note": note,
            "interval_seconds": self._interval,
            "disclaimer": DISCLAIMER,
        }

    def document(self) -> dict[str, Any]:
        return self._document

    def picture(self, identity: str) -> bytes | None:
        """PNG of an example cell; None for any other."""
        return self._pictures.get(identity)

    def refresh(self, version: str, *, verdict: bool = True) -> tuple[dict[str, Any] | None, str | None]:
        """Read the reports that came since.

        Args:
            verdict: False: too few cells are left for one, so that of the last report no longer stands.

        Returns:
            The document of the last report, where it is on this version, and until when the one before said otherwise.
        """
        self._timeline.refresh()
        # What is said of another version says nothing of the one that is watched now.
        report = self._timeline.last
        self._known = report if verdict and report is not None and report["version"] == version else None
        return self._known, before(self._timeline.points())

    def fail(self, problem: str) -> None:
        """A look failed: what was known stays, and the reason stands beside it."""
        self._document = self._document | {"problem": problem}

    def tell(
        self,
        fetched: Fetched,
        note: str,
        patients: dict[str, Any],
        performance: dict[str, Any],
        usage: Usage,
        retraining: dict[str, Any] | None,
        examples: Examples,
        *,
        problem: str = "",
    ) -> None:
        """A look worked; `refresh` was called before.

        Args:
            note: in a few words why it made no report, "" where it made one.
            patients: from `monitoring.patient_report`.
            performance: from `monitoring.performance_report.report`.
            retraining: from `monitoring.retraining.Retraining.document`.
            problem: what hindered it all the same, "" for nothing.
        """
        known, points = self._known, self._timeline.points()
        self._pictures = examples.pictures
        self._document = self._document | {
            "state": _state(known, patients),
            "looked_at": datetime.now(UTC).isoformat(),
            "problem": problem or None,
            "note": note,
            "model": {
                "version": fetched.entry.version,
                "digest": fetched.package.digest,
                "synthetic": fetched.package.info.synthetic,
            },
            "since": None if known is None else since(points),
            "window": None if known is None else known["window"],
            "columns": [] if known is None else _columns(known),
            # A report of an earlier release names none.
            "causes": [] if known is None else known.get("causes", []),
            "examples": examples.document,
            "timeline": thinned(points),
            "promotions": self._promotions(),
            "patients": patients,
            "performance": performance,
            "retraining": retraining,
            "stored": {"predictions": usage.predictions, "images": usage.images, "bytes": usage.bytes},
        }

    def _promotions(self) -> list[dict[str, str]] | None:
        """Every move of the champion, oldest first; None where the history cannot be read."""
        try:
            records = self._registry.records()
        except (RegistryError, HistoryBroken):
            return None
        return [
            {"at": record.time, "version": record.after, "before": record.before, "who": record.who,
             "action": record.action}
            for record in records
            if record.alias == CHAMPION and record.after != record.before
        ]  # fmt: skip


def _state(known: dict[str, Any] | None, patients: dict[str, Any]) -> str:
    if known is not None and known["drifted"]:
        return DRIFT
    if patients["drifted"]:
        return PATIENTS
    return WAITING if known is None else CALM


def _columns(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The columns by how near they are to their threshold, the farthest beyond it first."""
    rows = [
        {
            "name": column["name"],
            "score": column["score"],
            "threshold": column["threshold"],
            "ratio": column["score"] / column["threshold"],
            "drifted": column["drifted"],
        }
        for column in report["columns"]
    ]
    return sorted(rows, key=lambda row: -row["ratio"])[:MOST_COLUMNS]
