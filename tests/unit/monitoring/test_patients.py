"""Who came, out of the database: when a patient enters, with which cells, and who does not. On PostgreSQL as well:
tests/integration/test_monitor_store.py."""

from datetime import timedelta

import pytest

from monitoring import patients
from monitoring.patients import ALL_AGAIN, FEWEST_CELLS, MOST_CELLS, Patients
from monitoring.retention import open_retention
from monitoring.store import StoreUnavailable, open_store
from monitoring.windows import AHEAD
from tests.cohorts import NOON, record
from tests.patient_streams import cells_of

HOUR = timedelta(hours=1)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path / 'predictions.db'}"


@pytest.fixture
def store(url):
    with open_store(url) as opened:
        yield opened


@pytest.fixture
def who(store):
    return Patients(store, model_digest="d", settle=HOUR)


def test_a_patient_enters_once_with_the_first_cells_of_an_hour(store, who):
    store.add(cells_of("a", NOON, [0.1] * 20) + cells_of("a", NOON + HOUR, [0.9] * 20))
    early = who.look(NOON + timedelta(minutes=59))
    assert (len(early.rows), early.waiting, early.few) == (0, 1, 0)
    came = who.look(NOON + HOUR)
    assert came.rows["probability"].tolist() == [pytest.approx(0.1)] and came.first[0] == NOON
    assert (came.waiting, came.few) == (0, 0) and 0 <= came.uniforms[0] < 1
    store.add(cells_of("a", NOON + 30 * HOUR, [0.9] * 20))
    again = who.look(NOON + 40 * HOUR)
    assert again.rows.equals(came.rows) and list(again.uniforms) == list(came.uniforms)


def test_so_many_cells_at_most_and_at_least(store, who):
    store.add(cells_of("many", NOON, [0.2] * MOST_CELLS + [1.0] * 30))
    store.add(cells_of("enough", NOON, [0.4] * FEWEST_CELLS) + cells_of("few", NOON, [0.4] * (FEWEST_CELLS - 1)))
    came = who.look(NOON + HOUR)
    assert sorted(came.rows["probability"].round(6)) == [0.2, 0.4] and came.few == 1


def test_cells_without_a_key_and_of_other_versions_are_nobody(store, who):
    store.add(cells_of("", NOON, [0.5] * 30) + cells_of("b", NOON, [0.5] * 30, digest="e"))
    came = who.look(NOON + HOUR)
    assert (len(came.rows), came.waiting, came.few) == (0, 0, 0) and came.rows["probability"].dtype == float


def test_patients_stand_in_the_order_in_which_they_came_and_late_ones_at_the_end(store, who):
    for number, key in enumerate(("c", "b", "a")):
        store.add(cells_of(key, NOON + number * HOUR, [0.1 * (number + 1)] * 20))
    assert who.look(NOON + 9 * HOUR).rows["probability"].round(6).tolist() == [0.1, 0.2, 0.3]
    store.add(cells_of("waited", NOON + HOUR / 2, [0.7] * 20))  # on a service's disk, while the database was away
    late = who.look(NOON + 9 * HOUR + timedelta(minutes=1))
    assert late.rows["probability"].round(6).tolist() == [0.1, 0.2, 0.3, 0.7]


def test_cells_that_waited_for_the_database_let_a_patient_of_too_few_enter_within_the_hour(store, who):
    store.add(cells_of("a", NOON, [0.1] * 4) + cells_of("b", NOON + HOUR, [0.2] * 20))
    assert (came := who.look(NOON + 2 * HOUR)).few == 1 and len(came.rows) == 1
    store.add(cells_of("a", NOON + timedelta(minutes=5), [0.3] * 46) + cells_of("c", NOON + 3 * HOUR, [0.4] * 3))
    store.add(cells_of("a", NOON + 30 * HOUR, [0.9] * 20))
    early = who.look(NOON + 2 * HOUR + timedelta(minutes=1))
    assert early.few == 1 and early.rows.equals(came.rows)
    late = who.look(NOON + 5 * HOUR)
    assert late.few == 1  # who still has too few
    assert late.rows["probability"].round(6).tolist() == [0.2, round((4 * 0.1 + 46 * 0.3) / 50, 6)]
    assert late.first.tolist() == [NOON + HOUR, NOON]
    again = who.look(NOON + 9 * HOUR)
    assert again.rows.equals(late.rows) and again.few == 1


def test_a_database_that_stumbles_in_the_first_look_hides_nobody_for_an_hour(store, who, monkeypatch):
    keys = ["a", "b", "c", "d"]
    for number, key in enumerate(keys):  # all of them longer ago than a look between goes back
        store.add(cells_of(key, NOON + number * HOUR, [0.1 * (number + 1)] * 20))
    cells, at = store.patient_cells, NOON + timedelta(days=9)

    def stumbles(patient, **asked):
        if patient == "c":
            raise StoreUnavailable("away for a moment")
        return cells(patient, **asked)

    with monkeypatch.context() as patched:
        patched.setattr(store, "patient_cells", stumbles)
        with pytest.raises(StoreUnavailable):
            who.look(at)
    came = who.look(at + timedelta(minutes=1))
    assert came.rows["probability"].round(6).tolist() == [0.1, 0.2, 0.3, 0.4]


def test_whoever_is_deleted_is_forgotten_within_the_hour(store, url, who):
    store.add(cells_of("a", NOON, [0.1] * 20) + cells_of("b", NOON, [0.2] * 20))
    assert len(who.look(NOON + HOUR).rows) == 2
    with open_retention(url) as retention:
        retention.forget("a")
    assert len(who.look(NOON + HOUR + ALL_AGAIN).rows) == 1


def test_whose_first_cells_are_deleted_by_age_enters_anew_with_those_that_are_left(store, url, who):
    """As for a monitor that starts anew: the first of a block would else stay when others of their time have left."""
    store.add(cells_of("a", NOON, [0.1] * 20) + cells_of("a", NOON + 30 * HOUR, [0.3] * 20))
    store.add(cells_of("b", NOON + 9 * HOUR, [0.2] * 20))
    assert who.look(NOON + 40 * HOUR).rows["probability"].round(6).tolist() == [0.1, 0.2]
    with open_retention(url) as retention:
        retention.by_age(NOON + 5 * HOUR)
    came = who.look(NOON + 42 * HOUR)
    assert came.rows["probability"].round(6).tolist() == [0.2, 0.3]
    assert came.first.tolist() == [NOON + 9 * HOUR, NOON + 30 * HOUR]
    fresh = Patients(store, model_digest="d", settle=HOUR).look(NOON + 42 * HOUR)
    assert fresh.rows.equals(came.rows) and fresh.first.equals(came.first)


def test_a_look_of_a_clock_that_ran_ahead_holds_off_no_other(store, url, who):
    store.add(cells_of("a", NOON, [0.1] * 20) + cells_of("b", NOON, [0.2] * 20))
    assert len(who.look(NOON + timedelta(days=30)).rows) == 2
    with open_retention(url) as retention:
        retention.forget("a")
    assert len(who.look(NOON + 3 * HOUR).rows) == 1


def test_whose_cells_lay_ahead_and_counted_by_the_wrong_clock_leave_once_it_is_right(store, who):
    store.add(cells_of("a", NOON, [0.1] * 20))
    store.add(cells_of("enough", NOON + 2 * HOUR, [0.2] * 20) + cells_of("few", NOON + 2 * HOUR, [0.2] * 3))
    wrong = who.look(NOON + 4 * HOUR)
    assert (len(wrong.rows), wrong.few) == (2, 1)
    right = who.look(NOON + HOUR)
    anew = Patients(store, model_digest="d", settle=HOUR).look(NOON + HOUR)
    assert len(right.rows) == len(anew.rows) == 1 and right.first.equals(anew.first) and right.few == anew.few == 0


def test_patients_whose_cells_lie_ahead_make_nobody_leave(store, who, monkeypatch):
    monkeypatch.setattr(patients, "MOST_PATIENTS", 3)
    for number in range(2):
        store.add(cells_of(f"p{number}", NOON + number * HOUR, [0.1 * number] * 20))
    before = who.look(NOON + 3 * HOUR)
    for number in range(3):
        store.add(cells_of(f"ahead{number}", NOON + timedelta(days=365, hours=number), [0.9] * 20))
    store.add(cells_of("little", NOON + 3 * HOUR + AHEAD / 2, [0.5] * 20))
    came = who.look(NOON + 3 * HOUR)
    assert came.rows.equals(before.rows) and came.waiting == 1 and not came.cut
    later = Patients(store, model_digest="d", settle=HOUR).look(NOON + 9 * HOUR)
    assert later.rows["probability"].round(6).tolist() == [0.0, 0.1, 0.5] and later.waiting == 0


def test_the_latest_patients_alone(store, who, monkeypatch):
    monkeypatch.setattr(patients, "MOST_PATIENTS", 3)
    for number in range(5):
        store.add(cells_of(f"p{number}", NOON + number * HOUR, [0.1 * number] * 20))
        assert who.look(NOON + (number + 1) * HOUR).cut is (number >= 2)
    assert who.look(NOON + 9 * HOUR).rows["probability"].round(6).tolist() == [0.2, 0.3, 0.4]


def test_who_comes_again_after_making_room_enters_no_second_time(store, who, monkeypatch):
    """Between two looks at everybody, too: the first cell of today is not the patient's first."""
    monkeypatch.setattr(patients, "MOST_PATIENTS", 3)
    for number in range(5):
        store.add(cells_of(f"p{number}", NOON + number * HOUR, [0.1 * number] * 20))
    later = NOON + timedelta(days=9)
    assert who.look(later).rows["probability"].round(6).tolist() == [0.2, 0.3, 0.4]
    store.add(cells_of("p0", later, [0.9] * 20) + cells_of("new", later, [0.5] * 20))
    for minutes in (61, 62, 90, 122, 123):
        came = who.look(later + timedelta(minutes=minutes))
        assert came.rows["probability"].round(6).tolist() == [0.3, 0.4, 0.5] and came.waiting == 0
    fresh = Patients(store, model_digest="d", settle=HOUR).look(later + 3 * HOUR)
    assert fresh.rows["probability"].tolist() == came.rows["probability"].tolist()


def test_who_has_room_again_stands_where_they_stood(store, url, who, monkeypatch):
    monkeypatch.setattr(patients, "MOST_PATIENTS", 3)
    for number in range(5):
        store.add(cells_of(f"p{number}", NOON + number * HOUR, [0.1 * number] * 20))
        who.look(NOON + (number + 1) * HOUR)
    with open_retention(url) as retention:
        retention.forget("p3")
    again = who.look(NOON + 9 * HOUR)
    assert again.rows["probability"].round(6).tolist() == [0.1, 0.2, 0.4]
    assert again.first.is_monotonic_increasing


def test_a_statistic_that_old_rows_lack_is_unknown_of_the_patient(store, who):
    statistics = record().statistics | {"chroma_noise": float("nan")}
    store.add([*cells_of("a", NOON, [0.1] * 19), record("old", time=NOON, patient="a", statistics=statistics)])
    row = who.look(NOON + HOUR).rows.iloc[0]
    assert row.isna()["chroma_noise"] and not row.isna()["focus"]
