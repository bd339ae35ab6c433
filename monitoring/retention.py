"""What the database of predictions forgets: what is too old, what is too much, and the cells of one patient.

A cell goes with its label, every word on it, its shadow and its picture in one transaction, and what went is counted in
the table `deletions` in the same one. So whatever kills the process, a cell is there whole or gone whole, and the count
is right. Old cells go in small transactions, oldest first, so that the service never waits long; a patient goes in one.
A picture may go before its cell: it has an age of its own, and where there is too much, pictures go first. Who has
entered the comparison with a challenger stays in it (`monitoring.shadow_entries`).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from blastwatch.settings import Settings
from monitoring.adrift import NOTES, Adrift
from monitoring.database import Opened, UtcTime, open_database, translated
from monitoring.shadow_entries import forget_key, keep_entries
from monitoring.shadow_store import SHADOW, ShadowStore
from monitoring.store import METADATA

AGE, IMAGE_AGE, SIZE, PATIENT = REASONS = ("age", "image-age", "size", "patient")
BATCH = 500  # cells in one transaction, and ids in one statement: SQLite takes 999 parameters in old builds
MOST_AT_ONCE = 50_000  # cells that one look of the monitor deletes at most, so that it still looks
ADRIFT = timedelta(days=1)
"""For how long a cell of the shadow, or a picture, is seen without its prediction at least before it goes
(`monitoring.adrift`)."""
SLACK = 0.05  # share of the size limit that is freed beyond it, so that not every look deletes

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
    sa.Column("images", sa.Integer, nullable=True),  # an older Blastwatch writes none
)
_predictions, _labels, _words, _images = (
    METADATA.tables[name] for name in ("predictions", "labels", "label_words", "images")
)
_shadow = SHADOW.tables["shadow"]
INDEX_BYTES = {_predictions: 200, _shadow: 270, _labels: 80, _words: 100}
"""Of one row in PostgreSQL's indexes, and its place in the page; measured."""


@dataclass(frozen=True, kw_only=True)
class Deleted:
    """Rows that are gone: predictions, labels (as they stood), cells of the shadow, pictures."""

    predictions: int = 0
    labels: int = 0
    shadow: int = 0
    images: int = 0

    def __add__(self, other: "Deleted") -> "Deleted":
        return Deleted(**{name: getattr(self, name) + getattr(other, name) for name in _COUNTED})


_COUNTED = tuple(field.name for field in fields(Deleted))


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What is stored: predictions, pictures and what those take, bytes of all together (see `Retention.usage`), times
    of the oldest and the newest prediction, None for none."""

    predictions: int
    images: int
    image_bytes: int
    bytes: int
    oldest: datetime | None
    newest: datetime | None


def _all() -> float:
    """However many there are."""
    return math.inf


class Retention(Opened):
    """Deletes; make it with `open_retention`."""

    def __init__(self, engine: sa.Engine) -> None:
        super().__init__(engine)
        self._adrift = {table: Adrift(engine, table, batch=BATCH, step=MOST_AT_ONCE) for table in (_shadow, _images)}

    def usage(self) -> Usage:
        """What is stored now.

        bytes: SQLite: the pages of the file that hold something. PostgreSQL: of predictions, labels, the words on them
        and the shadow, rows times the mean size of a thousand with their index entries, and the pictures, since a table
        there does not shrink when rows go.
        """
        columns = (sa.func.count(), sa.func.min(_predictions.c.time), sa.func.max(_predictions.c.time))
        pictures = (sa.func.count(), sa.func.coalesce(sa.func.sum(_images.c.bytes), 0))
        with translated(), self._engine.connect() as connection:
            count, oldest, newest = connection.execute(sa.select(*columns)).one()
            images, image_bytes = connection.execute(sa.select(*pictures).select_from(_images)).one()
            return Usage(
                predictions=count,
                images=int(images),
                image_bytes=int(image_bytes),
                bytes=self._bytes(connection, count, int(image_bytes)),
                oldest=oldest,
                newest=newest,
            )

    def by_age(self, before: datetime, *, most: int | None = None) -> Deleted:
        """Delete what was predicted before a moment, oldest first, at most so many cells."""
        return self._oldest(AGE, math.inf if most is None else most, _predictions.c.time < before)

    def adrift(self, at: datetime, *, most: int | None = None) -> Deleted:
        """Delete cells of the shadow, and pictures, that have no prediction and had none `ADRIFT` ago: it was forgotten
        while they were on their way to the database, or dropped on its own.

        Args:
            at: now.
            most: so many rows of each table are looked at and deleted at most. None: all of them.
        """
        gone = Deleted()
        for table, adrift in self._adrift.items():
            adrift.note(at, most=most)
            for ids in adrift.due(at - ADRIFT, most=most):
                with self._transaction(AGE) as (connection, counted):
                    counted.append(Deleted(**{table.name: adrift.delete(connection, ids)}))
                gone += counted[0]
        return gone

    def images_by_age(self, before: datetime, *, most: int | None = None) -> Deleted:
        """Delete the pictures of cells that were predicted before a moment, oldest first, at most so many."""
        return self._oldest_images(IMAGE_AGE, _images.c.time < before, most=math.inf if most is None else most)

    def by_size(self, limit: int, *, most: int | None = None) -> Deleted:
        """Delete the oldest pictures and then the oldest cells, until the rest takes at most `limit` bytes, less
        `SLACK`; at most so many pictures and so many cells."""
        usage, at_most, wanted = self.usage(), math.inf if most is None else most, limit * (1 - SLACK)
        gone = Deleted()
        if usage.bytes > limit and usage.images:
            gone = self._oldest_images(SIZE, sa.true(), most=at_most, surplus=lambda: self.usage().bytes - wanted)
            usage = self.usage()
        if usage.bytes <= limit or usage.images or not usage.predictions:
            return gone
        most_cells = min(_beyond(usage, wanted), at_most)
        return gone + self._oldest(SIZE, most_cells, sa.true(), surplus=lambda: _beyond(self.usage(), wanted))

    def forget(self, patient: str) -> Deleted:
        """Delete all cells of one patient, in one transaction.

        Args:
            patient: the hashed key, from `monitoring.pseudonyms`; never "".
        """
        if not patient:
            raise ValueError("Expected a hashed patient key but got none: cells without one belong to nobody known")
        self._keep_entries(_shadow.c.patient == patient)
        with self._transaction(PATIENT) as (connection, counted):
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("PRAGMA secure_delete = ON")  # what is freed is overwritten with zeros
            forget_key(connection, patient)
            gone = _cells(connection, _locked(connection, _predictions.c.patient == patient))
            shadow, images = (_delete(connection, table, table.c.patient == patient) for table in (_shadow, _images))
            counted.append(gone + Deleted(shadow=shadow, images=images))
        if self._engine.dialect.name == "sqlite":
            with translated(), self._engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return counted[0]

    def counted(self) -> dict[str, Deleted]:
        """All that was ever deleted, by reason."""
        sums = [sa.func.coalesce(sa.func.sum(_deletions.c[name]), 0) for name in _COUNTED]
        query = sa.select(_deletions.c.reason, *sums).group_by(_deletions.c.reason)
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        found = dict.fromkeys(REASONS, Deleted())
        return found | {
            reason: Deleted(**dict(zip(_COUNTED, map(int, counts), strict=True))) for reason, *counts in rows
        }

    def _oldest(
        self, reason: str, most: float, which: sa.ColumnElement[bool], *, surplus: Callable[[], float] = _all
    ) -> Deleted:
        """Delete the oldest cells of a kind, in transactions of `BATCH`.

        Args:
            surplus: how many are to go, asked once they are chosen. Who deletes at the same time has then either chosen
                the same ones, or left no surplus: else both together would delete twice as much.
        """
        gone = Deleted()
        while gone.predictions < most:
            # Which cells are the oldest takes a look through the whole table: once for many transactions.
            wanted = int(min(MOST_AT_ONCE, most - gone.predictions))
            query = sa.select(_predictions.c.id).where(which).order_by(_predictions.c.time, _predictions.c.id)
            with translated(), self._engine.connect() as connection:
                ids = list(connection.execute(query.limit(wanted)).scalars())
            ids = ids[: int(min(surplus(), wanted))]
            if ids:
                self._keep_entries(_shadow.c.id == _predictions.c.id, which)
            for start in range(0, len(ids), BATCH):
                part = _predictions.c.id.in_(ids[start : start + BATCH])
                with self._transaction(reason) as (connection, counted):
                    counted.append(_cells(connection, _locked(connection, part)))
                gone += counted[0]
            if len(ids) < wanted:
                break
        return gone

    def _oldest_images(
        self, reason: str, which: sa.ColumnElement[bool], *, most: float, surplus: Callable[[], float] = _all
    ) -> Deleted:
        """Delete the oldest pictures of a kind, in transactions of `BATCH`.

        Args:
            surplus: how many bytes are to go, asked as in `_oldest`.
        """
        gone = Deleted()
        while gone.images < most:
            wanted = int(min(MOST_AT_ONCE, most - gone.images))
            query = sa.select(_images.c.id, _images.c.bytes).where(which).order_by(_images.c.time, _images.c.id)
            with translated(), self._engine.connect() as connection:
                chosen = connection.execute(query.limit(wanted)).all()
            ids = _until(surplus(), chosen)
            for start in range(0, len(ids), BATCH):
                part = _images.c.id.in_(ids[start : start + BATCH])
                with self._transaction(reason) as (connection, counted):
                    counted.append(Deleted(images=_delete(connection, _images, part)))
                gone += counted[0]
            if len(ids) < wanted:
                break
        return gone

    def _keep_entries(self, *which: sa.ColumnElement[bool]) -> None:
        """Of the pairs whose cells of the shadow are about to go with their labels."""
        query = sa.select(_shadow.c.champion_digest, _shadow.c.challenger_digest).distinct()
        query = query.where(_labels.c.id == _shadow.c.id, *which)
        with translated(), self._engine.connect() as connection:
            pairs = [(str(champion), str(challenger)) for champion, challenger in connection.execute(query)]
        keep_entries(ShadowStore(self._engine), pairs, datetime.now(UTC))

    @contextmanager
    def _transaction(self, reason: str) -> Iterator[tuple[sa.Connection, list[Deleted]]]:
        """One transaction; what the block puts into the list is counted in it."""
        counted: list[Deleted] = []
        with translated(), self._engine.begin() as connection:
            yield connection, counted
            (gone,) = counted
            if gone != Deleted():
                row = {"time": datetime.now(UTC), "reason": reason, **asdict(gone)}
                connection.execute(sa.insert(_deletions), [row])

    def _bytes(self, connection: sa.Connection, count: int, image_bytes: int) -> int:
        if self._engine.dialect.name == "sqlite":
            pages, free, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
            return (pages - free) * size
        newest = sa.select(_predictions).order_by(_predictions.c.time.desc())
        total = image_bytes + count * (_mean_bytes(connection, newest) + INDEX_BYTES[_predictions])
        for table in (_shadow, _labels, _words):
            rows = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            total += rows * (_mean_bytes(connection, sa.select(table)) + INDEX_BYTES[table])
        return int(total)


def retain(retention: Retention, settings: Settings, *, most: int | None = None) -> Deleted:
    """Delete what the settings say is too old or too much, at most so many cells for each reason, and what was left
    behind without its prediction, whatever they say."""
    gone = retention.adrift(datetime.now(UTC), most=most)
    if settings.retention_days:
        gone += retention.by_age(datetime.now(UTC) - timedelta(days=settings.retention_days), most=most)
    if settings.image_days:
        gone += retention.images_by_age(datetime.now(UTC) - timedelta(days=settings.image_days), most=most)
    if settings.retention_mib:
        gone += retention.by_size(int(settings.retention_mib * 2**20), most=most)
    return gone


def open_retention(url: str) -> Retention:
    """Open the database of predictions and make its tables where they are missing; raises as `open_store`."""
    return Retention(open_database(url, METADATA, SHADOW, NOTES, _metadata))


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
            images=_delete(connection, _images, _images.c.id.in_(part)),
            predictions=_delete(connection, _predictions, _predictions.c.id.in_(part)),
        )
    return gone


def _mean_bytes(connection: sa.Connection, rows: sa.Select[Any]) -> float:
    """Size of a row in PostgreSQL, without its index entries: the mean of the first thousand."""
    some = rows.limit(1000).subquery("some")
    mean = sa.select(sa.func.avg(sa.func.pg_column_size(some.table_valued()))).select_from(some)
    return float(connection.execute(mean).scalar_one() or 0)


def _beyond(usage: Usage, wanted: float) -> float:
    """How many cells are to go, so that the rest takes so many bytes."""
    return max(0, math.ceil((1 - wanted / usage.bytes) * usage.predictions)) if usage.bytes else 0


def _until(surplus: float, sizes: Iterable[Sequence[Any]]) -> list[str]:
    """Ids of the first of these (id, bytes) that together take so many bytes."""
    ids = []
    for id_, size in sizes:
        if surplus <= 0:
            break
        ids.append(str(id_))
        surplus -= size
    return ids


def _delete(connection: sa.Connection, table: sa.Table, which: sa.ColumnElement[bool]) -> int:
    done: sa.CursorResult[Any] = connection.execute(sa.delete(table).where(which))
    return done.rowcount
