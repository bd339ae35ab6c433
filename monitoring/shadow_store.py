"""What the challenger said of cells that the champion answered: the table `shadow`, in the database of predictions.

One row a cell, under the id of the prediction that the caller got. Beside it `shadow_entries`, what outlives the cells
of a comparison (`monitoring.shadow_entries`). Both came later than the others; they are made where they are missing,
and nothing that was there is changed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa

from monitoring.database import Opened, UtcTime, insert, open_database, translated
from monitoring.store import METADATA, every_word

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class ShadowRecord:
    """One cell that both versions read. Probabilities are calibrated and of a blast; `patient` is hashed or empty."""

    id: str
    time: datetime
    champion_version: str
    champion_digest: str
    challenger_version: str
    challenger_digest: str
    champion_probability: float
    challenger_probability: float
    champion_label: str
    challenger_label: str
    champion_decision: str
    challenger_decision: str
    patient: str = ""


ENTRY = ("unit", "key", "enters", "difference")
COLUMNS = (*(field.name for field in fields(ShadowRecord)), "image")
SAME = ["patient", "image"]
"""What two cells of one image of a patient share."""

_labels, _predictions = METADATA.tables["labels"], METADATA.tables["predictions"]
SHADOW = sa.MetaData()
_shadow = sa.Table(
    "shadow",
    SHADOW,
    # No foreign key: prediction and shadow are written by two threads, and either may come first.
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("time", UtcTime, nullable=False),
    *(
        sa.Column(f"{who}_{what}", kind, nullable=False)
        for who in ("champion", "challenger")
        for what, kind in (
            ("version", sa.String(64)),
            ("digest", sa.String(64)),
            ("probability", sa.Double),
            ("label", sa.String(16)),
            ("decision", sa.String(16)),
        )
    ),
    sa.Column("patient", sa.String(128), nullable=False),
)
sa.Index("shadow_by_pair", _shadow.c.champion_digest, _shadow.c.challenger_digest, _shadow.c.time)
_entries = sa.Table(
    "shadow_entries",
    SHADOW,
    sa.Column("champion_digest", sa.String(64), primary_key=True),
    sa.Column("challenger_digest", sa.String(64), primary_key=True),
    sa.Column("unit", sa.String(16), primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("enters", UtcTime, nullable=False),
    sa.Column("difference", sa.Double, nullable=False),
)
# A shadow may be there before its prediction; a label never is.
_predicted = _shadow.join(_predictions, _predictions.c.id == _shadow.c.id, isouter=True)
_image = sa.func.coalesce(_predictions.c.pixel_sha256, _shadow.c.id).label("image")


class ShadowStore(Opened):
    """The open table; make it with `open_shadow_store`."""

    def add(self, records: Sequence[ShadowRecord]) -> None:
        """Store cells in one transaction; an id that is stored already is left as it is, so a retry is safe.

        Raises:
            StoreUnavailable: the database cannot be reached; nothing was stored.
            StoreError: it refused a record; nothing was stored.
        """
        if records:
            statement = insert(self._engine, _shadow).on_conflict_do_nothing(index_elements=["id"])
            with translated(), self._engine.begin() as connection:
                connection.execute(statement, [asdict(record) for record in records])

    def read(
        self, *, champion: str, challenger: str, until: datetime | None = None, labelled: bool = False
    ) -> "pd.DataFrame":
        """Cells of one pair of package digests, oldest first: `COLUMNS`, `time` in UTC. `image` is the digest of the
        pixels, and the cell's id where its prediction is not there.

        Args:
            until: only cells read before this.
            labelled: only cells that have a label, whenever it came.
        """
        source = _predicted.join(_labels, _labels.c.id == _shadow.c.id) if labelled else _predicted
        query = sa.select(*(_shadow.c[name] for name in COLUMNS[:-1]), _image).select_from(source)
        query = query.where(self._pair(champion, challenger))
        if until is not None:
            query = query.where(_shadow.c.time < until)
        return self._frame(query.order_by(_shadow.c.time, _shadow.c.id), COLUMNS)

    def counts(self, *, champion: str, challenger: str, until: datetime) -> list[sa.RowMapping]:
        """Cells of a pair that were read before a moment, each image of a patient where it first came, counted by the
        database: a row for each combination of what the two said.

        Returns:
            champion_label, challenger_label, champion_decision, challenger_decision; cells, and keyed, how many of them
            have a patient; since and until (UTC); and of the challenger's probability less the champion's the sum
            (difference), the sum without signs (distance) and the largest without its sign (largest).
        """
        said = [_shadow.c[f"{who}_{what}"] for what in ("label", "decision") for who in ("champion", "challenger")]
        difference = _shadow.c.challenger_probability - _shadow.c.champion_probability
        found = {
            "cells": sa.func.count(),
            "keyed": sa.func.sum(sa.case((_shadow.c.patient != "", 1), else_=0)),
            "since": sa.func.min(_shadow.c.time, type_=UtcTime),
            "until": sa.func.max(_shadow.c.time, type_=UtcTime),
            "difference": sa.func.sum(difference),
            "distance": sa.func.sum(sa.func.abs(difference)),
            "largest": sa.func.max(sa.func.abs(difference)),
        }
        which = self._pair(champion, challenger) & (_shadow.c.time < until)
        # Those that came again are few: to look for them alone takes a third of what it takes to number all rows whole.
        place = sa.func.row_number().over(
            partition_by=[_shadow.c.patient, _image], order_by=[_shadow.c.time, _shadow.c.id]
        )
        each = sa.select(_shadow.c.id, place.label("place")).select_from(_predicted).where(which).subquery()
        again = sa.select(each.c.id).where(each.c.place > 1).subquery()
        query = sa.select(*said, *(value.label(name) for name, value in found.items())).group_by(*said)
        # Each database takes minutes over the form that the other one answers in seconds.
        if self._engine.dialect.name == "postgresql":
            query = query.select_from(_shadow.outerjoin(again, again.c.id == _shadow.c.id)).where(again.c.id.is_(None))
        else:
            query = query.where(_shadow.c.id.not_in(sa.select(again.c.id)))
        with translated(), self._engine.connect() as connection:
            return list(connection.execute(query.where(which)).mappings())

    def count(self, *, champion: str, challenger: str, until: datetime) -> int:
        """How many cells of a pair were read before a moment, those of an image that came before among them."""
        query = sa.select(sa.func.count()).where(self._pair(champion, challenger), _shadow.c.time < until)
        with translated(), self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def keyed(self, *, champion: str, challenger: str, until: datetime) -> bool:
        """Whether any cell of a pair that was read before a moment has a patient."""
        query = sa.select(_shadow.c.id).where(self._pair(champion, challenger), _shadow.c.time < until)
        with translated(), self._engine.connect() as connection:
            return connection.execute(query.where(_shadow.c.patient != "").limit(1)).first() is not None

    def words(self, *, champion: str, challenger: str, until: datetime | None = None) -> "pd.DataFrame":
        """Every word on the label of a cell of the pair, oldest first: id, time, label. A correction is one more."""
        word = every_word().subquery()
        query = sa.select(word.c.id, word.c.time, word.c.label).join(_shadow, _shadow.c.id == word.c.id)
        query = query.where(self._pair(champion, challenger))
        if until is not None:
            query = query.where(word.c.time < until)
        return self._frame(query.order_by(word.c.time, word.c.id), ("id", "time", "label"))

    def entries(self, *, champion: str, challenger: str) -> "pd.DataFrame":
        """What was written down of a pair: unit, key, enters (UTC) and difference (float64) of each."""
        query = sa.select(*(_entries.c[name] for name in ENTRY)).where(self._pair(champion, challenger, _entries))
        return self._frame(query, ENTRY, "enters").astype({"difference": float})

    def keep(self, entered: "pd.DataFrame", *, unit: str, champion: str, challenger: str) -> None:
        """Write entries down; who stands there already is left as they are.

        Args:
            entered: key, enters, difference.
        """
        shared = {"champion_digest": champion, "challenger_digest": challenger, "unit": unit}
        columns = (entered[name].tolist() for name in ENTRY[1:])
        rows = [shared | dict(zip(ENTRY[1:], values, strict=True)) for values in zip(*columns, strict=True)]
        if rows:
            with translated(), self._engine.begin() as connection:
                connection.execute(insert(self._engine, _entries).on_conflict_do_nothing(), rows)

    @staticmethod
    def _pair(champion: str, challenger: str, table: sa.Table = _shadow) -> sa.ColumnElement[bool]:
        return sa.and_(table.c.champion_digest == champion, table.c.challenger_digest == challenger)

    def _frame(
        self, query: sa.Select[tuple[object, ...]], columns: tuple[str, ...], moment: str = "time"
    ) -> "pd.DataFrame":
        import pandas as pd

        with translated(), self._engine.connect() as connection:
            frame = pd.DataFrame([tuple(row) for row in connection.execute(query)], columns=list(columns))
        frame[moment] = pd.to_datetime(frame[moment], utc=True)
        return frame


def open_shadow_store(url: str) -> ShadowStore:
    """Open the database of predictions and make its tables where they are missing; raises as `open_store`."""
    return ShadowStore(open_database(url, METADATA, SHADOW))
