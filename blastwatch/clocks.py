"""When the entries of the history were written, where one of the clocks that they were written by was wrong.

Everybody's entries bear the time of their own machine, and none that of before the entry it follows. So one clock that
runs ahead hands its time on, until a promoter says so: a restoration that speaks about clocks (`registry restore
--clock`) bears the time of its own machine whatever was before, and what stands before it in the history was written
before it. Any other restoration bears no earlier time than what it follows, and so says nothing about clocks.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blastwatch.history import Record

APART = timedelta(minutes=5)
"""How far clocks may lie apart. What lies further ahead was written by a clock that is wrong."""


def written(records: Sequence["Record"]) -> list[datetime]:
    """When each entry was written, at the latest."""
    found: list[datetime] = []
    bound = datetime.max.replace(tzinfo=UTC)
    for record in reversed(records):
        found.append(min(bound, datetime.fromisoformat(record.time)))
        if record.action == "restore":
            bound = found[-1]
    return found[::-1]


def told_times(records: Sequence["Record"]) -> list[str]:
    """As `written`, ISO 8601: the time that each entry bears, or that of the restoration which says that its clock ran
    ahead."""
    return [
        record.time if latest == datetime.fromisoformat(record.time) else latest.isoformat(timespec="microseconds")
        for record, latest in zip(records, written(records), strict=True)
    ]


def told_time(records: Sequence["Record"], record: "Record") -> str:
    """As `told_times`, of one of the entries."""
    return told_times(records)[records.index(record)]


def unsure(records: Sequence["Record"], at: datetime, now: datetime) -> list[int]:
    """Numbers of the entries of which it is not known whether they were there at a time: a clock that ran ahead wrote
    them, and so they may be of any time between the entries around them, or until now."""
    found: list[int] = []
    for record, latest in zip(records, written(records), strict=True):
        said = datetime.fromisoformat(record.time)
        if said > min(latest, now + APART):
            found += [record.number] if min(latest, now) > at else []
        elif said <= at:
            found = []  # what comes before an entry that was there was there too
        else:
            break
    return found


def ahead(records: Sequence["Record"], now: datetime) -> list["Record"]:
    """The entries that lie further ahead of this machine's clock than clocks lie apart."""
    return [record for record, latest in zip(records, written(records), strict=True) if latest > now + APART]


def remedy(records: Sequence["Record"], now: datetime, *, promoter: bool = True) -> str:
    """What to do about entries that lie ahead of this machine's clock.

    Args:
        promoter: whether whoever reads it may write that down; else a promoter has to.
    """
    mine = f"This machine's clock says {now.isoformat(timespec='seconds')}"
    if len(ahead(records, now)) == len(records):  # no entry speaks for this machine's clock
        mine += ", and every entry lies after it"
    return (
        f"{mine}. Look at it first: if it is wrong, set it right. If it is right, "
        f"{'write down' if promoter else 'a promoter has to write down'} that the other one ran ahead: blastwatch "
        "registry restore --clock --reason TEXT"
    )
