"""Predictions that wait on this machine's disk while their database is away, in a SQLite file of their own.

All workers of a service share the file: whoever reaches the database again hands over what any of them left there, also
those that were killed meanwhile. A row is taken out only after the database has it, and the database takes the same row
twice without harm; so a kill between the two loses nothing and stores nothing twice.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from blastwatch import database
from blastwatch.settings import Settings
from monitoring.capture import HandedOver, Rows
from monitoring.database import VARIABLE, StoreError, StoreUnavailable, open_database, translated
from monitoring.store import METADATA, PredictionRecord, Store, record_of

HAND_OVER_ROWS = 500  # in one transaction

_predictions = METADATA.tables["predictions"]
_log = logging.getLogger(__name__)


class _Waiting(Store):
    """The file, open."""

    def used(self) -> int:
        """Bytes of what waits. The file itself does not shrink when rows leave it."""
        with translated(), self._engine.connect() as connection:
            pages, free, size = (
                int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
                for name in ("page_count", "freelist_count", "page_size")
            )
        return (pages - free) * size

    def order(self) -> None:
        """Let the oldest be found without a look at all, also in the file of an older Blastwatch. The database they go
        to needs no such index."""
        with translated(), self._engine.begin() as connection:
            connection.exec_driver_sql("CREATE INDEX IF NOT EXISTS waiting_by_time ON predictions (time, id)")

    def oldest(self) -> list[PredictionRecord]:
        query = sa.select(_predictions).order_by(_predictions.c.time, _predictions.c.id).limit(HAND_OVER_ROWS)
        with translated(), self._engine.connect() as connection:
            return [record_of(row) for row in connection.execute(query).mappings()]

    def among(self, ids: Sequence[str]) -> list[str]:
        """Those of these ids that wait, in their order."""
        with translated(), self._engine.connect() as connection:
            there = self._present(connection, _predictions, ids)
        return [id_ for id_ in ids if id_ in there]

    def remove(self, records: Sequence[PredictionRecord]) -> int:
        """How many of them this call took out: none of those that another worker was faster with."""
        leave = sa.delete(_predictions).where(_predictions.c.id.in_([record.id for record in records]))
        with translated(), self._engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA secure_delete = ON")  # what is freed is overwritten with zeros
            return int(connection.execute(leave).rowcount)


class WaitingPredictions:
    """What waits on disk. The file is made when the first prediction has to wait.

    Args:
        path: of the file, one for all workers of a service.
        most_bytes: once so many wait no more is kept.
    """

    def __init__(self, path: Path, most_bytes: int) -> None:
        self._path, self._most_bytes = path, most_bytes
        self._waiting: _Waiting | None = None

    def left(self) -> bool:
        """Whether an earlier process may have left something."""
        return self._path.is_file()

    def keep(self, records: Sequence[PredictionRecord]) -> bool:
        """Write records down, all or none; False where they have no room or the disk refuses."""
        try:
            waiting = self._open()
            if waiting.used() >= self._most_bytes:
                _log.warning("No more predictions can wait on disk: %d bytes do.", self._most_bytes)
                return False
            waiting.add(records)
        except (StoreError, ValueError, KeyError) as error:
            _log.warning("Predictions cannot wait on disk, they stay in memory: %s", error)
            return False
        return True

    def hand_over(self, database: Rows[PredictionRecord]) -> HandedOver:
        """Give the oldest to the database.

        Raises:
            StoreUnavailable: it is still away; nothing is lost.
            StoreError: the file on disk cannot be read.
        """
        waiting = self._open()
        records = waiting.oldest()
        if not records:
            self.close()  # which empties the write-ahead log where no other worker has the file open
            return HandedOver(found=0, stored=0, refused=0)
        try:
            database.add(records)
        except StoreUnavailable:
            raise
        except StoreError:
            return self._one_by_one(database, waiting, records)
        return HandedOver(found=len(records), stored=waiting.remove(records), refused=0)

    def _one_by_one(
        self, database: Rows[PredictionRecord], waiting: _Waiting, records: Sequence[PredictionRecord]
    ) -> HandedOver:
        """One bad row must not hold up the good ones."""
        stored = refused = 0
        for record in records:
            try:
                database.add([record])
            except StoreUnavailable:
                raise
            except StoreError as error:
                _log.warning("The database refuses a prediction that waited, it is lost: %s", error)
                refused += waiting.remove([record])
            else:
                stored += waiting.remove([record])
        return HandedOver(found=len(records), stored=stored, refused=refused)

    def count(self) -> int:
        """Records that wait.

        Raises:
            StoreError: the file on disk cannot be read.
        """
        return self._open().count()

    def close(self) -> None:
        """What waits stays for the next start."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def _open(self) -> _Waiting:
        if self._waiting is None:
            self._waiting = _Waiting(open_database(f"sqlite:///{self._path}", METADATA))
            self._waiting.order()
        return self._waiting


def open_waiting(settings: Settings) -> WaitingPredictions | None:
    """Where a service's predictions wait; None where they shall not."""
    most = int(settings.capture_disk_mib * 2**20)
    return WaitingPredictions(settings.waiting, most) if most else None


def waiting_among(path: Path, ids: Sequence[str]) -> list[str]:
    """Those of these ids of predictions that wait on disk for their database, in their order.

    Args:
        path: of the file; where there is none, none waits and none is made.

    Raises:
        StoreError: the file cannot be read.
    """
    if not path.is_file():
        return []
    # Without `open_database`, which would wait for whoever writes there: the tables are made before anything waits.
    with _Waiting(database.create(f"sqlite:///{path}", VARIABLE, unavailable=StoreUnavailable)) as waiting:
        return waiting.among(ids)
