"""Where the history lies: one row an entry, in SQLite or PostgreSQL, with a lock that lets one writer in at a time.

The lock dies with its holder (a lock on a file, or a session lock of PostgreSQL), so a killed promotion blocks nobody.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.schema import CreateTable

from blastwatch import database
from blastwatch.console import say
from blastwatch.errors import HistoryBroken, RegistryBusy, RegistryError, RegistryUnreachable
from blastwatch.history import Record, Row

_LOCK = 19910101  # any number: PostgreSQL's advisory lock of whoever writes the history
_FIRST_TRY, _LONGEST_TRY = 0.05, 0.4  # seconds between two tries to get the lock

_metadata = sa.MetaData()
_entries = sa.Table(
    "history",
    _metadata,
    sa.Column("model", sa.String(256), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("gates", sa.Text, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("signature", sa.String(128), nullable=False),
)


class Ledger:
    """The history of one registered model. Opens nothing until it is asked something."""

    def __init__(self, url: str, model: str, *, lock_seconds: float = 600) -> None:
        self.url, self.model, self.lock_seconds = url, model, lock_seconds

    def rows(self, *, after: int = 0) -> list[Row]:
        """The entries as they lie, by number, from the one after a number on.

        Raises:
            HistoryBroken: one is not even a number and texts, such as SQLite takes into any column.
        """
        query = sa.select(*(_entries.c[name] for name in ("number", "body", "gates", "hash", "signature")))
        query = query.where(_entries.c.model == self.model, _entries.c.number > after).order_by(_entries.c.number)
        with self._translated(), self._engine.connect() as connection:
            return [_row(*row) for row in connection.execute(query)]

    def records(self) -> list[Record]:
        """The entries, oldest first. Raises `HistoryBroken` where one cannot be read."""
        return [row.record() for row in self.rows()]

    def append(self, row: Row) -> None:
        """Add an entry; the database itself refuses a number that is taken."""
        with self._translated(), self._engine.begin() as connection:
            connection.execute(sa.insert(_entries), [{"model": self.model} | asdict(row)])

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other writer out. Raises `RegistryBusy` where another one stays too long."""
        with self._file_lock() if self._engine.dialect.name == "sqlite" else self._session_lock():
            yield

    def close(self) -> None:
        """Give the connections back."""
        if "_engine" in self.__dict__:
            self._engine.dispose()

    @cached_property
    def _engine(self) -> sa.Engine:
        engine = database.create(self.url, "BLASTWATCH_HISTORY_URL", unavailable=RegistryUnreachable)
        with self._translated(), engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # two that make one table at once would both fail
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK + 1)))
            # PostgreSQL takes "if it does not exist" only from who may make tables, so it is asked first; and of two
            # that make one SQLite file at once the second finds the table of the first.
            if not sa.inspect(connection).has_table(_entries.name):
                connection.execute(CreateTable(_entries, if_not_exists=True))
        return engine

    def _translated(self) -> AbstractContextManager[None]:
        return database.translated(
            "The database of the registry's history", unavailable=RegistryUnreachable, refused=RegistryError
        )

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        path = Path(str(self._engine.url.database))
        lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self._say_waiting()
            try:
                lock.acquire(timeout=self.lock_seconds)
            except Timeout as error:
                raise self._busy() from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _session_lock(self) -> Iterator[None]:
        end = time.monotonic() + self.lock_seconds
        # Outside any transaction: one that waits for minutes would hold back the database's clean-up.
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            pause = _FIRST_TRY
            with self._translated():
                told = False
                while not connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK))).scalar_one():
                    if time.monotonic() > end:
                        raise self._busy()
                    if not told:
                        self._say_waiting()
                        told = True
                    time.sleep(pause)
                    pause = min(2 * pause, _LONGEST_TRY)
            try:
                yield
            finally:
                try:
                    with self._translated():
                        connection.execute(sa.select(sa.func.pg_advisory_unlock(_LOCK)))
                except RegistryError:
                    connection.invalidate()  # the lock ends with its connection; what was done under it is done

    def _say_waiting(self) -> None:
        say(f"Waiting for another writer of the registry, for {self.lock_seconds:g} s at most.")

    def _busy(self) -> RegistryBusy:
        return RegistryBusy(
            f"Another writer of the registry did not finish within {self.lock_seconds:g} s. Try again, or wait longer "
            "with BLASTWATCH_LOCK_SECONDS."
        )


def _row(number: object, *texts: object) -> Row:
    body, gates, digest, signature = texts
    if not (
        isinstance(number, int)
        and isinstance(body, str)
        and isinstance(gates, str)
        and isinstance(digest, str)
        and isinstance(signature, str)
    ):
        raise HistoryBroken(
            f"Expected a number and four texts as entry {number!r} of the history but something else lies there: it "
            "was changed behind the registry's back. Bring back a backup of it."
        )
    return Row(number, body, gates, digest, signature)
