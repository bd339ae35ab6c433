"""What the database of predictions forgets: what is too old, what is too much, and the cells of one patient.

A cell goes with its label, every word on it and its shadow in one transaction, and what went is counted in the table
`deletions` in the same one. So whatever kills the process, a cell is there whole or gone whole, and the count is right.
Old cells go in small transactions, oldest first, so that the service never waits long; a patient goes in one.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from blastwatch.settings import Settings
from monitoring.database import UtcTime, open_database, translated
from monitoring.shadow_store import SHADOW
from monitoring.store import METADATA

AGE, SIZE, PATIENT = REASONS = ("age", "size", "patient")
BATCH = 500  # cells in one transaction, and ids in one statement: SQLite takes 999 parameters in old builds
MOST_AT_ONCE = 50_000  # cells that one look of the monitor deletes at most, so that it still looks
SLACK = 0.05  # share of the size limit that is freed beyond it, so that not every look deletes
INDEX_BYTES = 200  # of one prediction in PostgreSQL's two indexes, and its place in the page; measured

_metadata = sa.MetaData()
_deletions = sa.Table(
    "deletions",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("predictions", sa.Integer, nullable=False),
    sa.Column("labels", sa.Integer, nullable=False),
    sa.Column("shadow", sa.Integer, nullable=False),
)
_predictions, _labels, _words = (METADATA.tables[name] for name in ("predictions", "labels", "label_words"))
_shadow = SHADOW.tables["shadow"]


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """Rows that are gone: predictions, labels (as they stood), cells of the shadow."""

    predictions: int = 0
    labels: int = 0
    shadow: int = 0

    def __add__(self, other: "Deleted") -> "Deleted":
        return Deleted(
            predictions=self.predictions + other.predictions,
            labels=self.labels + other.labels,
            shadow=self.shadow + other.shadow,
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What is stored: predictions, bytes (see `Retention.usage`), times of the oldest and the newest, None for none."""

    predictions: int
    bytes: int
    oldest: datetime | None
    newest: datetime | None


class Retention:
    """Deletes; make it with `open_retention`."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def usage(self) -> Usage:
        """What is stored now.

        bytes: SQLite: the pages of the file that hold something. PostgreSQL: predictions times the mean size of the
        newest thousand with their index entries, since a table there does not shrink when rows go.
        """
        columns = (sa.func.count(), sa.func.min(_predictions.c.time), sa.func.max(_predictions.c.time))
        with translated(), self._engine.connect() as connection:
            count, oldest, newest = connection.execute(sa.select(*columns)).one()
            return Usage(predictions=count, bytes=self._bytes(connection, count), oldest=oldest, newest=newest)

    def by_age(self, before: datetime, *, most: int | None = None) -> Deleted:
        """Delete what was predicted before a moment, oldest first, at most so many cells."""
        old = _predictions.c.time < before
        gone = self._oldest(AGE, math.inf if most is None else most, old)
        with self._transaction(AGE) as (connection, counted):
            # Cells of the shadow whose prediction was dropped on its way to the database.
            stored = sa.select(_predictions.c.id).where(_predictions.c.id == _shadow.c.id).exists()
            counted.append(Deleted(shadow=_delete(connection, _shadow, (_shadow.c.time < before) & ~stored)))
        return gone + counted[0]

    def by_size(self, limit: int, *, most: int | None = None) -> Deleted:
        """Delete the oldest cells until the rest takes at most `limit` bytes, less `SLACK`; at most so many cells."""
        usage = self.usage()
        if usage.bytes <= limit or not usage.predictions:
            return Deleted()
        share = 1 - limit * (1 - SLACK) / usage.bytes
        count = min(math.ceil(share * usage.predictions), usage.predictions)
        return self._oldest(SIZE, count if most is None else min(count, most), sa.true())

    def forget(self, patient: str) -> Deleted:
        """Delete all cells of one patient, in one transaction.

        Args:
            patient: the hashed key, from `monitoring.pseudonyms`; never "".
        """
        if not patient:
            raise ValueError("Expected a hashed patient key but got none: cells without one belong to nobody known")
        with self._transaction(PATIENT) as (connection, counted):
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA secure_delete = ON")  # what is freed is overwritten with zeros
            gone = _cells(connection, _locked(connection, _predictions.c.patient == patient))
            orphans = _delete(connection, _shadow, _shadow.c.patient == patient)
            counted.append(gone + Deleted(shadow=orphans))
        if self._engine.dialect.name == "sqlite":
            with translated(), self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return counted[0]

    def counted(self) -> dict[str, Deleted]:
        """All that was ever deleted, by reason."""
        sums = [sa.func.coalesce(sa.func.sum(_deletions.c[name]), 0) for name in ("predictions", "labels", "shadow")]
        query = sa.select(_deletions.c.reason, *sums).group_by(_deletions.c.reason)
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found = dict.fromkeys(REASONS, Deleted())
        return found | {
            reason: Deleted(predictions=int(cells), labels=int(labels), shadow=int(shadow))
            for reason, cells, labels, shadow in rows
        }

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> "Retention":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _oldest(self, reason: str, most: float, which: sa.ColumnElement[bool]) -> Deleted:
        """Delete the oldest cells of a kind, in transactions of `BATCH`."""
        gone = Deleted()
        while gone.predictions < most:
            # Which cells are the oldest takes a look through the whole table: once for many transactions.
            wanted = int(min(MOST_AT_ONCE, most - gone.predictions))
            query = sa.select(_predictions.c.id).where(which).order_by(_predictions.c.time, _predictions.c.id)
            with translated(), self._engine.connect() as connection:
                ids = list(connection.execute(query.limit(wanted)).scalars())
            for start in range(0, len(ids), BATCH):
                part = _predictions.c.id.in_(ids[start : start + BATCH])
                with self._transaction(reason) as (connection, counted):
                    counted.append(_cells(connection, _locked(connection, part)))
                gone += counted[0]
            if len(ids) < wanted:
                break
        return gone

    @contextmanager
    def _transaction(self, reason: str) -> Iterator[tuple[sa.Connection, list[Deleted]]]:
        """One transaction; what the block puts into the list is counted in it."""
        counted: list[Deleted] = []
        with translated(), self._engine.begin() as connection:
            yield connection, counted
            (gone,) = counted
            if gone != Deleted():
                row = {"time": datetime.now(UTC), "reason": reason, "predictions": gone.predictions}
                row |= {"labels": gone.labels, "shadow": gone.shadow}
                connection.execute(sa.insert(_deletions), [row])

    def _bytes(self, connection: sa.Connection, count: int) -> int:
        if self._engine.dialect.name == "sqlite":
            pages, free, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * size
        newest = sa.select(_predictions).order_by(_predictions.c.time.desc()).limit(1000).subquery("newest")
        mean = sa.select(sa.func.avg(sa.func.pg_column_size(newest.table_valued()))).select_from(newest)
        return int(count * (float(connection.execute(mean).scalar_one() or 0) + INDEX_BYTES))


def retain(retention: Retention, settings: Settings, *, most: int | None = None) -> Deleted:
    """Delete what the settings say is too old or too much, at most so many cells for each reason."""
    gone = Deleted()
    if settings.retention_days:
        gone += retention.by_age(datetime.now(UTC) - timedelta(days=settings.retention_days), most=most)
    if settings.retention_mib:
        gone += retention.by_size(int(settings.retention_mib * 2**20), most=most)
    return gone


def open_retention(url: str) -> Retention:
    """Open the database of predictions and make its tables where they are missing; raises as `open_store`."""
    return Retention(open_database(url, METADATA, SHADOW, _metadata))


def _locked(connection: sa.Connection, which: sa.ColumnElement[bool]) -> list[str]:
    """Ids of the cells of a kind that are still there. PostgreSQL locks them: a label that comes now waits, and is
    refused."""
    query = sa.select(_predictions.c.id).where(which).order_by(_predictions.c.id).with_for_update()
    return list(connection.execute(query).scalars())


def _cells(connection: sa.Connection, ids: Sequence[str]) -> Deleted:
    """Delete predictions and all that hangs on them, the latter first."""
    gone = Deleted()
    for start in range(0, len(ids), BATCH):
        part = ids[start : start + BATCH]
        _delete(connection, _words, _words.c.id.in_(part))
        gone += Deleted(
            labels=_delete(connection, _labels, _labels.c.id.in_(part)),
            shadow=_delete(connection, _shadow, _shadow.c.id.in_(part)),
            predictions=_delete(connection, _predictions, _predictions.c.id.in_(part)),
        )
    return gone


def _delete(connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    done: sa.CursorResult[Any] = connection.execute(sa.delete(table).where(which))
    return done.rowcount
