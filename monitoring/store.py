"""What was predicted, and what turned out to be true, in SQLite or PostgreSQL (SQLAlchemy Core).

The service stores and never reads, so pandas is loaded where something is read.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError
from monitoring.database import Opened, UtcTime, insert, open_database, translated
from monitoring.database import StoreError as StoreError
from monitoring.database import StoreUnavailable as StoreUnavailable
from monitoring.statistics import STATISTICS
from monitoring.tables import LATER as LATER
from monitoring.tables import METADATA as METADATA
from monitoring.tables import every_word as every_word

if TYPE_CHECKING:
    import pandas as pd

EMBEDDING_SIZE = 32
EMBEDDING: tuple[str, ...] = tuple(f"e{index:02d}" for index in range(EMBEDDING_SIZE))
_ID_CHUNK = 500  # ids in one query; SQLite takes 999 parameters in old builds

_FACTS = (
    "id", "time", "model_version", "model_digest", "engine", "probability", "label", "decision", "latency_ms",
    "patient", "pixel_sha256",
)  # fmt: skip
_REPEATS = 10  # times as many predictions are looked through for images that differ


class UnknownPredictions(DataError):
    """Labels came for predictions that are not stored; `ids` names them."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = tuple(ids)
        shown = ", ".join(self.ids[:10]) + (f" and {len(self.ids) - 10} more" if len(self.ids) > 10 else "")
        super().__init__(
            f"Expected ids of stored predictions but {shown} {'is' if len(self.ids) == 1 else 'are'} not among them. "
            "No label of this call was stored. Take the `id` of the service's answer, which is stored within a second."
        )


@dataclass(frozen=True, kw_only=True)
class PredictionRecord:
    """One answer of the service.

    time: with a time zone. embedding: float32 (32,), projected. concerns: from `monitoring.quality.concerns`. seen:
    whether the version learned from the image (`blastwatch.seen`), None where nobody knows.
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
    seen: bool | None = None


_predictions, _labels, _words, _images = (
    METADATA.tables[name] for name in ("predictions", "labels", "label_words", "images")
)


class Store(Opened):
    """An open database of predictions; make it with `open_store`."""

    def add(self, records: Sequence[PredictionRecord]) -> None:
        """Store predictions in one transaction; an id that is stored already is left as it is, so a retry is safe.

        Raises:
            StoreUnavailable: the database cannot be reached; nothing was stored.
            StoreError: it refused a record; nothing was stored.
        """
        rows = [_row(record) for record in records]
        if rows:
            statement = insert(self._engine, _predictions).on_conflict_do_nothing(index_elements=["id"])
            with translated(), self._engine.begin() as connection:
                connection.execute(statement, rows)

    def read(
        self,
        *,
        since: datetime | None = None,
        until: datetime | None = None,
        model_digest: str | None = None,
        limit: int | None = None,
        pictured: bool = False,
    ) -> "pd.DataFrame":
        """Predictions with since <= time < until, oldest first; with `limit` the latest so many of them.

        Args:
            pictured: only cells whose picture is kept.

        Returns:
            The columns id, time (UTC), model_version, model_digest, engine, probability, label, decision, latency_ms,
            patient (hashed, "" for none), pixel_sha256, each of `STATISTICS` and the embedding e00 to e31.
        """
        import pandas as pd

        wanted = [_predictions.c[name] for name in (*_FACTS, *STATISTICS, "embedding")]
        query = _between(sa.select(*wanted), since, until, model_digest)
        if pictured:
            query = query.join(_images, _images.c.id == _predictions.c.id)
        query = query.order_by(_predictions.c.time.desc(), _predictions.c.id.desc()).limit(limit)
        with translated(), self._engine.connect() as connection:
            rows = connection.execute(query).all()
        frame = pd.DataFrame(
            [row[:-1] for row in reversed(rows)], columns=[*_FACTS, *STATISTICS]
        )  # the embedding is last
        data = b"".join(row[-1] for row in reversed(rows))
        embedding = np.frombuffer(data, dtype="<f4").reshape(len(rows), EMBEDDING_SIZE)
        frame[list(EMBEDDING)] = embedding.astype(np.float32)
        frame["time"] = pd.to_datetime(frame["time"], utc=True)
        return frame.astype(dict.fromkeys(("probability", "latency_ms", *STATISTICS), np.float64))

    def count(self, *, since: datetime | None = None, model_digest: str | None = None) -> int:
        """Number of stored predictions, all or those since a moment, of all versions or of one."""
        query = _between(sa.select(sa.func.count()).select_from(_predictions), since, None, model_digest)
        with translated(), self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def newest(self, *, model_digest: str) -> datetime | None:
        """Time (UTC) of the newest prediction of a version; None for none."""
        query = sa.select(sa.func.max(_predictions.c.time, type_=UtcTime))
        with translated(), self._engine.connect() as connection:
            moment: datetime | None = connection.execute(
                query.where(_predictions.c.model_digest == model_digest)
            ).scalar_one()
        return moment

    def newest_of_others(self, digests: Collection[str], *, since: datetime | None) -> str | None:
        """Number of the version of the newest prediction since a moment that none of these versions made."""
        key = (_predictions.c.model_digest, _predictions.c.time)  # what the index holds: no row of the table is read
        others = _between(sa.select(*key), since, None, None).where(_predictions.c.model_digest.not_in(digests))
        newest = others.order_by(_predictions.c.time.desc()).limit(1).subquery()
        query = sa.select(_predictions.c.model_version).where(sa.tuple_(*key) == sa.select(newest).scalar_subquery())
        with translated(), self._engine.connect() as connection:
            return connection.execute(query.limit(1)).scalar_one_or_none()

    def add_labels(self, labels: Iterable[tuple[str, str, datetime]]) -> int:
        """Store (prediction id, label, time) in one transaction; the same again changes nothing, another label counts.

        What comes last is the last word, also where its time is not: then it gets the time just after the one before.

        Returns:
            How many labels are new or changed.

        Raises:
            UnknownPredictions: naming the ids without a prediction; nothing was stored.
            DataError: for a label that is no class name, or one id with two labels.
        """
        wanted: dict[str, tuple[str, datetime]] = {}
        for id_, label, moment in labels:
            if label not in CLASS_NAMES:
                raise DataError(f"Expected the label {' or '.join(CLASS_NAMES)} for {id_[:64]} but got {label[:64]!r}.")
            if wanted.get(id_, (label,))[0] != label:
                raise DataError(f"Expected one label for {id_} but got both {wanted[id_][0]} and {label}.")
            wanted[id_] = (label, moment)
        with translated(), self._engine.begin() as connection:
            known = self._held(connection, sorted(wanted))
            unknown = [id_ for id_ in wanted if id_ not in known]
            if unknown:
                raise UnknownPredictions(unknown)
            before = self._present(connection, _labels, sorted(wanted))
            after = self._after_words(connection, sorted(before))
            # In the order of their ids, as all who write labels: else two of them could wait for each other.
            rows = [
                {"id": id_, "label": label, "time": max(moment, after.get(id_, moment))}
                for id_, (label, moment) in sorted(wanted.items())
                if before.get(id_) != label
            ]
            if rows:
                for table, key in ((_labels, ["id"]), (_words, ["id", "time"])):
                    statement = insert(self._engine, table)
                    update = {name: statement.excluded[name] for name in ("label", "time")}
                    connection.execute(statement.on_conflict_do_update(index_elements=key, set_=update), rows)
        return len(rows)

    def labelled(
        self, *, since: datetime | None = None, until: datetime | None = None, model_digest: str | None = None
    ) -> "pd.DataFrame":
        """Predictions that have a label: id, time, model_version, model_digest, probability, label, decision, truth."""
        import pandas as pd

        names = ("id", "time", "model_version", "model_digest", "probability", "label", "decision")
        wanted = [*(_predictions.c[name] for name in names), _labels.c.label.label("truth")]
        query = sa.select(*wanted).join_from(_predictions, _labels, _predictions.c.id == _labels.c.id)
        query = _between(query, since, until, model_digest).order_by(_predictions.c.time, _predictions.c.id)
        with translated(), self._engine.connect() as connection:
            frame = pd.DataFrame([tuple(row) for row in connection.execute(query)], columns=[*names, "truth"])
        frame["time"] = pd.to_datetime(frame["time"], utc=True)
        return frame

    def agreement(self, *, model_digest: str) -> tuple[int, int]:
        """How many predictions of a version have a label, and of how many of them it is the one that was given."""
        right = sa.func.sum(sa.case((_labels.c.label == _predictions.c.label, 1), else_=0))
        query = sa.select(sa.func.count(), sa.func.coalesce(right, 0))
        query = query.join_from(_labels, _predictions, _predictions.c.id == _labels.c.id)
        with translated(), self._engine.connect() as connection:
            count, agreeing = connection.execute(query.where(_predictions.c.model_digest == model_digest)).one()
        return int(count), int(agreeing)

    def answers(
        self,
        *,
        model_digest: str,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        labelled: bool = False,
    ) -> "pd.DataFrame":
        """What was answered and what is known of the truth, oldest first; with `limit` the latest so many.

        Args:
            labelled: only predictions that have a label.

        Returns:
            The columns id, time (UTC), patient (hashed, "" for none), pixel_sha256, probability (of a blast, float64),
            label (said), seen (bool: the version is known to have learned from the image), truth (None where no label
            came).
        """
        import pandas as pd

        names = ("id", "time", "patient", "pixel_sha256", "probability", "label", "seen")
        wanted = [*(_predictions.c[name] for name in names), _labels.c.label.label("truth")]
        joined = _predictions.join(_labels, _predictions.c.id == _labels.c.id, isouter=not labelled)
        query = _between(sa.select(*wanted).select_from(joined), since, until, model_digest)
        query = query.order_by(_predictions.c.time.desc(), _predictions.c.id.desc()).limit(limit)
        with translated(), self._engine.connect() as connection:
            rows = [tuple(row) for row in connection.execute(query)]
        frame = pd.DataFrame(rows[::-1], columns=[*names, "truth"])
        frame["time"] = pd.to_datetime(frame["time"], utc=True)
        frame["truth"] = pd.Series([row[-1] for row in rows[::-1]], dtype=object)  # pandas would make NaN of None
        frame["seen"] = frame["seen"].eq(True)  # of an older Blastwatch's rows nobody knows
        return frame.astype({"probability": np.float64})

    def patients(
        self, *, model_digest: str, since: datetime | None = None, until: datetime | None = None, most: int
    ) -> dict[str, datetime]:
        """The hashed keys of the patients whom a version answered, the latest so many by the time of their first cell.

        Args:
            since, until: only cells with since <= time < until.

        Returns:
            Time (UTC) of the first of these cells by key, oldest first.
        """
        first = sa.func.min(_predictions.c.time, type_=UtcTime).label("first")
        query = _between(sa.select(_predictions.c.patient, first), since, until, model_digest)
        query = query.where(_predictions.c.patient != "").group_by(_predictions.c.patient)
        query = query.order_by(first.desc(), _predictions.c.patient).limit(most)
        with translated(), self._engine.connect() as connection:
            return {str(patient): moment for patient, moment in reversed(connection.execute(query).all())}

    def first_cells(self, patients: Sequence[str], *, model_digest: str) -> dict[str, datetime]:
        """Time (UTC) of the first of all cells of each of these patients (hashed keys) that a version answered."""
        first = sa.func.min(_predictions.c.time, type_=UtcTime)
        query = sa.select(_predictions.c.patient, first).where(_predictions.c.model_digest == model_digest)
        query = query.where(_predictions.c.patient.in_(patients)).group_by(_predictions.c.patient)
        with translated(), self._engine.connect() as connection:
            return {str(patient): moment for patient, moment in connection.execute(query)}

    def patient_cells(
        self, patient: str, *, model_digest: str, since: datetime, until: datetime, most: int
    ) -> "pd.DataFrame":
        """What a version said of a patient's first cells with since <= time < until, each image once, among the first
        `_REPEATS` times so many: probability and `STATISTICS`."""
        import pandas as pd

        names = ("pixel_sha256", "probability", *STATISTICS)
        query = _between(sa.select(*(_predictions.c[name] for name in names)), since, until, model_digest)
        query = query.where(_predictions.c.patient == patient)
        query = query.order_by(_predictions.c.time, _predictions.c.id).limit(_REPEATS * most)
        with translated(), self._engine.connect() as connection:
            rows = [tuple(row) for row in connection.execute(query)]
        cells = pd.DataFrame(rows, columns=list(names)).drop_duplicates("pixel_sha256").head(most)
        return cells[[*names[1:]]].astype(np.float64)

    def _held(self, connection: sa.Connection, ids: Sequence[str]) -> set[str]:
        """Those of the ids, which are sorted, that are stored. Who labels or deletes them too waits until the end."""
        if self._engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        found: set[str] = set()
        for start in range(0, len(ids), _ID_CHUNK):
            query = sa.select(_predictions.c.id).where(_predictions.c.id.in_(ids[start : start + _ID_CHUNK]))
            query = query.order_by(_predictions.c.id).with_for_update(key_share=True)
            found.update(connection.execute(query).scalars())
        return found

    @staticmethod
    def _after_words(connection: sa.Connection, ids: Sequence[str]) -> dict[str, datetime]:
        """The first moment (UTC) after all words on the labels of these ids."""
        found: dict[str, datetime] = {}
        for table in (_labels, _words):
            for start in range(0, len(ids), _ID_CHUNK):
                query = sa.select(table.c.id, sa.func.max(table.c.time, type_=UtcTime)).group_by(table.c.id)
                query = query.where(table.c.id.in_(ids[start : start + _ID_CHUNK]))
                for id_, moment in connection.execute(query):
                    after = moment + timedelta(microseconds=1)
                    found[id_] = max(after, found.get(id_, after))
        return found

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
    return Store(open_database(url, METADATA))


def _row(record: PredictionRecord) -> dict[str, Any]:
    embedding = np.asarray(record.embedding, dtype="<f4")
    if embedding.shape != (EMBEDDING_SIZE,):
        raise ValueError(f"Expected an embedding of shape ({EMBEDDING_SIZE},) but got {embedding.shape}")
    names = ("id", "time", "model_version", "model_digest", "engine", "label", "decision", "pixel_sha256")
    row: dict[str, Any] = {name: getattr(record, name) for name in (*names, "concerns", "patient", "site", "seen")}
    row |= {name: float(record.statistics[name]) for name in STATISTICS}
    return row | {
        "probability": float(record.probability),
        "latency_ms": float(record.latency_ms),
        "embedding": embedding.tobytes(),
    }


def record_of(row: sa.RowMapping) -> PredictionRecord:
    """The record that a row of `predictions` was made of."""
    values = {name: row[name] for name in (*_FACTS, "concerns", "site", "seen")}
    return PredictionRecord(
        **values,
        statistics={name: float("nan") if row[name] is None else row[name] for name in STATISTICS},
        embedding=np.frombuffer(row["embedding"], dtype="<f4"),
    )


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
