"""Pictures of answered cells: the table `images`, in the database of predictions, one row under a prediction's id.

A picture is the image that was sent, decoded and written anew as PNG: the pixels and nothing else of the file, so no
name, place or date that a camera or a scanner put into it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from monitoring.database import Opened, insert, open_database, translated
from monitoring.store import METADATA

_CHUNK = 100  # pictures in one query: some ten megabytes

_images = METADATA.tables["images"]


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """One picture. id, time and patient (hashed or empty) are those of its prediction; reason: why it is kept."""

    id: str
    time: datetime
    reason: str
    patient: str
    png: bytes


class ImageStore(Opened):
    """The open table; make it with `open_image_store`."""

    def add(self, records: Sequence[ImageRecord]) -> None:
        """Store pictures in one transaction; an id that is stored already is left as it is, so a retry is safe.

        Raises:
            StoreUnavailable: the database cannot be reached; nothing was stored.
            StoreError: it refused a record; nothing was stored.
        """
        names = ("id", "time", "reason", "patient", "png")
        rows = [{name: getattr(record, name) for name in names} | {"bytes": len(record.png)} for record in records]
        if rows:
            statement = insert(self._engine, _images).on_conflict_do_nothing(index_elements=["id"])
            with translated(), self._engine.begin() as connection:
                connection.execute(statement, rows)

    def pictures(self, ids: Sequence[str]) -> dict[str, bytes]:
        """PNG files by id, of those of the ids whose picture is kept."""
        found: dict[str, bytes] = {}
        for start in range(0, len(ids), _CHUNK):
            query = sa.select(_images.c.id, _images.c.png).where(_images.c.id.in_(ids[start : start + _CHUNK]))
            with translated(), self._engine.connect() as connection:
                found.update((str(id_), bytes(png)) for id_, png in connection.execute(query))
        return found


def open_image_store(url: str) -> ImageStore:
    """Open the database of predictions and make its tables where they are missing; raises as `open_store`."""
    return ImageStore(open_database(url, METADATA))
