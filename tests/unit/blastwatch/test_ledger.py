"""Where the history lies, by itself."""

from contextlib import closing
from types import SimpleNamespace

import pytest

from blastwatch.errors import HistoryBroken
from blastwatch.ledger import Ledger


def test_two_that_make_the_file_at_once_both_can(tmp_path, monkeypatch):
    """A service and a monitor that start together on a new home: the second looked before the first had made it."""
    url = f"sqlite:///{tmp_path / 'history.db'}"
    with closing(Ledger(url, "blastwatch")) as first, closing(Ledger(url, "blastwatch")) as second:
        assert first.rows() == []
        monkeypatch.setattr("blastwatch.ledger.sa.inspect", lambda _: SimpleNamespace(has_table=lambda _: False))
        assert second.rows() == []


def test_what_is_no_entry_in_the_database_is_said(tmp_path):
    with closing(Ledger(f"sqlite:///{tmp_path / 'history.db'}", "blastwatch")) as ledger:
        assert ledger.rows() == []
        with ledger._engine.begin() as connection:
            connection.exec_driver_sql("insert into history values ('blastwatch', 1, x'00', '[]', '', '')")
        with pytest.raises(HistoryBroken, match="Expected a number and four texts as entry 1 of the history"):
            ledger.rows()
