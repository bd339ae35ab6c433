"""The drift reports of before, as points over time, and since when things are as they are.

Every report leaves a JSON file that is kept for good (`monitoring.drift`), some ten thousand a week on a busy service.
Each is read once. Those that a person asked for, of a version and a window of their choice, are passed over: they would
interrupt what the monitor saw of the version that serves.
"""

import itertools
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
            self._points[path.name] = _point(document)
        for name in sorted(self._points)[:-LATEST]:
            del self._points[name]

    def points(self) -> list[Point]:
        """All points, by the time of their predictions, oldest first."""
        return [self._points[name] for name in sorted(self._points, key=lambda name: (self._points[name].at, name))]

    def made(self) -> list[Point]:
        """All points in the order in which their reports were made: the last one on a version is what is known of it,
        also where the cells of an earlier one were newer and have been deleted, or another version came between."""
        return [self._points[name] for name in sorted(self._points)]


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


def since(made: Sequence[Point], version: str) -> dict[str, Any] | None:
    """Since when the last verdict on a version holds: time of the first report of the unbroken row that ends with it,
    and whether that is the first report there is, so that it may have been so before. What was said of other versions
    meanwhile is passed over. None without a report on it.

    Args:
        made: of `Timeline.made`.
    """
    row = _row(made, version)
    return {"at": row[0].at, "at_least": row[0] is made[0], "reports": len(row)} if row else None


def before(made: Sequence[Point], version: str) -> str | None:
    """Time of the newest prediction in the last report on this version that said otherwise; None where none did."""
    own = [point for point in made if point.version == version]
    earlier = own[: len(own) - len(_row(made, version))]
    return earlier[-1].at if earlier else None


def _row(made: Sequence[Point], version: str) -> list[Point]:
    """The reports on a version, up to the last, that say the same of it."""
    own = [point for point in made if point.version == version]
    row = itertools.takewhile(lambda point: point.drifted == own[-1].drifted, reversed(own))
    return list(row)[::-1]


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
