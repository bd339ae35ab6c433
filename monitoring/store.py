"""What was predicted, and what turned out to be true: one table each, in SQLite or PostgreSQL (SQLAlchemy Core).

    predictions   one row an answer: what was said by which model version, the image statistics, the embedding
    labels        one row a label that came later, at most one a prediction; the last word counts
    schema        the version of these tables

No image is stored. `patient` and `site` are whatever the caller hashed, or empty.
"""

import time as clock
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, InterfaceError, NoSuchModuleError, OperationalError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import BlastwatchError, DataError, SettingsError
from monitoring.statistics import STATISTICS

EMBEDDING_SIZE = 32
EMBEDDING: tuple[str, ...] = tuple(f"e{index:02d}" for index in range(EMBEDDING_SIZE))
SCHEMA_VERSION = 1
BUSY_SECONDS = 5  # how long SQLite waits for another process's write
_OPEN_ATTEMPTS = 5  # several workers may make the same tables at the same moment
_LOCK = 20190107  # any number: PostgreSQL's advisory lock while the tables are made
_ID_CHUNK = 500  # ids in one query; SQLite takes 999 parameters in old builds

_FACTS = ("id", "time", "model_version", "model_digest", "engine", "probability", "label", "decision", "latency_ms")


class StoreError(BlastwatchError):
    """The database of predictions refused what was asked."""


class StoreUnavailable(StoreError):
    """The database of predictions cannot be reached or is busy; the same call may succeed later."""


class UnknownPredictions(DataError):
    """Labels came for predictions that are not stored; `ids` names them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        shown = ", ".join(self.ids[:10]) + (f" and {len(self.ids) - 10} more" if len(self.ids) > 10 else "")
        super().__init__(
            f"Expected ids of stored predictions but {shown} {'is' if len(self.ids) == 1 else 'are'} not among them. "
            "No label of this call was stored. Take the `id` of the service's answer."
        )


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """One answer of the service.

    time: with a time zone. embedding: float32 (32,), projected. concerns: from `monitoring.quality.concerns`.
    """

    id: str
    time: datetime
    model_version: str
    model_digest: str
    engine: str
    label: str
    probability: float
    decision: str
    latency_ms: float
    pixel_sha256: str
    statistics: dict[str, float]
    embedding: NDArray[np.float32]
    concerns: list[str] = field(default_factory=list)
    patient: str = ""
    site: str = ""


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


_metadata = sa.MetaData()
_schema = sa.Table("blastwatch_schema", _metadata, sa.Column("version", sa.Integer, primary_key=True))
_predictions = sa.Table(
    "predictions",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("time", UtcTime, nullable=False),
    sa.Column("model_version", sa.String(64), nullable=False),
    sa.Column("model_digest", sa.String(64), nullable=False),
    sa.Column("engine", sa.String(64), nullable=False),
    sa.Column("label", sa.String(16), nullable=False),
    sa.Column("probability", sa.Double, nullable=False),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("latency_ms", sa.Double, nullable=False),
    sa.Column("pixel_sha256", sa.String(64), nullable=False),
    sa.Column("concerns", sa.JSON, nullable=False),
    sa.Column("patient", sa.String(128), nullable=False),
    sa.Column("site", sa.String(128), nullable=False),
    *(sa.Column(name, sa.Double, nullable=False) for name in STATISTICS),
    sa.Column("embedding", sa.LargeBinary, nullable=False),  # float32, little-endian
)
_by_time = sa.Index("predictions_by_model_and_time", _predictions.c.model_digest, _predictions.c.time)
_labels = sa.Table(
    "labels",
    _metadata,
    sa.Column("id", sa.String(64), sa.ForeignKey("predictions.id"), primary_key=True),
    sa.Column("label", sa.String(16), nullable=False),
    sa.Column("time", UtcTime, nullable=False),
)


class Store:
    """An open database of predictions; make it with `open_store`. Safe to use from several threads."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, records: Sequence[PredictionRecord]) -> None:
        """Store predictions in one transaction; an id that is stored already is left as it is, so a retry is safe.

        Raises:
            StoreUnavailable: the database cannot be reached; nothing was stored.
            StoreError: it refused a record; nothing was stored.
        """
        rows = [_row(record) for record in records]
        if rows:
            statement = self._insert(_predictions).on_conflict_do_nothing(index_elements=["id"])
            with _translated(), self._engine.begin() as connection:
                connection.execute(statement, rows)

    def read(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        model_digest: str | None = None,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """Predictions with since <= time < until, oldest first; with `limit` the latest so many of them.

        Returns:
            The columns id, time (UTC), model_version, model_digest, engine, probability, label, decision, latency_ms,
            each of `STATISTICS` and the embedding e00 to e31.
        """
        wanted = [_predictions.c[name] for name in (*_FACTS, *STATISTICS, "embedding")]
        query = _between(sa.select(*wanted), since, until, model_digest)
        query = query.order_by(_predictions.c.time.desc(), _predictions.c.id.desc()).limit(limit)
        with _translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        frame = pd.DataFrame(
            [row[:-1] for row in reversed(rows)], columns=[*_FACTS, *STATISTICS]
        )  # the embedding is last
        data = b"".join(row[-1] for row in reversed(rows))
        embedding = np.frombuffer(data, dtype="<f4").reshape(len(rows), EMBEDDING_SIZE)
        frame[list(EMBEDDING)] = embedding.astype(np.float32)
        frame["time"] = pd.to_datetime(frame["time"], utc=True)
        return frame.astype(dict.fromkeys(("probability", "latency_ms", *STATISTICS), np.float64))

    def count(self) -> int:
        """Number of stored predictions."""
        with _translated(), self._engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.count()).select_from(_predictions)).scalar_one())

    def add_labels(self, labels: Iterable[tuple[str, str, datetime]]) -> int:
        """Store (prediction id, label, time) in one transaction; the same again changes nothing, another label counts.

        Returns:
            How many labels are new or changed.

        Raises:
            UnknownPredictions: naming the ids without a prediction; nothing was stored.
            DataError: for a label that is no class name, or one id with two labels.
        """
        wanted: dict[str, tuple[str, datetime]] = {}
        for id_, label, moment in labels:
            if label not in CLASS_NAMES:
                raise DataError(f"Expected the label {' or '.join(CLASS_NAMES)} for {id_} but got {label!r}.")
            if wanted.get(id_, (label,))[0] != label:
                raise DataError(f"Expected one label for {id_} but got both {wanted[id_][0]} and {label}.")
            wanted[id_] = (label, moment)
        with _translated(), self._engine.begin() as connection:
            known = self._present(connection, _predictions, sorted(wanted))
            unknown = [id_ for id_ in wanted if id_ not in known]
            if unknown:
                raise UnknownPredictions(unknown)
            before = self._present(connection, _labels, sorted(wanted))
            rows = [
                {"id": id_, "label": label, "time": moment}
                for id_, (label, moment) in wanted.items()
                if before.get(id_) != label
            ]
            if rows:
                insert = self._insert(_labels)
                update = {"label": insert.excluded.label, "time": insert.excluded.time}
                connection.execute(insert.on_conflict_do_update(index_elements=["id"], set_=update), rows)
        return len(rows)

    def labelled(
        self, *, since: datetime | None = None, until: datetime | None = None, model_digest: str | None = None
    ) -> pd.DataFrame:
        """Predictions that have a label: id, time, model_version, model_digest, probability, label, decision, truth."""
        names = ("id", "time", "model_version", "model_digest", "probability", "label", "decision")
        wanted = [*(_predictions.c[name] for name in names), _labels.c.label.label("truth")]
        query = sa.select(*wanted).join_from(_predictions, _labels, _predictions.c.id == _labels.c.id)
        query = _between(query, since, until, model_digest).order_by(_predictions.c.time, _predictions.c.id)
        with _translated(), self._engine.connect() as connection:
            frame = pd.DataFrame([tuple(row) for row in connection.execute(query)], columns=[*names, "truth"])
        frame["time"] = pd.to_datetime(frame["time"], utc=True)
        return frame

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _insert(self, table: sa.Table) -> Any:
        """An insert of this database's own dialect, for the sake of ON CONFLICT."""
        return (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(table)

    @staticmethod
    def _present(connection: sa.Connection, table: sa.Table, ids: Sequence[str]) -> dict[str, str]:
        """Those of the ids that the table has, with the row's label."""
        found: dict[str, str] = {}
        for start in range(0, len(ids), _ID_CHUNK):
            query = sa.select(table.c.id, table.c.label).where(table.c.id.in_(ids[start : start + _ID_CHUNK]))
            found.update((str(id_), str(label)) for id_, label in connection.execute(query))
        return found


def open_store(url: str) -> Store:
    """Open the database and make its tables where they are missing.

    Args:
        url: SQLAlchemy's form: `sqlite:///FILE` (made with its folder, in WAL mode), `postgresql://USER@HOST/NAME`.

    Raises:
        SettingsError: the URL names no database that is supported.
        StoreUnavailable: no connection.
        StoreError: the tables are of another version of Blastwatch.
    """
    engine = _engine(url)
    for attempt in range(1, _OPEN_ATTEMPTS + 1):
        try:
            _make_tables(engine)
            break
        except StoreUnavailable:
            if attempt == _OPEN_ATTEMPTS or engine.dialect.name != "sqlite":
                engine.dispose()
                raise
            clock.sleep(0.1 * attempt)
    return Store(engine)


def _engine(url: str) -> sa.Engine:
    hint = f"Expected BLASTWATCH_PREDICTIONS_URL as sqlite:///FILE or postgresql://USER@HOST/NAME but got {url!r}"
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsError(f"{hint}.") from error
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise SettingsError(f"{hint.replace(repr(url), repr(parsed.render_as_string(hide_password=True)))}.")
    try:
        if parsed.drivername == "postgresql+psycopg":
            return sa.create_engine(parsed, pool_pre_ping=True, connect_args={"connect_timeout": 5})
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_SECONDS})
    except (NoSuchModuleError, ImportError) as error:
        raise SettingsError(f"{hint}: its driver is not installed ({error}).") from error
    except OSError as error:
        raise StoreUnavailable(f"The folder of {parsed.database} cannot be made: {error}.") from error
    sa.event.listen(engine, "connect", _tune_sqlite)
    return engine


def _tune_sqlite(connection: Any, _record: object) -> None:
    """WAL lets the monitor read while the service writes; NORMAL may lose the last commits in a power cut, no more."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _make_tables(engine: sa.Engine) -> None:
    with _translated(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        for table in _metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
        connection.execute(CreateIndex(_by_time, if_not_exists=True))
        found = connection.execute(sa.select(_schema.c.version)).scalars().all()
        if not found:
            insert = (postgresql if engine.dialect.name == "postgresql" else sqlite).insert(_schema)
            connection.execute(insert.on_conflict_do_nothing(), [{"version": SCHEMA_VERSION}])
        elif list(found) != [SCHEMA_VERSION]:
            raise StoreError(
                f"Expected tables of version {SCHEMA_VERSION} in the database of predictions but found {list(found)}. "
                "Point BLASTWATCH_PREDICTIONS_URL at another database, or use the Blastwatch that made this one."
            )


def _row(record: PredictionRecord) -> dict[str, Any]:
    embedding = np.asarray(record.embedding, dtype="<f4")
    if embedding.shape != (EMBEDDING_SIZE,):
        raise ValueError(f"Expected an embedding of shape ({EMBEDDING_SIZE},) but got {embedding.shape}")
    names = ("id", "time", "model_version", "model_digest", "engine", "label", "decision", "pixel_sha256")
    row: dict[str, Any] = {name: getattr(record, name) for name in (*names, "concerns", "patient", "site")}
    row |= {name: float(record.statistics[name]) for name in STATISTICS}
    return row | {
        "probability": float(record.probability),
        "latency_ms": float(record.latency_ms),
        "embedding": embedding.tobytes(),
    }


def _between(
    query: sa.Select[Any], since: datetime | None, until: datetime | None, model_digest: str | None
) -> sa.Select[Any]:
    if since is not None:
        query = query.where(_predictions.c.time >= since)
    if until is not None:
        query = query.where(_predictions.c.time < until)
    if model_digest is not None:
        query = query.where(_predictions.c.model_digest == model_digest)
    return query


@contextmanager
def _translated() -> Iterator[None]:
    """Turn SQLAlchemy's errors into ours, without the statement and its parameters."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise StoreUnavailable(f"The database of predictions cannot be reached or is busy: {error.orig}.") from error
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        raise StoreError(f"The database of predictions refused: {reason}.") from error
