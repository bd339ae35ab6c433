"""The database of predictions as such: opened on SQLite or PostgreSQL, its tables made, its errors in our words."""

import time as clock
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from blastwatch import database
from blastwatch.addresses import shown
from blastwatch.errors import BlastwatchError, DataError
from monitoring.revisions import bring_up

SCHEMA_VERSION = 1
"""Of what an older Blastwatch must find. A table or column that came later is made where it is missing
(`monitoring.revisions`) and leaves the number as it is: an older Blastwatch goes on and does not see it."""

VARIABLE = "BLASTWATCH_PREDICTIONS_URL"

LOCK_SECONDS = 5
"""How long a statement waits where somebody locks a table of PostgreSQL (ALTER TABLE, VACUUM FULL, an open
transaction). Then the database counts as away, and what is to be stored lies on disk and not in memory alone."""

_OPEN_ATTEMPTS = 5  # several workers may make the same tables at the same moment
_LOCK = 20190107  # any number: PostgreSQL's advisory lock while the tables are made


class StoreError(BlastwatchError):
    """The database of predictions refused what was asked."""


class StoreUnavailable(StoreError):
    """The database of predictions cannot be reached or is busy; the same call may succeed later."""


class UtcTime(sa.TypeDecorator[datetime]):
    """A moment: with a time zone in Python, UTC in the database (SQLite keeps none)."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"Expected a time with a time zone but got {value.isoformat()}")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:  # noqa: ARG002
        return value if value is None else value.replace(tzinfo=value.tzinfo or UTC).astimezone(UTC)


_own = sa.MetaData()
_schema = sa.Table("blastwatch_schema", _own, sa.Column("version", sa.Integer, primary_key=True))


def open_database(url: str, *wanted: sa.MetaData) -> sa.Engine:
    """Open the database and make its tables and indexes where they are missing.

    Args:
        url: SQLAlchemy's form: `sqlite:///FILE` (made with its folder, in WAL mode), `postgresql://USER@HOST/NAME`.
        wanted: the tables.

    Raises:
        SettingsError: the URL names no database that is supported.
        StoreUnavailable: no connection, or a table that is to be made or changed is locked.
        StoreError: the tables are of another version of Blastwatch.
    """
    # NORMAL may lose the last commits in a power cut, no more; WAL lets the monitor read while the service writes.
    pragmas = ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON")
    engine = database.create(url, VARIABLE, unavailable=StoreUnavailable, pragmas=pragmas, lock_seconds=LOCK_SECONDS)
    for attempt in range(1, _OPEN_ATTEMPTS + 1):
        try:
            _make_tables(engine, (_own, *wanted))
            break
        except StoreUnavailable:
            if attempt == _OPEN_ATTEMPTS or engine.dialect.name != "sqlite":
                engine.dispose()
                raise
            clock.sleep(0.1 * attempt)
    return engine


def check_made(url: str) -> None:
    """For whoever stores no predictions: the file is made by the service, not by a command in a home that was mistyped.

    Raises:
        DataError: there is none; a patient's cells may lie in another.
        SettingsError: the URL is none.
    """
    if not is_made(url):
        raise DataError(f"Expected stored predictions in {where(url)} but there is no such database.")


def is_made(url: str) -> bool:
    """Whether the file is there; PostgreSQL, and what is in memory, count as made. Raises `SettingsError`."""
    parsed = database.parse(url, VARIABLE)
    return not (parsed.drivername.startswith("sqlite") and parsed.database) or Path(parsed.database).exists()


def where(url: str) -> str:
    """Where predictions are looked for, and which variables say so."""
    return f"{shown(url)} (BLASTWATCH_HOME or {VARIABLE} of the service)"


class Opened:
    """An open database, as a context: at its end the connections are given back. Safe to use from several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def insert(engine: sa.Engine, table: sa.Table) -> Any:
    """An insert of this database's own dialect, for the sake of ON CONFLICT."""
    return (postgresql if engine.dialect.name == "postgresql" else sqlite).insert(table)


def translated() -> AbstractContextManager[None]:
    """Turn SQLAlchemy's errors into ours, without the statement and its parameters."""
    return database.translated("The database of predictions", unavailable=StoreUnavailable, refused=StoreError)


def _make_tables(engine: sa.Engine, wanted: tuple[sa.MetaData, ...]) -> None:
    with translated(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        else:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        inspector = sa.inspect(connection)
        new = not inspector.has_table("predictions")
        for table in (table for metadata in wanted for table in metadata.sorted_tables):
            _make_table(connection, table, inspector)
        found = connection.execute(sa.select(_schema.c.version)).scalars().all()
        if not found:
            connection.execute(insert(engine, _schema).on_conflict_do_nothing(), [{"version": SCHEMA_VERSION}])
        elif list(found) != [SCHEMA_VERSION]:
            raise StoreError(
                f"Expected tables of version {SCHEMA_VERSION} in the database of predictions but found {list(found)}. "
                "Point BLASTWATCH_PREDICTIONS_URL at another database, or use the Blastwatch that made this one."
            )
        bring_up(connection, new=new)


def _make_table(connection: sa.Connection, table: sa.Table, inspector: sa.Inspector) -> None:
    """Make what is missing. PostgreSQL takes "if it does not exist" only from who may make tables, and to ask so of an
    index it locks the table: behind a VACUUM this would wait, and every insert behind it."""
    there = inspector.has_table(table.name)
    known = {index["name"] for index in inspector.get_indexes(table.name)} if there else set()
    if not there:
        connection.execute(CreateTable(table))
    for index in table.indexes:
        if index.name not in known:
            connection.execute(CreateIndex(index))
