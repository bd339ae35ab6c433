"""The drift reports of before, as points over time, and since when things are as they are.

Every report leaves a JSON file that is kept for good (`monitoring.drift`), some ten thousand a week on a busy service.
Each is read once: since when a verdict stands is kept beside them, so that a drift may last longer than a start reads
back. Old ones go into a folder of their month, because every look lists the others. Those that a person asked for, of a
version and a window of their choice, are passed over: they would interrupt what the monitor saw of the version that
serves.
"""

import bisect
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from blastwatch.state_files import write_state
from monitoring.drift import names_of

LATEST = 10_000  # reports that are read at the start for the drawing, and remembered
NEAR = 2 * LATEST  # reports that lie in the folder itself
MOST_MOVED = 1000  # by one refresh
HALF_WRITTEN = 60  # seconds that a report which cannot be read may still be in the making
SHOWN = 240  # points that a page draws
STANDING = "standing.json"
"""In the folder of the reports: the row of each version, up to which report. Made anew from all reports where it is
missing or damaged."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One report. at: time of the newest prediction in it, ISO 8601. score: the largest score over threshold, and
    `column` whose it is. digest: of the package, "" in a report of an older Blastwatch."""

    at: str
    version: str
    digest: str = ""
    cells: int
    score: float
    column: str
    drifted: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """The reports on a version, up to the last, that say the same of it.

    first, last: `Point.at` of the first and the last of them. at_least: no report, on any version, was made before the
    first. before: `Point.at` of the last report on the version that said otherwise, None for none.
    """

    version: str
    digest: str
    drifted: bool
    first: str
    last: str
    reports: int
    at_least: bool
    before: str | None


class Timeline:
    """Reads the reports of a folder, in the order in which they were made; remembers what it has read.

    Args:
        rows_alone: for who asks for no points: reports that the kept rows know are not read, and nothing in the folder
            is changed, which is the monitor's.
    """

    def __init__(self, folder: Path, *, rows_alone: bool = False) -> None:
        self._folder, self._rows_alone = folder, rows_alone
        self._points: dict[str, Point] = {}
        self._rows: list[Row] = []
        self._read: str | None = None  # name of the last report that was read; None before the first reading
        self._told = ""  # name of the last report in the rows
        self._written = ""  # and in the file that keeps them

    def refresh(self) -> None:
        """Read the reports that came since."""
        names = names_of(self._folder, ".json")
        if self._read is None:
            self._told, self._rows = self._kept(names)
            self._written = self._told
            drawn = "" if len(names) <= LATEST else names[-LATEST - 1]
            self._read = self._told if self._rows_alone else min(self._told, drawn)
            if not self._told:
                months = self._folder.glob("[0-9]*/")
                old = [month / name for month in months for name in names_of(month, ".json")]
                self._take(sorted(old, key=lambda path: path.name))
        self._take([self._folder / name for name in names[bisect.bisect_right(names, self._read) :]])
        if not self._rows_alone:
            self._keep(names)

    def _keep(self, names: Sequence[str]) -> None:
        with contextlib.suppress(OSError):  # a full disk hides no verdict; the next refresh tries again
            if self._told != self._written:
                rows = [asdict(row) for row in self._rows]
                write_state(self._folder / STANDING, {"last": self._told, "rows": rows})
                self._written = self._told
            for name in names[:-NEAR][:MOST_MOVED]:
                month = self._folder / name.removeprefix("drift-")[:6]
                month.mkdir(exist_ok=True)
                (self._folder / name).rename(month / name)

    def points(self) -> list[Point]:
        """The latest points, by the time of their predictions, oldest first."""
        return [self._points[name] for name in sorted(self._points, key=lambda name: (self._points[name].at, name))]

    def rows(self) -> list[Row]:
        """One of each version, the one with the last report at the end. The last report is what is known of a version,
        also where the cells of an earlier one were newer and have been deleted, or another version came between."""
        return list(self._rows)

    def _take(self, paths: Sequence[Path]) -> None:
        for path in paths:
            try:
                document = json.loads(path.read_text())
            except (OSError, ValueError):
                if _in_the_making(path):
                    return  # what comes after it waits: whatever is passed over once is never read
                continue  # its maker was killed; while it is the last, try again
            self._read = path.name
            if not document.get("on_request"):
                self._add(path.name, _point(document))

    def _add(self, name: str, point: Point) -> None:
        self._points[name] = point
        if len(self._points) > LATEST:
            del self._points[next(iter(self._points))]
        if name > self._told:
            self._told, self._rows = name, followed_by(self._rows, point)

    def _kept(self, names: Sequence[str]) -> tuple[str, list[Row]]:
        """What the file beside the reports says: the last report in it, and the rows. None where it cannot be read, or
        its reports were taken away."""
        try:
            kept = json.loads((self._folder / STANDING).read_text())
            last, rows = str(kept["last"]), [Row(**row) for row in kept["rows"]]
        except (OSError, ValueError, KeyError, TypeError):
            return "", []
        return (last, rows) if last in names else ("", [])


def _in_the_making(path: Path) -> bool:
    """Whether somebody may be writing it still; a time that lies ahead is a wrong clock's."""
    try:
        return abs(time.time() - path.stat().st_mtime) < HALF_WRITTEN
    except OSError:  # taken away meanwhile
        return False


def _point(document: dict[str, Any]) -> Point:
    ratios = {column["name"]: column["score"] / column["threshold"] for column in document["columns"]}
    worst = max(ratios, key=lambda name: ratios[name])
    return Point(
        at=document["window"]["until"],
        version=document["version"],
        digest=document.get("digest", ""),
        cells=document["window"]["cells"],
        score=ratios[worst],
        column=worst,
        drifted=document["drifted"],
    )


def followed_by(rows: Sequence[Row], point: Point) -> list[Row]:
    """The rows of all versions once one more report was made."""
    row = row_of(rows, point.version, point.digest)
    others = [other for other in rows if other is not row]
    if row is not None and row.drifted == point.drifted:
        digest = point.digest or row.digest
        row = replace(row, version=point.version, digest=digest, last=point.at, reports=row.reports + 1)
        return [*others, row]
    begun = Row(
        version=point.version,
        digest=point.digest,
        drifted=point.drifted,
        first=point.at,
        last=point.at,
        reports=1,
        at_least=not rows,
        before=None if row is None else row.last,
    )
    return [*others, begun]


def since(rows: Sequence[Row], version: str, digest: str = "") -> dict[str, Any] | None:
    """Since when the last verdict on a version holds: time of the first report of the unbroken row that ends with it,
    and whether that is the first report there is, so that it may have been so before. What was said of other versions
    meanwhile is passed over. None without a report on it.

    Args:
        rows: of `Timeline.rows`.
        digest: of the version's package: where the registry began anew its numbers do too. "" goes by the number alone.
    """
    row = row_of(rows, version, digest)
    return {"at": row.first, "at_least": row.at_least, "reports": row.reports} if row else None


def before(rows: Sequence[Row], version: str, digest: str = "") -> str | None:
    """Time of the newest prediction in the last report on this version that said otherwise; None where none did."""
    row = row_of(rows, version, digest)
    return row.before if row else None


def row_of(rows: Sequence[Row], version: str, digest: str) -> Row | None:
    """The one of a package, or of a version's number where it or its reports name none."""
    return next(
        (
            row
            for row in reversed(rows)
            if (row.digest == digest if row.digest and digest else row.version == version)
        ),
        None,
    )  # fmt: skip


def counted(points: Sequence[Point], most: int = SHOWN) -> dict[str, int]:
    """What `thinned` makes its points of: how many reports, how many of them with drift, and how many neighbours at
    most become one point."""
    return {
        "reports": len(points),
        "drifted": sum(point.drifted for point in points),
        "run": _longest_run(points, most),
    }


def _longest_run(points: Sequence[Point], most: int) -> int:
    # A change of version may end a run before it is full.
    return 1 if len(points) <= most else -(-2 * len(points) // most)


def thinned(points: Sequence[Point], most: int = SHOWN) -> list[dict[str, Any]]:
    """At most so many points, without their digests: of each run of neighbours of one version the one with the largest
    score."""
    size = _longest_run(points, most)
    runs: list[list[Point]] = []
    for point in points:
        if not runs or len(runs[-1]) == size or _version(runs[-1][-1]) != _version(point):
            runs.append([])
        runs[-1].append(point)
    kept = [asdict(max(run, key=lambda point: point.score)) for run in runs]
    return [{name: value for name, value in row.items() if name != "digest"} for row in kept]


def _version(point: Point) -> tuple[str, str]:
    return point.version, point.digest
