"""Alembic runs this; `monitoring.revisions` hands it the open connection. Imported by others it does nothing."""

from alembic import context

from monitoring.revisions import REVISION_TABLE

if hasattr(context, "config"):  # only while Alembic runs
    context.configure(connection=context.config.attributes["connection"], version_table=REVISION_TABLE)
    context.run_migrations()
