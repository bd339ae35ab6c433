"""An alarm over patients stands while the change does, also once the patients of before it have left the sequence."""

import dataclasses
import json
from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from blastwatch.package import DriftReference
from monitoring import patients
from monitoring.commands import _print_patients
from monitoring.patient_alarms import FILE, MOST_VALUES, Alarms, Kept, State, begun, not_ahead
from monitoring.patient_blocks import Block
from monitoring.patient_drift import AGAIN, Unlike
from monitoring.patient_report import NOBODY, PatientWatch, followed, told
from monitoring.patients import Came
from monitoring.retention import open_retention
from monitoring.scores import PROBABILITY
from monitoring.store import open_store
from tests.cohorts import NOON, draw_cohort
from tests.patient_streams import cells_of

MOST, HOUR = 200, timedelta(hours=1)
FACTS = {"version": "1", "settle": HOUR}


def two_kinds(random, count, ill):
    return np.where(random.random(count) < ill, random.beta(20, 2, count), random.beta(2, 20, count))


@pytest.fixture(scope="module")
def known():
    return pd.DataFrame({PROBABILITY: two_kinds(np.random.default_rng(0), 24, 0.69)})


@pytest.fixture(scope="module")
def stream():
    """150 patients as those known are, 450 of another mix, 150 as before."""
    random = np.random.default_rng(3)
    return np.concatenate([two_kinds(random, *part) for part in ((150, 0.69), (450, 0.15), (150, 0.69))])


def came(stream, until):
    """The latest of those who came by then."""
    places = np.arange(max(0, until - MOST), until)
    return Came(
        rows=pd.DataFrame({PROBABILITY: stream[places]}),
        first=pd.Series([NOON + int(place) * HOUR for place in places], dtype="datetime64[us, UTC]"),
        uniforms=np.random.default_rng(9).random(len(stream))[places],
        few=0, waiting=0, cut=until >= MOST,
    )  # fmt: skip


def place(moment):
    return (pd.Timestamp(moment) - NOON) // HOUR


def looks(known, stream, untils):
    """The document of each look, which knows what those before it kept."""
    state = State()
    for until in untils:
        document, state = followed(known, came(stream, until), None, state=state, **FACTS)
        yield document


def test_an_alarm_stands_and_keeps_its_date_when_the_patients_of_before_have_left(known, stream):
    first, *later = looks(known, stream, [180, 300, 420, 600])
    (change,) = first["changes"]
    assert first["drifted"] and 145 <= place(change["since"]) <= 155 and change["until"] is None
    assert not change["since_or_before"]
    for document in later:
        assert document["drifted"] and document["changes"] == [change]
        (column,) = document["columns"]
        assert (column["since"], column["found"]) == (change["since"], change["found"])
        assert (column["before"], column["spread"]) == tuple(first["columns"][0][name] for name in ("before", "spread"))
        assert column["evidence"] >= 1 and column["now"] < 0.4 < 0.6 < column["before"]
        assert document["causes"] != []
    assert told(known, came(stream, 600), None, **FACTS)["changes"] != [change]  # of the latest alone


def test_it_ends_with_patients_as_before_and_its_history_stays(known, stream):
    *_, ended, after = looks(known, stream, [180, 420, 600, 750, 750])
    (change,) = ended["changes"]
    assert not ended["drifted"] and 560 <= place(change["until"]) <= 750 - AGAIN
    assert after == ended and ended["columns"][0]["evidence"] < 1
    again = np.concatenate([stream, two_kinds(np.random.default_rng(5), 100, 0.0)])
    *_, document = looks(known, again, [180, 420, 600, 750, 850])
    assert document["drifted"] and document["changes"][0] == change and len(document["changes"]) == 2
    assert 745 <= place(document["columns"][0]["since"]) <= 760


def test_where_all_of_after_the_change_are_gone_it_stands_and_is_no_drift(known, stream, capsys):
    first, state = followed(known, came(stream, 180), None, state=State(), **FACTS)
    gone, still = followed(known, came(stream, 140), None, state=state, **FACTS)
    (column,) = gone["columns"]
    assert not gone["drifted"] and not column["drifted"] and column["now"] is None and gone["causes"] == []
    assert (
        gone["changes"] == first["changes"]
        and still.columns == state.columns
        and column["since"] == first["columns"][0]["since"]
    )
    _print_patients(gone)
    out = capsys.readouterr()
    assert f"{column['since']}  {NOBODY}" in out.out and f"An alarm {NOBODY}." in out.out + out.err
    assert followed(known, came(stream, 420), None, state=still, **FACTS)[0]["drifted"]


def test_where_a_course_goes_on_when_its_patient_is_gone():
    first = came(np.zeros(300), 300)  # the hundredth and later ones
    known = pd.DataFrame({PROBABILITY: [0.1, 0.2]})

    def at(since, after):
        row = {"since": (NOON + since * HOUR).isoformat()}
        one = Kept(baseline=[1.0], evidence=2.0, after=(NOON + after * HOUR).isoformat(), changes=[row])
        found = begun(State(columns={PROBABILITY: one}), known, first)[PROBABILITY]
        return found.since, np.flatnonzero(found.counts).tolist()

    assert at(110, 120) == (10, list(range(21, 200)))
    assert at(20, 120) == (0, list(range(21, 200))) and at(20, 30) == (0, list(range(200)))
    assert at(110.5, 120.5) == (11, list(range(21, 200))) and at(400, 410) == (200, [])


def test_an_alarm_of_a_clock_that_ran_ahead_ends_once_the_clock_is_right(known, stream):
    """One patient of the wrong time was there when it was found: nobody comes later for a year."""
    ahead = came(stream, 180)
    first = ahead.first.copy()
    first.iloc[100] += timedelta(days=365)
    _, state = followed(known, dataclasses.replace(ahead, first=first), None, state=State(), **FACTS)
    assert pd.Timestamp(state.columns[PROBABILITY].after) > NOON + timedelta(days=360)
    state = not_ahead(state, at := NOON + 180 * HOUR)
    assert state.columns[PROBABILITY].after == at.isoformat() and not_ahead(state, at) == state
    for until in (420, 600, 750):
        document, state = followed(known, came(stream, until), None, state=state, **FACTS)
    assert not document["drifted"] and 560 <= place(document["changes"][0]["until"]) <= 750 - AGAIN


def test_an_alarm_over_patients_who_were_stored_late_stands_for_a_monitor_that_starts_anew(known):
    """They stand behind the others for a monitor that runs, and among them, in the order of their cells, for one that
    starts anew, which finds patients as before behind them."""
    random = np.random.default_rng(3)
    values = np.concatenate([two_kinds(random, 150, 0.69), two_kinds(random, 40, 0.1), two_kinds(random, 90, 0.69)])
    hours = np.concatenate([np.arange(150), 40.25 + np.arange(40) / 2, 200 + np.arange(90)])
    uniforms = random.random(280)

    def seen(order):
        return Came(
            rows=pd.DataFrame({PROBABILITY: values[order]}), uniforms=uniforms[order], few=0, waiting=0,
            first=pd.Series([NOON + hour * HOUR for hour in hours[order]], dtype="datetime64[us, UTC]"),
        )  # fmt: skip

    found, state = followed(known, seen(np.arange(190)), None, state=State(), **FACTS)
    (change,) = found["changes"]
    assert found["drifted"] and place(change["since"]) < 60
    anew = np.argsort(hours[:190], kind="stable")
    again, still = followed(known, seen(anew), None, state=state, **FACTS)
    assert again["drifted"] and again["changes"] == [change] and still == state
    for until in range(200, 281, 10):
        runs, _ = followed(known, seen(np.arange(until)), None, state=state, **FACTS)
        starts, _ = followed(known, seen(np.argsort(hours[:until], kind="stable")), None, state=state, **FACTS)
        assert runs["changes"] == starts["changes"] and runs["drifted"] is starts["drifted"]
    assert not runs["drifted"] and place(runs["changes"][0]["until"]) >= 200


def test_of_many_patients_quantiles_are_kept(known):
    stream = np.concatenate([two_kinds(np.random.default_rng(3), *part) for part in ((700, 0.69), (40, 0.0))])
    whole = Came(rows=pd.DataFrame({PROBABILITY: stream}), few=0, waiting=0,
                 first=pd.Series([NOON + n * HOUR for n in range(740)], dtype="datetime64[us, UTC]"),
                 uniforms=np.random.default_rng(9).random(740))  # fmt: skip
    _, state = followed(known, whole, None, state=State(), **FACTS)
    baseline = state.columns[PROBABILITY].baseline
    assert len(baseline) == MOST_VALUES and np.mean(baseline) == pytest.approx(stream[:700].mean(), abs=0.02)


CHANGE = {
    "name": "focus",
    "since": NOON.isoformat(),
    "since_or_before": False,
    "found": NOON.isoformat(),
    "until": None,
}
FOCUS = {"baseline": [0.1, 1 / 3], "evidence": None, "after": NOON.isoformat(), "changes": [CHANGE]}


BLOCK = {"after": NOON.isoformat(), "first": NOON.isoformat(), "seen": NOON.isoformat(), "before": {"focus": [0.1]}}


def file_of(column, **block):
    return json.dumps({"packages": [{"digest": "a", "columns": {"focus": column}, **block}]})


def test_each_package_has_its_own(tmp_path):
    state = State(columns={"focus": Kept(**FOCUS)}, block=Block(**BLOCK))
    assert Alarms(tmp_path, "a").read() == State()
    assert Alarms(tmp_path, "a").write(state) and Alarms(tmp_path, "b").write(State())
    assert Alarms(tmp_path, "a").read() == state and Alarms(tmp_path, "b").read() == State()


def test_a_file_of_before_there_were_blocks_is_read(tmp_path):
    (tmp_path / FILE).write_text(file_of(FOCUS))
    assert Alarms(tmp_path, "a").read() == State(columns={"focus": Kept(**FOCUS)})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "Expecting"),
        ("[]", "list indices"),
        ('{"packages": [{}]}', "no 'digest'"),
        (file_of({}), "missing 4"),
        (file_of(FOCUS | {"baseline": []}), "baseline of focus"),
        (file_of(FOCUS | {"baseline": [1.0, None]}), "baseline of focus"),
        (file_of(FOCUS | {"evidence": "much"}), "ufunc"),
        (file_of(FOCUS | {"after": "2026-01-01T00:00:00"}), "no time with a time zone"),
        (file_of(FOCUS | {"changes": []}), "no change"),
        (file_of(FOCUS | {"changes": [{"name": "focus"}]}), "no since, since_or_before, found, until"),
        (file_of(FOCUS | {"changes": [CHANGE | {"until": "soon"}]}), "Invalid isoformat"),
        (file_of(FOCUS | {"changes": ["focus"]}), "a change of focus has no"),
        (file_of(FOCUS, block=None), "must be a mapping"),
        (file_of(FOCUS, block=BLOCK | {"place": 3}), "'place'"),
        (file_of(FOCUS, block=BLOCK | {"after": "2026-01-01T00:00:00"}), "no time with a time zone"),
        (file_of(FOCUS, block=BLOCK | {"seen": None}), "one of first and seen"),
        (file_of(FOCUS, block=BLOCK | {"before": {"focus": [None]}}), "what the block has of focus"),
    ],
)
def test_a_damaged_file_is_said_and_not_written_over(tmp_path, text, says):
    (tmp_path / FILE).write_text(text)
    damaged = Alarms(tmp_path, "a")
    assert damaged.read() == State() and f"{FILE} cannot be read" in damaged.problem and says in damaged.problem
    assert not damaged.write(State(columns={"focus": Kept(**FOCUS)})) and (tmp_path / FILE).read_text() == text


class Stream(SimpleNamespace):
    """In the place of who came: the first so many."""

    def look(self, at):
        return came(self.values, self.until)


@pytest.fixture
def watch(known, stream, settings, monkeypatch):
    """A monitor's, before whom the stream has come as far as `show` says."""
    monkeypatch.setattr("monitoring.patient_report.patient_means", lambda cells, most: known)
    package = SimpleNamespace(digest="a", drift=dict, reference=lambda: SimpleNamespace(cells=None))

    def started():
        one = PatientWatch(None, package, version="1", settings=settings, keeps=True)
        one._patients = Stream(values=stream)
        return one

    return started


def show(watch, until):
    watch._patients.until = until
    return watch.look(NOON + until * HOUR)


def test_what_could_not_be_kept_is_kept_at_the_next_look(watch, settings):
    settings.drift.parent.mkdir(parents=True, exist_ok=True)
    settings.drift.write_text("where the folder is to be")
    watching = watch()
    assert show(watching, 180)["drifted"] and "cannot be kept" in watching.problem
    settings.drift.unlink()
    document = show(watching, 180)
    assert watching.problem == "" and (settings.drift / FILE).exists()
    assert show(watch(), 420)["changes"] == document["changes"]


def test_a_file_that_is_brought_back_counts_and_is_not_written_over(watch, settings):
    (change,) = show(watch(), 180)["changes"]
    file = settings.drift / FILE
    good = file.read_text()

    def alarms(text):
        return json.loads(text)["packages"][0]["columns"]

    file.write_text("{")
    watching = watch()
    assert show(watching, 420)["changes"] != [change] and "Bring the file back" in watching.problem
    assert file.read_text() == "{"
    file.write_text(good)
    assert show(watching, 420)["changes"] == [change] and watching.problem == ""
    assert alarms(file.read_text()) == alarms(good)
    file.write_text("{")  # while it runs: what it knows stays
    assert show(watching, 420)["changes"] == [change] and watching.problem != ""
    file.write_text(good)
    assert show(watching, 420)["changes"] == [change] and watching.problem == ""
    file.unlink()
    begun_anew = show(watching, 420)["changes"]
    assert begun_anew == told(known_of(watching), came(watching._patients.values, 420), None, **FACTS)["changes"]
    assert begun_anew != [change] and file.exists()


def known_of(watching):
    return watching._known


def test_of_an_alarm_that_stands_each_look_tests_those_who_came_alone(known, stream, monkeypatch):
    tests = []

    def counted(*samples):
        tests.append(samples)
        return ks_2samp(*samples)

    monkeypatch.setattr("scipy.stats.ks_2samp", counted)
    unlike, state, whole = Unlike(), State(), State()
    for until in (180, 400, 420, 430, 600, 750):
        tests.clear()
        document, state = followed(known, came(stream, until), None, state=state, unlike=unlike, **FACTS)
        count = len(tests)
        tests.clear()
        expected, whole = followed(known, came(stream, until), None, state=whole, **FACTS)
        assert (document, state) == (expected, whole)
        assert (count, len(tests)) == {420: (20, 126), 430: (10, 126)}.get(until, (count, len(tests)))
    assert not document["drifted"]


def test_the_monitor_keeps_it_and_the_command_reads_it(settings, monkeypatch):
    monkeypatch.setattr(patients, "MOST_PATIENTS", 60)
    reference = DriftReference(draw_cohort(np.random.default_rng(2), patients=24, cells=10))
    package = SimpleNamespace(digest="d" * 64, drift=dict, reference=lambda: reference)

    def come(store, numbers, probability):
        for number in numbers:
            store.add(cells_of(f"p{number}", NOON + number * HOUR, [probability(number)] * 10, digest="d" * 64))

    def watch(store, **how):
        return PatientWatch(store, package, version="1", settings=settings, **how)

    with open_store(settings.predictions_url) as store:
        come(store, range(20), lambda number: 0.5 + 0.02 * number)
        come(store, range(20, 50), lambda number: 0.001 * number)
        found = watch(store, keeps=True).look(NOON + 60 * HOUR)
        (alarm,) = (change for change in found["changes"] if change["name"] == PROBABILITY)
        assert alarm["until"] is None
        come(store, range(50, 120), lambda number: 0.001 * number)
        with open_retention(settings.predictions_url) as retention:
            retention.by_age(NOON + 40 * HOUR)
        later = watch(store).look(NOON + 130 * HOUR)
        assert alarm in later["changes"] and later["drifted"]
        assert watch(store, keeps=True).look(NOON + 130 * HOUR) == later
