"""The database of predictions on a real PostgreSQL server, started for this test."""

import functools
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import psycopg
import pytest

from monitoring.capture import Capture
from monitoring.database import LOCK_SECONDS
from monitoring.image_store import open_image_store
from monitoring.patients import Patients
from monitoring.retention import SLACK, Deleted, open_retention
from monitoring.shadow_store import open_shadow_store
from monitoring.statistics import STATISTICS
from monitoring.store import LATER, StoreError, StoreUnavailable, UnknownPredictions, open_store
from monitoring.waiting import WaitingPredictions
from tests.cohorts import NOON, pictured, pixels, record, shadowed
from tests.forgetting import fill
from tests.older_database import make_old
from tests.patient_streams import cells_of
from tests.running import until

pytestmark = pytest.mark.system


wait_for = functools.partial(until, seconds=30)


def forgets(url):
    """Age, size and one patient, as tests/unit/monitoring/test_retention.py has them on SQLite."""
    with open_store(url) as store, open_shadow_store(url) as shadow, open_retention(url) as retention:
        fill(url)
        assert retention.images_by_age(NOON + timedelta(days=1)) == Deleted(images=1)
        assert retention.by_age(NOON + timedelta(days=4)) == Deleted(predictions=4, labels=4, shadow=4, images=3)
        assert retention.forget("p") == Deleted(predictions=4, labels=4, shadow=4, images=4)
        assert list(store.read(pictured=True)["id"]) == ["05", "07", "09", "11"]
        assert list(store.read()["id"]) == list(store.labelled()["id"]) == ["05", "07", "09", "11"]
        assert list(shadow.read(champion="c" * 64, challenger="d" * 64)["id"]) == ["05", "07", "09", "11"]
        store.add([record(uuid.uuid4().hex, digest="d" * 64, patient="f" * 64) for _ in range(3000)])
        with psycopg.connect(url) as connection:
            ((real,),) = connection.execute("SELECT pg_total_relation_size('predictions')").fetchall()
        assert retention.usage().bytes == pytest.approx(real, rel=0.15)
        with open_image_store(url) as images:
            images.add([pictured(f"{number:02d}", size=2_000_000) for number in range(30, 33)])
            assert len(images.pictures(["31"])["31"]) == 2_000_000
        with psycopg.connect(url) as connection:
            ((pictures,),) = connection.execute("SELECT pg_total_relation_size('images')").fetchall()
        assert retention.usage().bytes == pytest.approx(real + 6_000_000, rel=0.15) and pictures < 6_500_000
        assert retention.by_size(real + 4_500_000).images == 1
        assert retention.by_size(real + 1_000_000).images == 2
        limit = retention.usage().bytes // 2
        gone = retention.by_size(limit)
        assert gone.predictions == pytest.approx((1 - 0.5 * (1 - SLACK)) * 3004, rel=0.05)
        assert retention.usage().bytes <= limit and retention.by_size(limit) == Deleted()
        assert retention.counted()["size"] == gone + Deleted(images=3)


def takes_what_its_tables_take(url):
    """Half of what a cell takes are its shadow, its label and the words on it."""
    tables = ("predictions", "shadow", "labels", "label_words")
    ids = [uuid.uuid4().hex for _ in range(5000)]
    with open_store(url) as store, open_shadow_store(url) as shadow, open_retention(url) as retention:
        store.add([record(id_, digest="d" * 64, patient="f" * 64) for id_ in ids])
        shadow.add([shadowed(id_, time=NOON + timedelta(seconds=n), patient="f" * 64) for n, id_ in enumerate(ids)])
        for number, label in enumerate(("all", "hem")):
            store.add_labels([(id_, label, NOON + timedelta(hours=number)) for id_ in ids[:2500]])
        with psycopg.connect(url) as connection:
            sizes = [connection.execute("SELECT pg_total_relation_size(%s)", [name]).fetchone()[0] for name in tables]
        assert retention.usage().bytes == pytest.approx(sum(sizes), rel=0.15)
        assert sizes[0] < 0.6 * sum(sizes)
        limit = retention.usage().bytes // 2
        assert retention.by_size(limit).predictions > 2000 and retention.usage().bytes <= limit


def lets_go_what_has_no_prediction(url):
    """As tests/unit/monitoring/test_retention.py has it on SQLite."""
    with open_store(url) as store, open_shadow_store(url) as shadow, open_image_store(url) as images:
        shadow.add([shadowed("late", time=NOON), shadowed("adrift", time=NOON)])
        images.add([pictured("late", time=NOON), pictured("adrift", time=NOON)])
        gone = []
        for days in (300, 2, 2.9, 3, 4):  # first by a clock that ran ahead
            with open_retention(url) as retention:
                gone.append(retention.adrift(NOON + timedelta(days=days)))
            store.add([record("late", time=NOON)])
        assert gone == [Deleted(), Deleted(), Deleted(), Deleted(shadow=1, images=1), Deleted()]
        assert list(images.pictures(["late", "adrift"])) == ["late"]
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM adrift").fetchone() == (0,)


def tells_how_alike_they_answer(url):
    """As tests/unit/monitoring/test_shadow_report.py has it on SQLite."""
    pair = {"champion": "c" * 64, "challenger": "d" * 64, "until": NOON + timedelta(hours=3)}
    with open_store(url) as store, open_shadow_store(url) as shadow:
        store.add([record(str(number)) for number in range(4)])
        for number in range(4):
            said = {"champion_probability": 0.2, "challenger_probability": 0.2 + 0.1 * (-1) ** number}
            shadow.add(
                [shadowed(str(number), time=NOON + timedelta(hours=number), patient="p" * (number == 3), **said)]
            )
        store.add_labels([("1", "all", NOON), ("3", "all", NOON)])
        (row,) = shadow.counts(**pair)
        assert (row["cells"], row["keyed"]) == (3, 0) and not shadow.keyed(**pair)
        assert (row["since"], row["until"]) == (NOON, NOON + timedelta(hours=2))
        assert [row[name] for name in ("difference", "distance", "largest")] == pytest.approx([0.1, 0.3, 0.1])
        assert list(shadow.read(**pair, labelled=True)["id"]) == ["1"]
        assert shadow.keyed(**pair | {"until": NOON + timedelta(hours=4)})
        store.add([record("again", pixel_sha256=pixels("1"))])
        shadow.add([shadowed(id_, time=NOON + timedelta(minutes=90)) for id_ in ("again", "on its way")])
        assert sum(row["cells"] for row in shadow.counts(**pair)) == 4 and shadow.count(**pair) == 5
        store.add_labels([("again", "hem", NOON)])
        assert list(shadow.read(**pair, labelled=True)["image"]) == [pixels("1")] * 2


def takes_labels_from_two_at_once(url):
    """Two files with the same ids in other orders: they do not wait for each other, and the last word is one."""
    ids = [f"{number:04d}" for number in range(2000)]
    with open_store(url) as store, open_store(url) as other, open_shadow_store(url) as shadow:
        store.add([record(id_) for id_ in ids])
        shadow.add([shadowed(id_) for id_ in ids])
        with ThreadPoolExecutor(2) as pool:
            for number in range(4):
                moments = NOON + timedelta(hours=number), NOON - timedelta(hours=number)
                forth = pool.submit(store.add_labels, [(id_, "all", moments[0]) for id_ in ids])
                back = pool.submit(other.add_labels, [(id_, "hem", moments[1]) for id_ in reversed(ids)])
                assert forth.result() + back.result() in (2000, 4000)
        words = shadow.words(champion="c" * 64, challenger="d" * 64).groupby("id")["label"].last()
        assert dict(words) == dict(store.labelled().set_index("id")["truth"])


def is_brought_up_to_date(url):
    """As tests/unit/monitoring/test_revisions.py has it on SQLite."""
    make_old(url, [record("old")])
    with open_store(url) as store, open_store(url):
        store.add([record("new")])
        missing = store.read().set_index("id")[list(LATER)].isna()
    assert missing.loc["old"].all() and not missing.loc["new"].any()


def waits_on_disk(postgres, disk):
    """What a killed service left while the database was away goes in once, beside what another one stores."""
    url, moments = postgres.database("waits"), [NOON + timedelta(microseconds=n) for n in range(700)]
    killed = WaitingPredictions(disk, 1 << 30)
    assert killed.keep([record(f"{n:03d}", time=moment, patient="p" * 64) for n, moment in enumerate(moments)])
    with open_store(url) as store, Capture(url, aside=WaitingPredictions(disk, 1 << 30)) as capture:
        store.add([record("005", time=moments[5], patient="p" * 64)])  # killed between the database and the disk
        wait_for(lambda: capture.counts().stored == 700)
        capture.submit(record("after", time=NOON + timedelta(days=1)))
        wait_for(lambda: capture.counts().stored == 701)
        rows = store.read()
        assert store.count() == 701 and rows["id"].is_unique
        assert list(rows["time"][:3]) == moments[:3] and rows["e31"].eq(31).all() and rows[STATISTICS[3]].eq(3).all()
    assert killed.count() == 0


def outlives_a_failover(postgres, disk):
    """After a failover a connection may lead to a server that only reads. It takes no row, and condemns none."""
    url = postgres.database("failover")
    with Capture(url, aside=WaitingPredictions(disk, 1 << 30)) as capture:
        capture.submit(record("before"))
        wait_for(lambda: capture.counts().stored == 1)
        postgres.only_reads(on=True)
        for number in range(5):
            capture.submit(record(str(number)))
        wait_for(lambda: capture.counts().failed > 1)  # once more, when it was to be handed over from the disk
        assert (capture.counts().stored, capture.counts().dropped) == (1, 0)
        postgres.only_reads(on=False)
        wait_for(lambda: capture.counts().stored == 6)
    with open_store(url) as store:
        assert store.count() == 6 and capture.counts().dropped == 0


def gives_up_where_a_table_is_locked(postgres, disk):
    """Behind ALTER TABLE, VACUUM FULL or an open transaction what is to be stored goes to the disk, as in an outage."""
    url = postgres.database("locked")
    with open_store(url) as store, Capture(url, aside=WaitingPredictions(disk, 1 << 30)) as capture:
        store.add([record("before")])
        with psycopg.connect(url) as altering:
            altering.execute("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
            capture.submit(record("during"))
            with pytest.raises(StoreUnavailable, match="lock timeout"):
                store.add_labels([("before", "all", NOON)])
            with pytest.raises(StoreUnavailable, match="lock timeout"):  # the setting outlives a rollback
                store.count()
            wait_for(lambda: WaitingPredictions(disk, 1 << 30).count() == 1)
            assert capture.counts().failed and capture.counts().waiting == 0
            with open_store(url):  # takes no lock where all is there
                pass
        wait_for(lambda: capture.counts().stored == 1)
        assert capture.counts().dropped == 0 and store.count() == 2
    patient = url + "?options=-c%20lock_timeout%3D100"
    with open_store(patient) as store, psycopg.connect(url) as altering:
        altering.execute("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match="lock timeout"):
            store.count()
        assert time.monotonic() - began < LOCK_SECONDS / 2


def may_not_be_written(postgres):
    """Without the right to a table, or the table, nothing is wrong with the rows."""
    url = postgres.database("rights")
    with open_store(url) as store:
        store.add([record("before")])
        postgres.run("rights", "ALTER TABLE predictions RENAME TO elsewhere")
        with pytest.raises(StoreUnavailable, match="takes nothing now: relation"):
            store.add([record("1")])
        postgres.run("rights", "ALTER TABLE elsewhere RENAME TO predictions")
        with pytest.raises(StoreError, match="refused") as refused:
            store.add([record("nul", patient="\0")])
        assert not isinstance(refused.value, StoreUnavailable)


def is_opened_beside_a_vacuum_and_by_who_may_make_no_tables(postgres):
    """Where all is there, to open takes no lock that inserts would wait behind, and no right but to use the tables."""
    url = postgres.database("opened")
    with open_retention(url):
        grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO writer"
        postgres.run("opened", "CREATE ROLE writer LOGIN", grant)
    writer = url.replace("tester", "writer") + "?options=-c%20lock_timeout%3D2000"
    with psycopg.connect(url) as vacuuming:
        vacuuming.execute("LOCK TABLE predictions, shadow IN SHARE UPDATE EXCLUSIVE MODE")  # what VACUUM takes
        with open_store(writer) as store, open_shadow_store(writer), open_retention(writer) as retention:
            store.add([record("1", patient="p")])
            assert retention.usage().predictions == 1


def tells_who_came(url):
    """As tests/unit/monitoring/test_patients.py has it on SQLite."""
    with open_store(url) as store, open_retention(url) as retention:
        who = Patients(store, model_digest="d", settle=timedelta(hours=1))
        store.add(cells_of("a", NOON, [0.1] * 60 + [0.9]) + cells_of("b", NOON, [0.2] * 20) + [record("nobody")])
        store.add(cells_of("few", NOON, [0.2] * 3) + cells_of("later", NOON + timedelta(hours=1), [0.3] * 20))
        came = who.look(NOON + timedelta(minutes=90))
        assert came.rows["probability"].tolist() == pytest.approx([0.1, 0.2])
        assert list(came.first) == [NOON, NOON] and (came.few, came.waiting) == (1, 1)
        again = NOON + timedelta(days=3)
        store.add(cells_of("b", again, [0.9] * 20))
        assert store.first_cells(["b", "nobody"], model_digest="d") == {"b": NOON}
        retention.forget("a")
        assert who.look(NOON + timedelta(hours=3)).rows["probability"].tolist() == pytest.approx([0.2, 0.3])


def test_round_trip_labels_an_outage_and_what_is_forgotten(postgres, tmp_path):
    waits_on_disk(postgres, tmp_path / "waiting.db")
    forgets(postgres.database("forgetful"))
    lets_go_what_has_no_prediction(postgres.database("adrift"))
    takes_what_its_tables_take(postgres.database("sizes"))
    tells_how_alike_they_answer(postgres.database("alike"))
    takes_labels_from_two_at_once(postgres.database("labels"))
    tells_who_came(postgres.database("patients"))
    outlives_a_failover(postgres, tmp_path / "failover.db")
    gives_up_where_a_table_is_locked(postgres, tmp_path / "locked.db")
    may_not_be_written(postgres)
    is_opened_beside_a_vacuum_and_by_who_may_make_no_tables(postgres)
    is_brought_up_to_date(postgres.database("old"))
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
            assert list(shadow.words(**pair)["label"]) == ["all", "hem"]
            store.add_labels([("1", "all", NOON + timedelta(hours=1))])
            assert list(shadow.words(**pair)["label"]) == ["all", "hem", "all"]

        with Capture(url, aside=WaitingPredictions(tmp_path / "aside.db", 1 << 30)) as capture:
            capture.submit(record("before"))
            wait_for(lambda: capture.counts().stored)
            postgres.stop("immediate")
            capture.submit(record("during"))
            wait_for(lambda: capture.counts().failed)
            wait_for(lambda: capture.counts().waiting == 0)
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                store.count()
            postgres.start()
        assert (capture.counts().stored, capture.counts().dropped) == (2, 0)
        assert store.count() == 13
