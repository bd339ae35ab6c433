"""The tables as they were before they had revisions. Whoever opens a new database makes the newest ones at once."""

revision, down_revision = "0001", None


def upgrade() -> None:
    """Nothing: they are there."""
