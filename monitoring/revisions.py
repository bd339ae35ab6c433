"""Tables of an older Blastwatch, brought up to date by Alembic when the database is opened.

A revision only adds what an older Blastwatch does not miss, so that services of two versions share a database while
one after the other is renewed. What it would miss needs another `monitoring.database.SCHEMA_VERSION`.
"""

import threading
from pathlib import Path

import sqlalchemy as sa

REVISION_TABLE = "blastwatch_revision"
"""Beside MLflow's own `alembic_version`: both may live in one database."""

NEWEST = "0004"
"""Of `migrations/versions`."""

_table = sa.Table(REVISION_TABLE, sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))


# Alembic has one context for the process: two databases that threads open at once would take it from each other.
_ONE_AT_A_TIME = threading.Lock()


def bring_up(connection: sa.Connection, *, new: bool) -> None:
    """Let the tables have every column that this Blastwatch writes.

    Args:
        connection: in a transaction, alone at this database's tables.
        new: the tables were made just now.
    """
    if not new and _is_newest(connection):
        return
    # Loaded here: it takes a third of a second, and nearly every start finds nothing to do.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    config.attributes["connection"] = connection
    with _ONE_AT_A_TIME:
        if new:
            command.stamp(config, NEWEST)
        else:
            command.upgrade(config, NEWEST)


def _is_newest(connection: sa.Connection) -> bool:
    """Also where a newer Blastwatch was here: what it added is not missed."""
    if not sa.inspect(connection).has_table(REVISION_TABLE):
        return False
    return str(connection.execute(sa.select(_table.c.version_num)).scalar_one()) >= NEWEST
