"""The table of the shadow; tests/integration/test_monitor_store.py runs it on PostgreSQL."""

import sqlite3
from datetime import timedelta

import pytest

from monitoring.shadow_store import ShadowStore, open_shadow_store
from monitoring.store import open_store
from tests.cohorts import NOON, record, shadowed


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'predictions.db'}"


@pytest.fixture
def store(url) -> ShadowStore:
    with open_shadow_store(url) as opened:
        yield opened


def test_what_goes_in_comes_out_once(store):
    first = shadowed("a", time=NOON + timedelta(microseconds=1), challenger_probability=0.9, patient="p")
    store.add([first, shadowed("b"), shadowed("other", challenger="x" * 64)])
    store.add([shadowed("a", challenger_probability=0.1)])
    store.add([])
    rows = store.read(champion="c" * 64, challenger="d" * 64)
    assert list(rows["id"]) == ["b", "a"]
    row = rows.iloc[1]
    assert (row["challenger_probability"], row["patient"], row["time"]) == (0.9, "p", first.time)
    assert len(store.read(champion="c" * 64, challenger="d" * 64, until=NOON)) == 0
    assert len(store.read(champion="d" * 64, challenger="c" * 64)) == 0


def test_every_word_on_a_label_is_kept(store, url):
    store.add([shadowed("a"), shadowed("b")])
    with open_store(url) as predictions:
        predictions.add([record("a"), record("b"), record("not shadowed")])
        predictions.add_labels([("a", "all", NOON), ("not shadowed", "hem", NOON)])
        predictions.add_labels([("a", "all", NOON + timedelta(hours=1))])  # the same again says nothing new
        predictions.add_labels([("a", "hem", NOON + timedelta(hours=2)), ("b", "hem", NOON)])
        assert dict(predictions.labelled().set_index("id")["truth"])["a"] == "hem"
    words = store.words(champion="c" * 64, challenger="d" * 64)
    hours = (words["time"] - NOON).dt.total_seconds() / 3600
    assert list(zip(words["id"], hours, words["label"], strict=True)) == [
        ("a", 0, "all"), ("b", 0, "hem"), ("a", 2, "hem"),
    ]  # fmt: skip
    assert len(store.words(champion="c" * 64, challenger="d" * 64, until=NOON + timedelta(hours=2))) == 2


def test_a_database_made_before_gets_the_tables_and_keeps_its_rows(tmp_path, url):
    with open_store(url) as old:
        old.add([record("a")])
        old.add_labels([("a", "all", NOON)])
    with sqlite3.connect(tmp_path / "predictions.db") as raw:
        raw.execute("DROP TABLE label_words")
    raw.close()
    with open_shadow_store(url) as shadow, open_store(url) as store:
        assert store.count() == 1 and len(store.labelled()) == 1
        shadow.add([shadowed("a")])
        assert list(shadow.words(champion="c" * 64, challenger="d" * 64)["label"]) == ["all"]
    with sqlite3.connect(tmp_path / "predictions.db") as raw:
        assert raw.execute("SELECT version FROM blastwatch_schema").fetchall() == [(1,)]
    raw.close()
