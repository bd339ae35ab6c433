"""What the database forgets, and that nothing is ever half forgotten; on PostgreSQL in tests/integration."""

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from blastwatch.errors import DataError, UsageError
from blastwatch.settings import LONGEST_DAYS, load
from monitoring.image_store import ImageRecord, open_image_store
from monitoring.pseudonyms import Pseudonyms
from monitoring.retention import AGE, BATCH, IMAGE_AGE, PATIENT, REASONS, SLACK, Deleted, open_retention, retain
from monitoring.shadow_store import open_shadow_store
from monitoring.store import open_store
from monitoring.store_commands import store as commands
from monitoring.waiting import open_waiting
from tests.cohorts import NOON, pictured, record, shadowed
from tests.forgetting import CELLS, fill

ROOT = Path(__file__).parents[3]


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'predictions.db'}"


@pytest.fixture
def retention(url):
    with open_retention(url) as opened:
        yield opened


def ids(url):
    with open_store(url) as store, open_shadow_store(url) as shadow:
        pair = {"champion": "c" * 64, "challenger": "d" * 64}
        return list(store.read()["id"]), list(store.labelled()["id"]), list(shadow.read(**pair)["id"])


def test_by_age_the_old_go_with_all_that_hangs_on_them(url, retention):
    fill(url)
    for id_, day in (("dropped", 0), ("on its way", CELLS)):
        with open_shadow_store(url) as shadow, open_image_store(url) as images:
            for store, made in ((shadow, shadowed), (images, pictured)):
                store.add([made(id_, time=NOON + timedelta(days=day))])
        if id_ == "dropped":
            assert retention.adrift(NOON + timedelta(days=5)) == Deleted()
    gone = retention.by_age(NOON + timedelta(days=5))
    assert gone == Deleted(predictions=5, labels=5, shadow=5, images=5)
    gone += (left := retention.adrift(NOON + timedelta(days=6)))
    assert left == Deleted(shadow=1, images=1)
    kept = [f"{number:02d}" for number in range(5, CELLS)]
    assert ids(url) == (kept, kept, [*kept, "on its way"])
    assert retention.by_age(NOON + timedelta(days=5)) == Deleted()
    assert retention.counted() == dict.fromkeys(REASONS, Deleted()) | {AGE: gone}
    assert retention.usage().images == CELLS - 5 + 1


@pytest.mark.parametrize("most", [None, 7])
def test_what_came_after_its_patient_was_forgotten_goes_once_it_was_seen_for_a_day(url, retention, most):
    with open_store(url) as store, open_shadow_store(url) as shadow, open_image_store(url) as images:
        store.add([record(f"{number:02d}") for number in range(20)])
        shadow.add([shadowed(f"{number:02d}", time=NOON) for number in range(20)])
        late = ["03x", "19x"]
        shadow.add([shadowed(id_, time=NOON) for id_ in late])
        images.add([pictured(id_, time=NOON) for id_ in late])
        looks = [retention.adrift(NOON + timedelta(hours=6 * look), most=most) for look in range(12)]
        assert sum(looks, start=Deleted()) == Deleted(shadow=2, images=2) == retention.counted()[AGE]
        assert [look.images for look in looks] == [2 * (number == 4) for number in range(12)]
        seen = {4: 2} if most is None else {4: 1, 7: 1}  # 22 cells of the shadow, seven at each look
        assert [look.shadow for look in looks] == [seen.get(number, 0) for number in range(12)]
        assert len(ids(url)[2]) == 20 and images.pictures(late) == {}
        shadow.add([shadowed("00x", time=NOON)])
        later = [retention.adrift(NOON + timedelta(hours=6 * look), most=most) for look in range(12, 24)]
        assert sum(later, start=Deleted()) == Deleted(shadow=1)


def test_after_an_outage_longer_than_a_day_nothing_goes_whose_prediction_is_about_to_come(url, retention):
    answered = datetime.now(UTC) - timedelta(days=3)
    with open_store(url) as store, open_shadow_store(url) as shadow, open_image_store(url) as images:
        shadow.add([shadowed("a", time=answered)])
        images.add([pictured("a", time=answered)])
        assert retain(retention, load({})) == Deleted()
        store.add([record("a", time=answered)])
        later = datetime.now(UTC) + timedelta(days=2)
        assert [retention.adrift(later + timedelta(days=day)) for day in range(3)] == [Deleted()] * 3
        assert list(images.pictures(["a"])) == ids(url)[2] == ["a"]
        with open_retention(url) as other:
            other.by_age(later)
        images.add([pictured("a", time=answered)])  # was on its way when its cell was deleted
        assert [retention.adrift(later + timedelta(days=day)).images for day in range(3, 5)] == [0, 1]


def test_since_when_a_picture_has_no_prediction_outlives_the_monitor_and_a_clock_that_ran_ahead(url):
    with open_image_store(url) as images:
        images.add([pictured("a", time=NOON)])
    gone = []
    for moment in (NOON + timedelta(days=300), NOON, NOON + timedelta(hours=23), NOON + timedelta(hours=24)):
        with open_retention(url) as retention:
            gone.append(retention.adrift(moment).images)
    assert gone == [0, 0, 0, 1]


def test_whatever_is_set_what_has_no_prediction_goes(url, retention, monkeypatch):
    with open_image_store(url) as images:
        images.add([pictured("a", time=datetime.now(UTC))])
    assert retain(retention, load({})) == Deleted()
    monkeypatch.setattr("monitoring.retention.ADRIFT", timedelta(0))
    assert retain(retention, load({})) == Deleted(images=1)


def test_a_look_deletes_so_many_at_most_and_the_oldest_first(url, retention):
    with open_store(url) as store:
        store.add([record(f"{n:04d}", time=NOON + timedelta(seconds=n)) for n in range(BATCH + 60)])
        assert retention.by_age(NOON + timedelta(days=1), most=BATCH + 50).predictions == BATCH + 50
        assert list(store.read()["id"]) == [f"{n:04d}" for n in range(BATCH + 50, BATCH + 60)]
    assert retention.usage().oldest == NOON + timedelta(seconds=BATCH + 50)


def test_by_size_the_rest_fits_and_no_more_goes_than_must(url, retention):
    with open_store(url) as store:
        store.add([record(f"{n:04d}", time=NOON + timedelta(seconds=n)) for n in range(3000)])
    before = retention.usage()
    limit = int(0.8 * before.bytes)
    gone = retention.by_size(limit)
    after = retention.usage()
    assert after.bytes <= limit and after.predictions == 3000 - gone.predictions
    assert gone.predictions == pytest.approx((1 - 0.8 * (1 - SLACK)) * 3000, abs=1)
    assert retention.by_size(limit) == Deleted()
    assert ids(url)[0][0] == f"{gone.predictions:04d}"


def test_pictures_have_an_age_of_their_own(url, retention):
    fill(url)
    gone = retention.images_by_age(NOON + timedelta(days=5), most=2) + retention.images_by_age(NOON + timedelta(days=5))
    assert gone == Deleted(images=5) == retention.counted()[IMAGE_AGE]
    usage = retention.usage()
    assert (usage.predictions, usage.images, usage.image_bytes) == (CELLS, CELLS - 5, 100 * (CELLS - 5))
    with open_store(url) as store:
        assert len(store.read()) == CELLS
        assert store.read(pictured=True)["id"].tolist() == [f"{number:02d}" for number in range(5, CELLS)]


@pytest.mark.parametrize(("share", "cells_go"), [(0.6, False), (0.1, True)])
def test_by_size_pictures_go_before_cells_and_the_oldest_first(url, retention, share, cells_go):
    times = [NOON + timedelta(seconds=number) for number in range(3000)]
    with open_store(url) as store, open_image_store(url) as images:
        store.add([record(f"{number:04d}", time=time) for number, time in enumerate(times)])
        images.add([pictured(f"{number:04d}", time=times[number], size=25_000) for number in range(300)])
    before = retention.usage()
    assert before.bytes > before.image_bytes == 300 * 25_000
    limit = int(share * before.bytes)
    gone, after = retention.by_size(limit), retention.usage()
    assert after.bytes <= limit and (gone.predictions > 0) == cells_go and retention.by_size(limit) == Deleted()
    with open_store(url) as store:
        left = store.read(pictured=True)["id"].tolist()
    assert left == [f"{number:04d}" for number in range(gone.images, 300)]
    if not cells_go:
        assert gone.images * 25_000 == pytest.approx(before.bytes - limit * (1 - SLACK), abs=25_000)


@pytest.mark.parametrize("faster", [1, 2, 3])
@pytest.mark.parametrize("pictures", [False, True])
def test_two_at_once_delete_by_size_what_one_would(url, retention, monkeypatch, pictures, faster):
    """The other one begins and ends after this one has looked for the so manieth time how much there is."""
    times = [NOON + timedelta(seconds=number) for number in range(3000)]
    with open_store(url) as store, open_image_store(url) as images:
        store.add([record(f"{number:04d}", time=time) for number, time in enumerate(times)])
        if pictures:
            images.add([pictured(f"{number:04d}", time=times[number], size=25_000) for number in range(300)])
    limit = int(0.8 * retention.usage().bytes)
    usage, looks, others = retention.usage, [], []

    def looked():
        found = usage()
        looks.append(found)
        if len(looks) == faster:
            with open_retention(url) as other:
                others.append(other.by_size(limit))
        return found

    monkeypatch.setattr(retention, "usage", looked)
    gone = retention.by_size(limit)
    (other,) = others or [retention.by_size(limit)]
    both, left = gone + other, usage()
    assert limit * (1 - SLACK) * 0.97 < left.bytes <= limit
    assert (both.predictions, both.images) == (3000 - left.predictions, 300 * pictures - left.images)


def picture(id_, patient, word):
    return ImageRecord(id=id_, time=NOON, reason="referred", patient=patient, png=5000 * word)


def test_a_patient_is_gone_from_the_file_itself(url, retention, tmp_path):
    key = "f00d" * 16
    with open_store(url) as store, open_shadow_store(url) as shadow, open_image_store(url) as images:
        store.add([record("a", patient=key), record("b", patient="other"), record("c")])
        store.add_labels([("a", "all", NOON), ("b", "all", NOON)])
        shadow.add([shadowed("a", patient=key), shadowed("early", patient=key), shadowed("b", patient="other")])
        images.add([picture(id_, key, b"face") for id_ in ("a", "early")] + [picture("b", "other", b"mask")])
    assert retention.forget(key) == Deleted(predictions=1, labels=1, shadow=2, images=2)
    assert ids(url) == (["b", "c"], ["b"], ["b"])
    files = [path.read_bytes() for path in tmp_path.glob("predictions.db*")]
    assert not any(word in content for content in files for word in (key.encode(), 500 * b"face"))
    assert all(any(word in content for content in files) for word in (b"other", 500 * b"mask"))
    assert retention.forget(key) == Deleted() and retention.counted()[PATIENT].predictions == 1
    with pytest.raises(ValueError, match="hashed patient key"):
        retention.forget("")


def test_a_kill_before_any_statement_leaves_no_half_of_a_cell(tmp_path, commands):
    done = subprocess.run(
        [commands / "module", "tests.forgetting", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    every = {f"{number:02d}" for number in range(CELLS)}
    going = {
        "age": {id_ for id_ in every if int(id_) < CELLS // 2},
        "patient": {id_ for id_ in every if int(id_) % 2 == 0},
    }
    for what, told in json.loads(done.stdout).items():
        assert len(told) >= 6
        for state in told:
            kept = set(state["predictions"])
            assert kept in (every, every - going[what])
            assert all(set(state[table]) == kept for table in ("labels", "label_words", "shadow", "images"))
            assert state["counted"] == len(every - kept)
        assert set(told[0]["predictions"]) == every and set(told[-1]["predictions"]) == every - going[what]


def test_the_settings_say_what_goes(url, retention):
    now = datetime.now(UTC)
    with open_store(url) as store:
        store.add([record("old", time=now - timedelta(days=3)), record("new", time=now - timedelta(hours=1))])
    assert retain(retention, load({})) == Deleted()
    with open_image_store(url) as images:
        images.add([pictured("new", time=now - timedelta(days=29)), pictured("old", time=now - timedelta(days=31))])
    assert retain(retention, load({})) == Deleted(images=1)
    assert retain(retention, load({"BLASTWATCH_IMAGE_DAYS": "0"})) == Deleted()
    assert retain(retention, load({"BLASTWATCH_RETENTION_DAYS": "1"})) == Deleted(predictions=1)
    assert retain(retention, load({"BLASTWATCH_RETENTION_MIB": "0.001"})) == Deleted(predictions=1, images=1)
    assert retention.usage().predictions == 0 and retention.usage().oldest is None


def test_the_longest_span_that_can_be_set_is_one_of_dates(retention):
    longest = {"BLASTWATCH_RETENTION_DAYS": str(LONGEST_DAYS), "BLASTWATCH_IMAGE_DAYS": str(LONGEST_DAYS)}
    assert retain(retention, load(longest)) == Deleted()


def test_the_commands(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("BLASTWATCH_HOME", str(home))
    url = load().predictions_url

    def run(*words, given=None):
        return CliRunner().invoke(commands, words, input=given)

    refused = run("forget", "-", given="ward 3\n")
    assert isinstance(refused.exception, DataError) and "patient.salt" in str(refused.exception)
    with monkeypatch.context() as patch:
        patch.setenv("BLASTWATCH_IMAGE_DAYS", "0")
        assert "Set BLASTWATCH_RETENTION_DAYS" in str(run("retain").exception)
        assert isinstance(run("retain").exception, UsageError)
    pseudonyms = Pseudonyms(home / "patient.salt")
    latin = "Müller".encode().decode("latin-1")  # as a header in UTF-8 reaches the service
    with open_store(url) as store:
        store.add([record("a", patient=pseudonyms("ward 3")), record("b", patient=pseudonyms(latin)), record("c")])
    told = run("forget", "-", "--json", given="Müller\nnobody\n\n")
    wanted = {"patients": 2, "unknown": 1, "deleted": {"predictions": 1, "labels": 0, "shadow": 0, "images": 0}}
    assert json.loads(told.stdout) == wanted
    unknown = run("forget", "-", given="nobody\n")
    assert "nothing was stored of 1 of them" in unknown.stdout and "without a patient's key" in unknown.stderr
    found = run("forget", "-", given="ward 3\n")
    assert "Deleted 1 predictions" in found.output and found.stderr == ""
    waiting = open_waiting(load())
    assert waiting.keep([record("w", patient=pseudonyms("ward 4")), record("v", patient=pseudonyms("ward 5"))])
    assert "Deleted 1 predictions" in run("forget", "-", given="ward 4\n").output
    assert waiting.count() == 1
    assert isinstance(run("forget", "-", given="\n").exception, DataError)
    shown = json.loads(run("show", "--json").stdout)
    assert shown["predictions"] == 1 and shown["deleted"]["patient"]["predictions"] == 2
    assert shown["oldest"] == shown["newest"] == NOON.isoformat()
    assert (
        "1 predictions and 0 pictures" in run("show").output
        and "Deleted for patient: 2 predictions" in run("show").output
    )
    assert "No limit is set for predictions" in run("retain").stderr and run("retain", "--json").stderr == ""
    monkeypatch.setenv("BLASTWATCH_RETENTION_DAYS", "0.5")
    assert run("retain").stderr == ""
    with open_store(url) as store:
        store.add([record("d", time=datetime.now(UTC) - timedelta(days=1))])
    left = json.loads(run("retain", "--json").stdout)["left"]["predictions"]
    assert left == (0 if datetime.now(UTC) - NOON > timedelta(hours=12) else 1)


@pytest.mark.parametrize("words", [("show",), ("retain",), ("forget", "-")])
def test_where_there_are_no_predictions_nobody_is_told_that_a_patient_is_gone(tmp_path, monkeypatch, words):
    """As in another home than the service's, or without the address of its database."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BLASTWATCH_PATIENT_SALT", str(tmp_path / "salt"))
    Pseudonyms(tmp_path / "salt")("ward 3")
    told = CliRunner().invoke(commands, words, input="ward 3\n")
    assert isinstance(told.exception, DataError) and told.exit_code == 1 and told.stdout == ""
    url = f"sqlite:///{tmp_path / 'home' / 'predictions.db'}"
    assert f"{url} (BLASTWATCH_HOME or BLASTWATCH_PREDICTIONS_URL of the service)" in str(told.exception)
    assert not (tmp_path / "home").exists()


def test_the_first_patient_of_a_file_with_a_byte_order_mark_is_found(tmp_path, monkeypatch):
    """As spreadsheets and editors of Windows save it."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path))
    pseudonyms, keys = Pseudonyms(tmp_path / "patient.salt"), tmp_path / "keys.txt"
    keys.write_bytes(b"\xef\xbb\xbf4711\r\n4712\r\n")
    for given in (str(keys), "-"):
        with open_store(load().predictions_url) as store:
            store.add([record(key, patient=pseudonyms(key)) for key in ("4711", "4712")])
        told = CliRunner().invoke(commands, ["forget", given, "--json"], input=keys.read_bytes())
        assert json.loads(told.stdout)["deleted"]["predictions"] == 2


def test_the_oldest_go_first_whatever_their_ids(url, retention):
    made = [(str(9 - number), NOON + timedelta(seconds=number)) for number in range(10)]
    with open_store(url) as store, open_image_store(url) as images:
        store.add([record(id_, time=time) for id_, time in made])
        images.add([pictured(id_, time=time) for id_, time in made])
        retention.images_by_age(NOON + timedelta(days=1), most=4)
        assert sorted(store.read(pictured=True)["id"]) == list("012345")
        retention.by_age(NOON + timedelta(days=1), most=4)
        assert sorted(store.read()["id"]) == list("012345")


def test_while_pictures_are_left_no_cell_goes(url, retention):
    with open_store(url) as store, open_image_store(url) as images:
        store.add([record(str(number), time=NOON + timedelta(seconds=number)) for number in range(6)])
        images.add([pictured(str(number), time=NOON + timedelta(seconds=number), size=25_000) for number in range(6)])
    gone = retention.by_size(1000, most=2)
    assert (gone.images, gone.predictions) == (2, 0)
