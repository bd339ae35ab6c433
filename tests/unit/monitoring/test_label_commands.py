"""`blastwatch labels add`: where it looks, and the ids that it knows."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from blastwatch.errors import DataError, SettingsError
from blastwatch.settings import load
from monitoring.label_commands import labels
from monitoring.store import open_store
from monitoring.waiting import open_waiting
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


def test_an_address_that_is_none_is_said(add, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_PREDICTIONS_URL", "sqlite:stored.db")
    found = add("0af3").exception
    assert isinstance(found, SettingsError) and "BLASTWATCH_PREDICTIONS_URL as sqlite:///FILE" in str(found)


def test_ids_that_are_not_stored_are_said_with_where_they_were_looked_for(add, tmp_path):
    with open_store(load().predictions_url):
        pass
    found = add("abc")
    assert isinstance(found.exception, DataError) and "abc is not among them" in str(found.exception)
    assert f"looked for in sqlite:///{tmp_path / 'home' / 'predictions.db'}" in str(found.exception)
    assert f"See line 2 of {tmp_path / 'labels.csv'}." in str(found.exception)


def test_a_label_in_capitals_is_stored_as_the_class(add):
    with open_store(load().predictions_url) as store:
        store.add([record("0af3")])
    assert add("0AF3 , HEM\n0af3").stdout == "2 labels, 1 of them new or changed.\n"


def test_help_waits_for_no_table():
    """Nor for what makes intervals: pandas and scipy take seconds."""
    script = """
import sys
from click.testing import CliRunner
from monitoring.commands import drift
from monitoring.label_commands import labels
for words in ((drift, "report"), (drift, "watch"), (labels, "add"), (labels, "report"), (labels, "review")):
    assert CliRunner().invoke(words[0], [*words[1:], "--help"]).exit_code == 0
print([name for name in ("pandas", "scipy", "sqlalchemy", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_id_in_capitals_is_the_same(add):
    """As a spreadsheet or a person may write it."""
    with open_store(load().predictions_url) as store:
        store.add([record("0af3")])
    assert add("0AF3").stdout == "1 labels, 1 of them new or changed.\n"


def test_an_id_with_a_nul_is_refused_by_its_line(add):
    """Of a database PostgreSQL would refuse the whole file, without a word on where it stands."""
    with open_store(load().predictions_url):
        pass
    found = add("0af3,hem\n0a\0f3").exception
    assert isinstance(found, DataError) and "Expected no NUL in the id in line 3 of " in str(found)


def test_the_file_in_which_a_prediction_waits_for_its_database_is_said(add, tmp_path):
    """Its id is right: the label is to come later."""
    with open_store(load().predictions_url):
        pass
    assert "of them" not in str(add("0af3").exception) and not (tmp_path / "home" / "waiting.db").exists()
    waiting = open_waiting(load())
    assert waiting.keep([record("0af3")])
    waiting.close()
    found = add("0af3").exception
    assert isinstance(found, DataError) and f"1 of them wait for it in {tmp_path / 'home' / 'waiting.db'}" in str(found)
    assert "of them" not in str(add("0af4").exception)
    (tmp_path / "home" / "waiting.db").write_bytes(b"no database at all" * 1000)
    found = add("0af3").exception
    assert "0af3 is not among them" in str(found) and "waiting.db cannot be told: " in str(found)
