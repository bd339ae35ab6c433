"""The database of predictions on a real PostgreSQL server, started for this test."""

import time
from datetime import timedelta

import pytest

from monitoring.capture import Capture
from monitoring.shadow_store import open_shadow_store
from monitoring.statistics import STATISTICS
from monitoring.store import StoreUnavailable, UnknownPredictions, open_store
from tests.cohorts import NOON, record, shadowed

pytestmark = pytest.mark.system


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_round_trip_labels_and_an_outage(postgres):
    url = postgres.url
    with open_store(url) as store, open_store(url):
        store.add([record(str(n), time=NOON + timedelta(microseconds=n)) for n in range(10)])
        store.add([record("3", probability=0.9), record("10", time=NOON + timedelta(days=1))])
        rows = store.read()
        assert list(rows["id"]) == [str(n) for n in range(11)]
        assert rows["time"].iloc[7] == NOON + timedelta(microseconds=7)
        assert rows["probability"].eq(0.25).all() and rows[STATISTICS[3]].eq(3).all() and rows["e31"].eq(31).all()
        assert store.add_labels([("1", "all", NOON)]) == 1
        assert store.add_labels([("1", "all", NOON)]) == 0
        assert store.add_labels([("1", "hem", NOON)]) == 1
        assert list(store.labelled()["truth"]) == ["hem"]
        with pytest.raises(UnknownPredictions, match="nobody"):
            store.add_labels([("nobody", "hem", NOON)])

        with open_shadow_store(url) as shadow, open_shadow_store(url):
            pair = {"champion": "c" * 64, "challenger": "d" * 64}
            shadow.add([shadowed("1", challenger_probability=0.75), shadowed("2")])
            shadow.add([shadowed("1", challenger_probability=0.5)])
            assert list(shadow.read(**pair)["challenger_probability"]) == [0.75, 0.25]
            assert list(shadow.words(**pair)["label"]) == ["hem"]  # one word a moment: the last
            store.add_labels([("1", "all", NOON + timedelta(hours=1))])
            assert list(shadow.words(**pair)["label"]) == ["hem", "all"]

        with Capture(url) as capture:
            capture.submit(record("before"))
            wait_for(lambda: capture.counts().stored)
            postgres.stop("immediate")
            capture.submit(record("during"))
            wait_for(lambda: capture.counts().failed)
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                store.count()
            postgres.start()
        assert (capture.counts().stored, capture.counts().dropped) == (2, 0)
        assert store.count() == 13
