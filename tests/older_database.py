"""The database of predictions as it was before its tables had revisions."""

import sqlalchemy as sa

from blastwatch import database
from monitoring.retention import open_retention
from monitoring.revisions import REVISION_TABLE
from monitoring.store import LATER, StoreUnavailable, open_store


def make_old(url, records, *, deleted=False):
    """Make one with these predictions, which lack what came later; `deleted`: three were deleted before."""
    with open_store(url) as store:
        store.add(records)
    if deleted:
        open_retention(url).close()
    engine = database.create(url, "url", unavailable=StoreUnavailable)
    with engine.begin() as connection:
        for name in (*LATER, "seen"):
            connection.execute(sa.text(f"ALTER TABLE predictions DROP COLUMN {name}"))
        for name in (REVISION_TABLE, "images"):
            connection.execute(sa.text(f"DROP TABLE {name}"))
        if deleted:
            connection.execute(sa.text("ALTER TABLE deletions DROP COLUMN images"))
            row = "(time, reason, predictions, labels, shadow) VALUES ('2026-11-01 00:00:00.000000', 'age', 3, 0, 0)"
            connection.execute(sa.text(f"INSERT INTO deletions {row}"))
    engine.dispose()
