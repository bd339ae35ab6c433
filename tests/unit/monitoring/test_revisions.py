"""A database that an older Blastwatch made is brought up to date with what it holds; a new one has no past."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from monitoring.retention import AGE, Deleted, open_retention
from monitoring.revisions import NEWEST, REVISION_TABLE
from monitoring.store import LATER, METADATA, open_store
from tests.cohorts import NOON, record
from tests.older_database import make_old


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'predictions.db'}"


def differences(url):
    """What Alembic would still change, and the revision."""
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": REVISION_TABLE})
        found = [change for change in compare_metadata(context, METADATA) if change[0] != "remove_table"]
        revision = context.get_current_revision()
    engine.dispose()
    return found, revision


def test_a_new_database_is_of_the_newest_revision(url):
    with open_store(url):
        assert differences(url) == ([], NEWEST)


def test_an_old_one_keeps_its_rows_and_takes_new_ones(url):
    make_old(url, [record("old", time=NOON, seen=True)])
    assert differences(url)[0]
    with open_store(url) as store:
        assert differences(url) == ([], NEWEST)
        store.add([record("new", time=NOON, seen=True)])
        store.add_labels([("old", "all", NOON)])
        rows, seen = store.read().set_index("id"), store.answers(model_digest="d").set_index("id")["seen"]
    assert seen.to_dict() == {"old": False, "new": True}
    for name in LATER:
        assert np.isnan(rows.loc["old", name]) and np.isfinite(rows.loc["new", name])
    assert rows.loc["old", "cell_area"] == rows.loc["new", "cell_area"]
    with open_store(url) as store:
        assert store.count() == 2


@pytest.mark.parametrize("deleted", [False, True])
def test_what_an_older_blastwatch_deleted_stays_counted(url, deleted):
    make_old(url, [record("old", time=NOON), record("older", time=NOON - timedelta(days=9))], deleted=deleted)
    for _ in range(2):
        with open_retention(url) as retention:
            assert retention.counted()[AGE] == Deleted(predictions=3 * deleted)
    with open_retention(url) as retention:
        retention.by_age(NOON)
        assert retention.counted()[AGE] == Deleted(predictions=3 * deleted + 1)


def test_many_may_open_an_old_one_at_once(url):
    make_old(url, [record("old")])
    failed = []

    def use(number):
        try:
            with open_store(url) as store:
                store.add([record(str(number))])
        except Exception as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with open_store(url) as store:
        assert store.count() == 9


def test_an_older_blastwatch_still_writes(url):
    """Services are renewed one after the other."""
    with open_store(url):
        pass
    engine = sa.create_engine(url)
    columns = [column.name for column in METADATA.tables["predictions"].columns if column.name not in LATER]
    values = dict.fromkeys(columns, 0) | {"id": "x", "time": "2026-11-01 00:00:00.000000", "embedding": bytes(128)}
    with engine.begin() as connection:
        names, marks = ", ".join(columns), ", ".join(f":{name}" for name in columns)
        connection.execute(sa.text(f"INSERT INTO predictions ({names}) VALUES ({marks})"), values)
    engine.dispose()
    with open_store(url) as store:
        assert np.isnan(store.read()["chroma_noise"].iloc[0])


def test_what_a_newer_blastwatch_added_is_left_alone(url):
    with open_store(url):
        pass
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE {REVISION_TABLE} SET version_num = '9999'"))
    engine.dispose()
    with open_store(url) as store:
        store.add([record("1")])
        assert store.count() == 1


def test_two_databases_may_be_opened_at_once(tmp_path):
    """As a service opens its store and what waits on disk."""

    def opened(number):
        with open_store(f"sqlite:///{tmp_path / str(number)}.db") as store:
            return store.count()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(opened, range(8))) == [0] * 8
