"""The drift reports of before, as points over time, and since when things are as they are.

Every report leaves a JSON file that is kept for good (`monitoring.drift`), some ten thousand a week on a busy service.
Each is read once. Those that a person asked for, of a version and a window of their choice, are passed over: they would
interrupt what the monitor saw of the version that serves.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LATEST = 10_000  # reports that are read at the start, and remembered
SHOWN = 240  # points that a page draws


@dataclass(frozen=True, kw_only=True)
class Point:
    """One report. at: time of the newest prediction in it, ISO 8601. score: the largest score over threshold, and
    `column` whose it is."""

    at: str
    version: str
    cells: int
    score: float
    column: str
    drifted: bool


class Timeline:
    """Reads the reports of a folder; remembers what it has read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._points: dict[str, Point] = {}
        self._passed: set[str] = set()
        self._last: dict[str, Any] | None = None
        self._newest = ""

    def refresh(self) -> None:
        """Read the reports that came since."""
        for path in sorted(self._folder.glob("drift-*.json"))[-LATEST:]:  # their names sort by time
            if path.name in self._points or path.name in self._passed:
                continue
            try:
                document = json.loads(path.read_text())
            except (OSError, ValueError):
                continue  # half written, by a report that is being made or was killed; the next look tries again
            if document.get("on_request"):
                self._passed.add(path.name)
                continue
            point = self._points[path.name] = _point(document)
            if point.at >= self._newest:  # one on request may be of a window long past, and was not always marked
                self._last, self._newest = document, point.at
        for name in sorted(self._points)[:-LATEST]:
            del self._points[name]

    @property
    def last(self) -> dict[str, Any] | None:
        """The document of the report on the newest predictions; None where there was none."""
        return self._last

    def points(self) -> list[Point]:
        """All points, by the time of their predictions, oldest first."""
        return [self._points[name] for name in sorted(self._points, key=lambda name: (self._points[name].at, name))]


def _point(document: dict[str, Any]) -> Point:
    ratios = {column["name"]: column["score"] / column["threshold"] for column in document["columns"]}
    worst = max(ratios, key=lambda name: ratios[name])
    return Point(
        at=document["window"]["until"],
        version=document["version"],
        cells=document["window"]["cells"],
        score=ratios[worst],
        column=worst,
        drifted=document["drifted"],
    )


def since(points: Sequence[Point]) -> dict[str, Any] | None:
    """Since when the newest verdict on its version holds: time of the first report of the unbroken row that ends now,
    and whether that is the first report there is, so that it may have been so before. None without a report."""
    if not points:
        return None
    row = _row(points)
    return {"at": points[-row].at, "at_least": row == len(points), "reports": row}


def before(points: Sequence[Point]) -> str | None:
    """Time of the newest prediction in the last report on this version that said otherwise; None where none did."""
    if not points:
        return None
    earlier = points[: -_row(points)]
    return earlier[-1].at if earlier and earlier[-1].version == points[-1].version else None


def _row(points: Sequence[Point]) -> int:
    """How many reports, up to the newest, say the same of the same version."""
    now, row = points[-1], 0
    for point in reversed(points):
        if (point.version, point.drifted) != (now.version, now.drifted):
            break
        row += 1
    return row


def thinned(points: Sequence[Point], most: int = SHOWN) -> list[dict[str, Any]]:
    """At most so many points: of each run of neighbours of one version the one with the largest score."""
    if len(points) <= most:
        return [asdict(point) for point in points]
    size = -(-2 * len(points) // most)  # a change of version may end a run before it is full
    runs: list[list[Point]] = []
    for point in points:
        if not runs or len(runs[-1]) == size or runs[-1][-1].version != point.version:
            runs.append([])
        runs[-1].append(point)
    return [asdict(max(run, key=lambda point: point.score)) for run in runs]
