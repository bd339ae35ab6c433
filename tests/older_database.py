"""The database of predictions as it was before its tables had revisions."""

import sqlalchemy as sa

from blastwatch import database
from monitoring.revisions import REVISION_TABLE
from monitoring.store import LATER, StoreUnavailable, open_store


def make_old(url, records):
    """Make one with these predictions, which lack what came later."""
    with open_store(url) as store:
        store.add(records)
    engine = database.create(url, "url", unavailable=StoreUnavailable)
    with engine.begin() as connection:
        for name in LATER:
            connection.execute(sa.text(f"ALTER TABLE predictions DROP COLUMN {name}"))
        connection.execute(sa.text(f"DROP TABLE {REVISION_TABLE}"))
    engine.dispose()
