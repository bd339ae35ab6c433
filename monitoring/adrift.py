"""Rows that lie in the database of predictions without a prediction of theirs, and since when: the table `adrift`.

A cell of the shadow, or a picture, is there before its prediction where an outage of the database ends: the prediction
comes from the disk with all that waited. It stays without one where the prediction was forgotten while the row was on
its way, or dropped. Which of the two it is only time tells, and not the row's own, which is that of the answer, before
the outage. So whoever retains notes what has none, and what was noted long enough ago, and has none still, goes.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from monitoring.database import UtcTime, insert, translated
from monitoring.store import METADATA

NOTES = sa.MetaData()
_notes = sa.Table(
    "adrift",
    NOTES,
    sa.Column("what", sa.String(16), primary_key=True),  # the table in which the row lies
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("since", UtcTime, nullable=False),  # when it was first seen so
)
_predictions = METADATA.tables["predictions"]


class Adrift:
    """The notes on one of the tables, `images` or `shadow`.

    Args:
        batch: ids in one statement.
        step: rows of the table in one query.
    """

    def __init__(self, engine: sa.Engine, table: sa.Table, *, batch: int, step: int) -> None:
        self._engine, self._table, self._batch, self._step = engine, table, batch, step
        self._looked_at = ""  # the last id that `note` looked at
        self._mine = _notes.c.what == table.name

    def note(self, at: datetime, *, most: int | None) -> None:
        """Note the rows that have no prediction at a moment, and strike out what was noted and has one, or is gone.

        Args:
            most: so many rows of the table are looked at, by the order of their ids; the next call goes on with those
                that follow. None: all of them.
        """
        there = sa.select(self._table.c.id).where(self._table.c.id == _notes.c.id).exists()
        with translated(), self._engine.begin() as connection:
            connection.execute(sa.delete(_notes).where(self._mine, _predicted(_notes) | ~there))
            # By a clock that ran ahead: it would keep its row until that time comes.
            connection.execute(sa.update(_notes).where(self._mine, _notes.c.since > at).values(since=at))
        statement = insert(self._engine, _notes).on_conflict_do_nothing()
        for ids in self._without_prediction(most):
            with translated(), self._engine.begin() as connection:
                connection.execute(statement, [{"what": self._table.name, "id": id_, "since": at} for id_ in ids])

    def due(self, until: datetime, *, most: int | None) -> Iterator[list[str]]:
        """Ids of at most so many rows that were noted up to a moment, a batch at a time."""
        query = sa.select(_notes.c.id).where(self._mine, _notes.c.since <= until)
        query = query.order_by(_notes.c.since, _notes.c.id).limit(most)
        with translated(), self._engine.connect() as connection:
            ids = list(connection.execute(query).scalars())
        return self._batches(ids)

    def delete(self, connection: sa.Connection, ids: list[str]) -> int:
        """Delete those of the rows that have no prediction now, and the notes on them; returns how many."""
        gone = sa.delete(self._table).where(self._table.c.id.in_(ids), ~_predicted(self._table))
        done: sa.CursorResult[Any] = connection.execute(gone)
        connection.execute(sa.delete(_notes).where(self._mine, _notes.c.id.in_(ids)))
        return done.rowcount

    def _without_prediction(self, most: int | None) -> Iterator[list[str]]:
        """Ids of rows that have no prediction, a batch at a time. They are looked for while nothing is locked."""
        table, step, ended = self._table, most or self._step, False
        while not ended:
            after = table.c.id > self._looked_at
            some = sa.select(table.c.id).where(after).order_by(table.c.id).limit(step).subquery()
            with translated(), self._engine.connect() as connection:
                count, last = connection.execute(sa.select(sa.func.count(), sa.func.max(some.c.id))).one()
                these = (after & (table.c.id <= last)) if count else sa.false()
                ids = list(connection.execute(sa.select(table.c.id).where(these, ~_predicted(table))).scalars())
            self._looked_at = last if count == step else ""
            yield from self._batches(ids)
            ended = most is not None or count < step

    def _batches(self, ids: list[str]) -> Iterator[list[str]]:
        return (ids[start : start + self._batch] for start in range(0, len(ids), self._batch))


def _predicted(table: sa.Table) -> sa.ColumnElement[bool]:
    return sa.select(_predictions.c.id).where(_predictions.c.id == table.c.id).exists()
