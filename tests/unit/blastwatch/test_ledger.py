"""Where the history lies, by itself."""

from contextlib import closing
from types import SimpleNamespace

from blastwatch.ledger import Ledger


def test_two_that_make_the_file_at_once_both_can(tmp_path, monkeypatch):
    """A service and a monitor that start together on a new home: the second looked before the first had made it."""
    url = f"sqlite:///{tmp_path / 'history.db'}"
    with closing(Ledger(url, "blastwatch")) as first, closing(Ledger(url, "blastwatch")) as second:
        assert first.rows() == []
        monkeypatch.setattr("blastwatch.ledger.sa.inspect", lambda _: SimpleNamespace(has_table=lambda _: False))
        assert second.rows() == []
