"""What was deleted counts pictures too. Whoever deletes first makes the table, so it may be missing, or new already."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "0003", "0002"


def upgrade() -> None:
    """Add the column."""
    found = sa.inspect(op.get_bind())
    if found.has_table("deletions") and "images" not in {column["name"] for column in found.get_columns("deletions")}:
        op.add_column("deletions", sa.Column("images", sa.Integer, nullable=True))
