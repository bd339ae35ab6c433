"""The embedded MLflow store: a SQLite file under the home, whose tables one process makes while the others wait.

MLflow makes them when the store is first opened, and two processes that do so at once damage each other's: a training
and a service that are started together on a new machine. It makes them in many steps, and where they stop half-way
(Ctrl+C, a full disk) it never opens that file again. So they are made in a file aside, which is put in place whole.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from blastwatch.addresses import shown
from blastwatch.errors import RegistryError, SettingsError
from blastwatch.settings import Settings

LOCK = "mlflow.lock"
STORE, HISTORY = "mlflow.db", "history.db"
KEPT = ("experiments", "runs", "registered_models", "model_versions")  # a row of any of them is somebody's
MLFLOWS = {"experiments", "alembic_version"}  # the first table that MLflow makes, and the one by which it counts steps
BESIDE = ("-journal", "-wal", "-shm")  # what SQLite keeps beside a file that it writes to
MEANT = "Name the one that is meant, or register a version there: blastwatch registry register DIR"


def open_embedded(settings: Settings) -> None:
    """Make the tables where they are missing; once a process.

    Raises:
        SettingsError: the home cannot be made or written to.
        RegistryError: MLflow cannot open the file, such as one of another version of MLflow, or one that was left
            half-made.
    """
    _open(settings.tracking_uri, settings)


@cache
def _open(tracking_uri: str, settings: Settings) -> None:
    from mlflow import MlflowClient

    with _locked(settings):
        if settings.embedded_registry:
            _make_missing(settings.home / STORE)
        try:
            with _told(f"MLflow cannot open its store {tracking_uri}"):
                MlflowClient(tracking_uri, tracking_uri).search_experiments(max_results=1)
        except RegistryError as error:
            if settings.embedded_registry and _is_half_made(settings.home / STORE):
                raise RegistryError(
                    f"{error}. The file was left half-made by a first start that did not end, and holds no training "
                    f"and no version. Remove {settings.home / STORE} and call this again."
                ) from error
            raise


def make_embedded(settings: Settings) -> None:
    """Make the file with its tables where it is missing, for a server that is started on it. Raises as above."""
    with _locked(settings):
        _make_missing(settings.home / STORE)


def is_made(settings: Settings) -> bool:
    """Whether there is a registry to read from. False where it is the embedded one and nothing of it is there yet,
    MLflow's file or a history: who only reads shall not make them.

    Raises:
        SettingsError: the home is no folder.
    """
    history = settings.home / HISTORY
    if not settings.embedded_registry or settings.history_url != f"sqlite:///{history}":
        return True
    if settings.home.exists() and not settings.home.is_dir():
        raise SettingsError(f"Expected a folder as BLASTWATCH_HOME but {settings.home} is a file. Name another one.")
    return history.exists() or (settings.home / STORE).exists()


def check_made(settings: Settings) -> None:
    """For whoever does not make a registry: a home that was mistyped would else look like a real one from then on.

    Raises:
        RegistryError: there is none yet.
        SettingsError: as `is_made`.
    """
    if not is_made(settings):
        raise RegistryError(f"There is no registry in {where(settings)}. {MEANT}")


def where(settings: Settings) -> str:
    """Where the registry lies, and which variable says so."""
    if settings.embedded_registry:
        return f"{settings.tracking_shown} (BLASTWATCH_HOME)"
    return f"{settings.tracking_shown} (MLFLOW_TRACKING_URI), history in {shown(settings.history_url)}"


@contextlib.contextmanager
def _locked(settings: Settings) -> Iterator[None]:
    from filelock import FileLock

    lock = FileLock(settings.home / LOCK)
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise SettingsError(
            f"Expected a folder that can be made and written to as BLASTWATCH_HOME but got {settings.home}: "
            f"{error.strerror or error}. Name another one, or mend it."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _make_missing(store: Path) -> None:
    """Nobody else may be at it. An empty file is one in which the first step was not done."""
    if store.exists() and store.stat().st_size:
        return
    aside = store.with_name(f"{store.name}.new")
    _remove(aside)  # of a start that was killed
    try:
        with _told(f"MLflow cannot make its store {store}"):
            _make_tables(aside)
            _remove(store)  # a journal without its file would be played back into the new one
            aside.replace(store)
    finally:
        _remove(aside)


def _make_tables(file: Path) -> None:
    # As `mlflow db upgrade` does for an empty database: MLflow's public way would keep connections to the file.
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    engine = create_sqlalchemy_engine(f"sqlite:///{file}")  # type: ignore[no-untyped-call]
    try:
        _initialize_tables(engine)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")  # all of it stands in the file that is moved


def _remove(store: Path) -> None:
    for end in ("", *BESIDE):
        store.with_name(store.name + end).unlink(missing_ok=True)


def _is_half_made(store: Path) -> bool:
    """Whether a database is MLflow's and holds no experiment: MLflow adds one itself, once all tables are there."""
    try:
        with contextlib.closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            names = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
            kept = [name for name in KEPT if name in names]
            rows = [connection.execute(f"select 1 from {name} limit 1").fetchone() for name in kept]  # noqa: S608
    except sqlite3.Error:
        return False  # no database at all: MLflow's own words say so
    return bool(names & MLFLOWS) and not any(rows)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise RegistryError(shown(f"{what}: {error}")) from error
