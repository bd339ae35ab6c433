"""The database of predictions, on SQLite; tests/integration/test_monitor_store.py runs it on PostgreSQL."""

import sqlite3
import threading
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blastwatch.errors import DataError, SettingsError
from monitoring.shadow_store import open_shadow_store
from monitoring.statistics import STATISTICS
from monitoring.store import EMBEDDING, StoreError, StoreUnavailable, UnknownPredictions, open_store
from tests.cohorts import NOON, record, shadowed

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'deep' / 'predictions.db'}"


@pytest.fixture
def store(url):
    with open_store(url) as opened:
        yield opened


finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
zones = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(hours=-8))])

moments = st.integers(0, 4 * 10**15).flatmap(
    lambda micros: zones.map(lambda zone: (EPOCH + timedelta(microseconds=micros)).astimezone(zone))
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    moment=moments,
    values=st.lists(finite, min_size=len(STATISTICS), max_size=len(STATISTICS)),
    embedding=st.lists(st.floats(allow_nan=False, width=32), min_size=32, max_size=32),
    probability=st.floats(0, 1),
)
def test_what_goes_in_comes_out(store, moment, values, embedding, probability):
    id_ = str(uuid.uuid4())  # one database for all examples
    wanted = record(
        id_,
        time=moment,
        digest=id_,
        probability=probability,
        statistics=dict(zip(STATISTICS, values, strict=True)),
        embedding=np.array(embedding, np.float32),
    )
    store.add([wanted])
    row = store.read(model_digest=id_).iloc[0]
    assert row["time"] == moment and row["time"].tzinfo is not None
    assert row["probability"] == probability
    assert [row[name] for name in STATISTICS] == values
    assert np.array_equal(np.array([row[name] for name in EMBEDDING], np.float32), wanted.embedding)


def test_read_selects_and_orders(store):
    store.add([record(str(n), time=NOON + timedelta(minutes=n), digest="x" if n % 2 else "y") for n in range(10)])
    assert list(store.read(limit=3)["id"]) == ["7", "8", "9"]
    assert list(store.read(model_digest="x", limit=2)["id"]) == ["7", "9"]
    window = store.read(since=NOON + timedelta(minutes=2), until=NOON + timedelta(minutes=5))
    assert list(window["id"]) == ["2", "3", "4"]
    assert store.count() == 10


def test_an_empty_store_reads_as_an_empty_table(store):
    empty = store.read()
    assert len(empty) == 0 and set(EMBEDDING) <= set(empty.columns) and str(empty["time"].dtype).endswith("UTC]")
    assert len(store.labelled()) == 0
    assert store.add_labels([]) == 0
    store.add([])


def test_the_same_id_is_stored_once(store):
    store.add([record("a"), record("b")])
    store.add([record("a", probability=0.9), record("c")])
    assert store.count() == 3
    assert store.read().set_index("id").loc["a", "probability"] == 0.25


def test_one_bad_record_stores_nothing(store):
    with pytest.raises(StoreError, match="Expected a time with a time zone"):
        store.add([record("a", time=datetime(2026, 1, 1))])  # noqa: DTZ001
    with pytest.raises(ValueError, match="embedding of shape"):
        store.add([record("a"), record("b", embedding=np.zeros(3, np.float32))])
    assert store.count() == 0


def test_labels_are_idempotent_and_the_last_word_counts(store):
    store.add([record("a"), record("b"), record("c")])
    assert store.add_labels([("a", "all", NOON), ("b", "hem", NOON)]) == 2
    assert store.add_labels([("a", "all", NOON), ("b", "hem", NOON)]) == 0
    assert store.add_labels([("a", "hem", NOON)]) == 1
    found = store.labelled().set_index("id")
    assert dict(found["truth"]) == {"a": "hem", "b": "hem"}
    assert store.add_labels([("c", "all", NOON)]) == 1
    assert store.agreement(model_digest="d") == (3, 2) and store.agreement(model_digest="x") == (0, 0)


def standing(url):
    """What labels and words on them say of each cell."""
    with open_store(url) as store, open_shadow_store(url) as shadow:
        words = shadow.words(champion="c" * 64, challenger="d" * 64).groupby("id")["label"].last()
        return dict(store.labelled().set_index("id")["truth"]), dict(words)


def test_the_last_word_is_the_last_in_time_too(store, url):
    """Of two machines one has a clock that is ahead: the comparison with a challenger goes by time."""
    store.add([record("a")])
    with open_shadow_store(url) as shadow:
        shadow.add([shadowed("a")])
        for label, minutes in (("hem", 2), ("all", 1), ("all", 1), ("hem", 1), ("all", 1)):
            store.add_labels([("a", label, NOON + timedelta(minutes=minutes))])
            assert standing(url) == ({"a": label}, {"a": label})
        words = shadow.words(champion="c" * 64, challenger="d" * 64)
    assert list(words["label"]) == ["hem", "all", "hem", "all"]
    assert words["time"].max() == NOON + timedelta(minutes=2, microseconds=3)


def test_a_label_that_comes_while_another_is_written_is_the_last_word(store, url):
    store.add([record("a")])
    with open_shadow_store(url) as shadow:
        shadow.add([shadowed("a")])

    def early():
        with open_store(url) as other:
            other.add_labels([("a", "hem", NOON)])

    coming = threading.Thread(target=early)

    def begin(_connection, _cursor, statement, *_):
        if statement.startswith("INSERT INTO labels"):
            coming.start()
            coming.join(0.3)  # as far as it gets

    sa.event.listen(store._engine, "before_cursor_execute", begin)
    store.add_labels([("a", "all", NOON + timedelta(minutes=1))])
    coming.join(20)
    assert standing(url) == ({"a": "hem"}, {"a": "hem"})


def test_labels_are_written_in_the_order_of_their_ids(store):
    """PostgreSQL would end one of two calls that come in other orders, as each waits for the other."""
    written = []

    def see(_connection, _cursor, statement, parameters, *_):
        if statement.startswith("INSERT"):
            written.append([row[0] for row in parameters])

    ids = ["b", "c", "a"]
    store.add([record(id_) for id_ in ids])
    sa.event.listen(store._engine, "before_cursor_execute", see)
    store.add_labels([(id_, "all", NOON) for id_ in ids])
    assert written == 2 * [["a", "b", "c"]]


def test_answers_stand_beside_the_truth_that_is_known(store):
    store.add([record(str(n), time=NOON + timedelta(minutes=n), patient="p" if n else "") for n in range(5)])
    store.add([record("other", digest="x")])
    store.add_labels([("1", "all", NOON), ("other", "all", NOON)])
    found = store.answers(model_digest="d", limit=4)
    assert list(found["id"]) == ["1", "2", "3", "4"] and list(found["truth"]) == ["all", None, None, None]
    assert list(store.answers(model_digest="d")["patient"]) == ["", "p", "p", "p", "p"]
    assert list(store.answers(model_digest="d", labelled=True)["id"]) == ["1"]
    window = store.answers(model_digest="d", since=NOON + timedelta(minutes=2), until=NOON + timedelta(minutes=4))
    assert list(window["id"]) == ["2", "3"] and set(window["label"]) == {"hem"}
    nothing = store.answers(model_digest="nobody")
    assert nothing.empty and nothing["probability"].dtype == np.float64


def test_labels_of_unknown_predictions_are_named_and_nothing_is_stored(store):
    store.add([record("a")])
    with pytest.raises(UnknownPredictions, match="x, y are not among them") as caught:
        store.add_labels([("a", "all", NOON), ("x", "all", NOON), ("y", "hem", NOON)])
    assert caught.value.ids == ("x", "y")
    assert len(store.labelled()) == 0
    with pytest.raises(UnknownPredictions, match="and 1990 more"):
        store.add_labels([(f"no{n}", "all", NOON) for n in range(2000)])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([("a", "blast", NOON)], "all' or|hem or all for a but got 'blast'"),
        ([("a", "all", NOON), ("a", "hem", NOON)], "both"),
    ],
)
def test_wrong_labels_are_refused(store, labels, words):
    store.add([record("a")])
    with pytest.raises(DataError, match=words):
        store.add_labels(labels)


def test_sqlite_is_in_wal_mode_with_a_schema_version(store, url):
    with sqlite3.connect(url.removeprefix("sqlite:///")) as raw:
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert raw.execute("SELECT version FROM blastwatch_schema").fetchall() == [(1,)]
        raw.execute("UPDATE blastwatch_schema SET version = 7")
        raw.commit()
    raw.close()
    with pytest.raises(StoreError, match=r"tables of version 1 .* found \[7\]"):
        open_store(url)


def test_many_may_open_at_once(url):
    faults = []

    def use(number):
        try:
            with open_store(url) as opened:
                opened.add([record(str(number))])
        except StoreError as error:
            faults.append(error)

    threads = [threading.Thread(target=use, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    with open_store(url) as opened:
        assert opened.count() == 8


@pytest.mark.parametrize("url", ["predictions.db", "mysql://host/db", "sqlite+nothing:///x", ""])
def test_other_databases_are_refused(url):
    with pytest.raises(SettingsError, match="Expected BLASTWATCH_PREDICTIONS_URL"):
        open_store(url)


def test_a_password_is_not_repeated():
    with pytest.raises(SettingsError) as caught:
        open_store("mysql://me:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_server_that_is_away(free_port):
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        open_store(f"postgresql://me:secret@127.0.0.1:{free_port()}/db")


def test_the_newest_of_a_version_and_of_the_others(store):
    assert store.newest(model_digest="d") is None and store.newest_of_others({"d"}, since=None) is None
    hour = timedelta(hours=1)
    made = [("a", "1", "d", 0), ("b", "2", "e", 1), ("c", "3", "f", 2), ("c2", "3", "f", 2), ("d", "1", "d", 3)]
    store.add([
        replace(record(id_, time=NOON + hours * hour, digest=digest), model_version=version)
        for id_, version, digest, hours in made
    ])  # fmt: skip
    assert store.newest(model_digest="d") == NOON + 3 * hour
    assert store.newest_of_others({"d"}, since=None) == "3"
    assert store.newest_of_others({"d"}, since=NOON + 2 * hour) == "3"
    assert store.newest_of_others({"f"}, since=NOON + 2 * hour) == "1"
    assert store.newest_of_others({"d"}, since=NOON + 3 * hour) is None
    assert store.newest_of_others({"d", "f"}, since=None) == "2"
