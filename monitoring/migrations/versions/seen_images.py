"""Predictions keep whether their version learned from the image. Of rows from before nobody knows."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0004", "0003"


def upgrade() -> None:
    """Add the column."""
    op.add_column("predictions", sa.Column("seen", sa.Boolean, nullable=True))
