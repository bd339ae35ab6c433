"""`blastwatch labels add`: where it looks, and the ids that it knows."""

import pytest
from click.testing import CliRunner

from blastwatch.errors import DataError
from blastwatch.settings import load
from monitoring.label_commands import labels
from monitoring.store import open_store
from tests.cohorts import record


@pytest.fixture
def add(tmp_path, monkeypatch):
    """Gives a label to an id, as a person does by a file."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))

    def call(id_):
        (tmp_path / "labels.csv").write_text(f"id,label\n{id_},hem\n")
        return CliRunner().invoke(labels, ["add", str(tmp_path / "labels.csv")])

    return call


def test_another_home_is_named_and_nothing_is_made_there(add, tmp_path):
    found = add("abc")
    assert isinstance(found.exception, DataError)
    assert f"{tmp_path / 'home' / 'predictions.db'} (BLASTWATCH_HOME" in str(found.exception)
    assert not (tmp_path / "home").exists()


def test_an_address_with_options_is_that_of_the_file_before_them(add, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_PREDICTIONS_URL", f"sqlite:///{tmp_path}/stored.db?timeout=30")
    assert "no such database" in str(add("0af3").exception)
    with open_store(load().predictions_url) as store:
        store.add([record("0af3")])
    assert add("0af3").exit_code == 0


def test_ids_that_are_not_stored_are_said_with_where_they_were_looked_for(add, tmp_path):
    with open_store(load().predictions_url):
        pass
    found = add("abc")
    assert isinstance(found.exception, DataError) and "abc is not among them" in str(found.exception)
    assert f"looked for in sqlite:///{tmp_path / 'home' / 'predictions.db'}" in str(found.exception)


def test_an_id_in_capitals_is_the_same(add):
    """As a spreadsheet or a person may write it."""
    with open_store(load().predictions_url) as store:
        store.add([record("0af3")])
    assert add("0AF3").stdout == "1 labels, 1 of them new or changed.\n"
