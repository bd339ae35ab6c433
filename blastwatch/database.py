"""Databases by SQLAlchemy's URL: a SQLite file on a laptop, PostgreSQL for a team; and their errors in our words."""

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError

from blastwatch.addresses import shown
from blastwatch.errors import BlastwatchError, SettingsError

BUSY_SECONDS = 5  # how long SQLite waits for another process's write
CONNECT_SECONDS = 5
SILENCE = {
    "connect_timeout": CONNECT_SECONDS,
    "tcp_user_timeout": 1000 * CONNECT_SECONDS,
    "keepalives_idle": 30,
    "keepalives_interval": 30,
}
"""How long a machine may say nothing, for libpq: what was sent waits 5 s (in ms) for a sign that it came, which is a
quarter of an hour otherwise, and what is waited for, or idle, is given up after a minute and not two hours."""
READ_ONLY = "25006"
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""SQLite's result codes of a file with broken pages, or whose head is no database's: it takes none, whatever comes."""

ENCODED = "In a password write @ as %40 and % as %25, or take one of letters and digits."

_QUERY = re.compile(r"[\w+]+://(?:[^:/]*(?::[^@]*)?@)?[^?]*(?:\?(.*))?", re.DOTALL)  # what make_url takes for it
_ACCOUNT = re.compile(r"(?:^|(?<=&))(?:user|password)=[^&]*", re.IGNORECASE)  # parameters whose values may hold an @
_BEFORE_QUERY = re.compile(r"\?(?:.*&)?(?:user|password)=", re.IGNORECASE | re.DOTALL)  # in what an @ there cut off

ABOUT_VALUES = ("22", "23")
"""Classes of PostgreSQL's SQLSTATE that say something of the values that were sent: data exception, integrity
constraint violation (its documentation, appendix A)."""


def create(
    url: str,
    variable: str,
    *,
    unavailable: type[BlastwatchError],
    pragmas: tuple[str, ...] = ("journal_mode=WAL", "foreign_keys=ON"),
    lock_seconds: int | None = None,
) -> sa.Engine:
    """An engine for a database; the folder of a SQLite file is made.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/NAME`.
        variable: the environment variable that the URL came from, for the messages.
        unavailable: what is raised where the folder cannot be made.
        lock_seconds: how long a statement waits for what another one holds locked in PostgreSQL; None: as the server
            says, which is without end unless somebody set it. `lock_timeout` in the URL's `options` stands above it.

    Raises:
        SettingsError: the URL names no database that is supported.
    """
    hint, parsed = _hint(variable), parse(url, variable)
    safe = repr(parsed.render_as_string(hide_password=True))
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise SettingsError(f"{hint}{safe}.")
    try:
        if parsed.drivername == "postgresql+psycopg":
            patience = {name: value for name, value in SILENCE.items() if name not in parsed.query}
            engine = sa.create_engine(parsed, pool_pre_ping=True, connect_args=patience)
            sa.event.listen(engine, "handle_error", _leave_reader)
            if lock_seconds is not None and "lock_timeout" not in str(parsed.query.get("options", "")):
                sa.event.listen(engine, "connect", _impatient(lock_seconds))
            return engine
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
    except (NoSuchModuleError, ImportError) as error:
        raise SettingsError(f"{hint}{safe}: its driver is not installed ({error}).") from error
    except OSError as error:
        raise unavailable(f"The folder of {parsed.database} cannot be made: {error}.") from error
    sa.event.listen(engine, "connect", _tuner(pragmas))
    return engine


def parse(url: str, variable: str) -> sa.URL:
    """An address of a database in its parts.

    Args:
        variable: the environment variable that it came from, for the messages.

    Raises:
        SettingsError: it is none, or an @ in its password ends the account too early, or begins one in a parameter.
            What follows that @ is taken for the host then, and drivers put a host into their messages; ours shows none
            of it.
    """
    try:
        found = make_url(url)
    except (ArgumentError, ValueError) as error:
        advice = f" {ENCODED}" if url.count("@") > 1 else ""
        raise SettingsError(f"{_hint(variable)}{shown(url)!r}.{advice}") from error
    if found.drivername.startswith("sqlite"):
        return found
    if "@" in f"{found.host}{found.database}":
        raise SettingsError(f"{_hint(variable)}one whose host or name holds an @ (not shown). {ENCODED}")
    if _is_cut(url, found):
        raise SettingsError(f"{_hint(variable)}one whose parameters hold an @, or seem to (not shown). {ENCODED}")
    return found


def _is_cut(url: str, found: sa.URL) -> bool:
    """Whether an @ that is not encoded cut a password in two, so that its end is the host, or the parameters begin in
    it. One stands between an account and a host, and others only in the values of user= and password=."""
    if _BEFORE_QUERY.search(f"{found.username}:{found.password}"):
        return True
    matched = _QUERY.match(url)
    query = matched.group(1) if matched else None
    return query is not None and "@" in (query if found.password is not None else _ACCOUNT.sub("", query))


def _hint(variable: str) -> str:
    return f"Expected {variable} as sqlite:///FILE or postgresql://USER@HOST/NAME but got "


def _tuner(pragmas: tuple[str, ...]) -> Callable[[Any, object], None]:
    def tune(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    return tune


def _impatient(seconds: int) -> Callable[[Any, object], None]:
    """Sets it once connected: a pooler between (PgBouncer) refuses a connection that asks for it in its `options`."""

    def tune(connection: Any, _record: object) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{seconds}s'")
        connection.commit()  # or the first rollback takes it back

    return tune


def _leave_reader(context: sa.engine.ExceptionContext) -> None:
    """After a failover a connection may lead to a server that only reads: no later statement shall go there."""
    if _state_of(context.sqlalchemy_exception) == READ_ONLY:
        context.is_disconnect = True


def _state_of(error: BaseException | None) -> str:
    """PostgreSQL's SQLSTATE of an error; "" where it has none."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _damaged(reason: BaseException) -> bool:
    """Whether SQLite says that the file itself is broken. Its extended codes hold the plain one in the lowest byte."""
    return isinstance(reason, sqlite3.Error) and getattr(reason, "sqlite_errorcode", 0) & 0xFF in DAMAGED


@contextmanager
def translated(what: str, *, unavailable: type[BlastwatchError], refused: type[BlastwatchError]) -> Iterator[None]:
    """Turn SQLAlchemy's errors into ours, without the statement and its parameters.

    Args:
        unavailable: the database takes nothing now: away, busy, only reading, damaged, without a table or the right to
            it.
        refused: it takes others, but not this.
    """
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise unavailable(f"{what} cannot be reached or is busy: {error.orig}.") from error
    except SQLAlchemyError as error:
        reason, state = getattr(error, "orig", None) or error, _state_of(error)
        if (state and state[:2] not in ABOUT_VALUES) or _damaged(reason):
            raise unavailable(f"{what} takes nothing now: {reason}.") from error
        raise refused(f"{what} refused: {reason}.") from error
