"""Alembic runs this; `monitoring.revisions` hands it the open connection."""

from alembic import context

from monitoring.revisions import REVISION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=REVISION_TABLE)
context.run_migrations()
