"""Predictions keep the noise of the chroma. Rows from before have none: their images are gone."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0002", "0001"


def upgrade() -> None:
    """Add the column."""
    op.add_column("predictions", sa.Column("chroma_noise", sa.Double, nullable=True))
