"""What the monitor knows, as one document for its page: written by the looks, read by the server's thread."""

from datetime import UTC, datetime
from typing import Any

from blastwatch import DISCLAIMER
from blastwatch.errors import HistoryBroken, RegistryError
from blastwatch.history import CHAMPION
from blastwatch.registry import Fetched, Registry
from blastwatch.settings import Settings
from monitoring.retention import Usage
from monitoring.timeline import Timeline, since, thinned

DRIFT, CALM, WAITING = "drift", "calm", "waiting"
MOST_COLUMNS = 40


class Status:
    """The document that `/drift.json` gives. Each look replaces it whole, so a reader never sees half of one."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._registry = registry
        self._timeline = Timeline(settings.drift)
        self._document: dict[str, Any] = {
            "state": WAITING,
            "looked_at": None,
            "problem": None,
            "note": "The monitor has not looked yet.",
            "interval_seconds": settings.drift_interval,
            "disclaimer": DISCLAIMER,
        }

    def document(self) -> dict[str, Any]:
        return self._document

    def fail(self, problem: str) -> None:
        """A look failed: what was known stays, and the reason stands beside it."""
        self._document = self._document | {"problem": problem}

    def tell(
        self,
        fetched: Fetched,
        note: str,
        performance: dict[str, Any],
        usage: Usage,
        retraining: dict[str, Any] | None,
    ) -> None:
        """A look worked.

        Args:
            note: in a few words why it made no report, "" where it made one.
            performance: from `monitoring.performance_report.report`.
            retraining: from `monitoring.retraining.Retraining.document`.
        """
        self._timeline.refresh()
        version = fetched.entry.version
        points = self._timeline.points()
        report = self._timeline.last
        # What is said of another version says nothing of the one that is watched now.
        known = report if report is not None and report["version"] == version else None
        self._document = self._document | {
            "state": WAITING if known is None else DRIFT if known["drifted"] else CALM,
            "looked_at": datetime.now(UTC).isoformat(),
            "problem": None,
            "note": note,
            "model": {
                "version": version,
                "digest": fetched.package.digest,
                "synthetic": fetched.package.info.synthetic,
            },
            "since": None if known is None else since(points),
            "window": None if known is None else known["window"],
            "columns": [] if known is None else _columns(known),
            # A report of an earlier release names none.
            "causes": [] if known is None else known.get("causes", []),
            "timeline": thinned(points),
            "promotions": self._promotions(),
            "performance": performance,
            "retraining": retraining,
            "stored": {"predictions": usage.predictions, "bytes": usage.bytes},
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
