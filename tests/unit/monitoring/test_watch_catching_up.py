"""After an outage the monitor looks at what came meanwhile, window by window, before it looks at the present."""

import json
import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.entry import Entry
from blastwatch.errors import DataError
from blastwatch.registry import Fetched
from monitoring import catching_up, watch, workspace
from monitoring.drift import DriftReport, DriftReportFailed, compare, names_of
from monitoring.metrics import MonitorMetrics
from monitoring.store import open_store
from monitoring.watch import Monitor
from monitoring.windows import ends, spanned, told
from tests.cohorts import NOON, START, as_records, draw_cohort, record, unsealed_package, window_of

WINDOW = 60
NIGHT, MORNING = START + timedelta(hours=8), START + timedelta(hours=16)


@pytest.fixture(scope="module")
def cohort():
    return draw_cohort(np.random.default_rng(2), patients=14, cells=40)


@pytest.fixture(scope="module")
def package(cohort, tmp_path_factory):
    return unsealed_package(tmp_path_factory.mktemp("past") / "package", cohort[cohort["group"] < "P010"])


@pytest.fixture
def store(settings):
    with open_store(settings.predictions_url) as opened:
        yield opened


@pytest.fixture
def came(store, cohort):
    """Stores so many cells of four patients from a moment on, one a second; darker ones have less light."""
    random = np.random.default_rng(0)

    def add(cells, start, *, darker=0.0):
        rows = window_of(cohort, ["P010", "P011", "P012", "P013"], min(cells, 160), random)
        rows = rows.sample(cells, replace=cells > len(rows), random_state=random)
        store.add(as_records(rows.assign(brightness=rows["brightness"] - darker), digest="d" * 64, start=start))

    return add


@pytest.fixture
def judged(monkeypatch):
    """Stands for Evidently, by the mean brightness; `judged.refuse` raises what a window is to be refused with."""

    def by_brightness(_package, current, *, version, folder, timestamp, repeated, keyed, **_):
        by_brightness.refuse(current)
        by_brightness.windows.append(current["id"].tolist())
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"drift-20261101T{len(names_of(folder, '.json')):06d}.000000Z-v{version}.html"
        score = float(10 - current["brightness"].mean()) / 4
        column = {"name": "brightness", "score": score, "threshold": 1.0, "drifted": score >= 1}
        document = {"version": version, "digest": "d" * 64, "window": told(current, repeated, keyed=keyed),
                    "drifted": column["drifted"], "causes": [{"cause": "illumination"}], "report": str(page),
                    "columns": [column]}  # fmt: skip
        page.with_suffix(".json").write_text(json.dumps(document))
        return DriftReport(document, None)

    by_brightness.windows, by_brightness.refuse = [], lambda _current: None
    monkeypatch.setattr(watch, "compare", by_brightness)
    return by_brightness


@pytest.fixture
def begin(settings, package, monkeypatch):
    """Starts a monitor of version 1; `findings` are what each of its looks hands to whatever trains anew. By default it
    should look so often that an outage lies before each look."""
    entry = Entry(
        version="1", run_id="", created="", synthetic=True, registered_by="", digest="d" * 64,
        promoted_at=START.isoformat(),
    )  # fmt: skip
    monkeypatch.setattr(workspace, "add_run", lambda *_, **__: None)
    opened = []

    def start(interval=1e-6):
        monitor = Monitor(
            replace(settings, drift_window=WINDOW, drift_interval=interval),
            MonitorMetrics(CollectorRegistry()),
            fetch=lambda: Fetched(entry, package),
        )
        monitor.findings = []
        monkeypatch.setattr(monitor, "_tell_shadow", lambda _champion: None)
        monkeypatch.setattr(monitor._retraining, "look", lambda _, found, **__: monitor.findings.append(found))
        opened.append(monitor)
        return monitor

    yield start
    for monitor in opened:
        monitor.close()


def timeline(monitor):
    return [(point["at"], point["drifted"]) for point in monitor.status.document()["timeline"]]


def second(start, number):
    return (start + timedelta(seconds=number)).isoformat()


def test_a_dark_night_that_is_over_stands_where_it_was(begin, came, caplog):
    """With Evidently itself, and thresholds of drawn patients."""
    monitor = begin()
    came(WINDOW, START)
    assert not monitor.look().report.drifted
    came(160, NIGHT, darker=14)
    came(200, MORNING)
    with caplog.at_level(logging.WARNING, "blastwatch.monitor"):
        look = monitor.look()
    assert not look.report.drifted and look.problem == ""
    assert monitor._metrics.registry.get_sample_value("blastwatch_drift_detected") == 0
    assert timeline(monitor) == [
        (second(START, 59), False), (second(NIGHT, 59), True), (second(NIGHT, 119), True), (second(MORNING, 19), True),
        (second(MORNING, 79), False), (second(MORNING, 139), False), (second(MORNING, 199), False),
    ]  # fmt: skip
    told = monitor.status.document()
    assert told["state"] == "calm"
    assert told["since"] == {"at": second(MORNING, 79), "at_least": False, "reports": 3}
    (said,) = (record.getMessage() for record in caplog.records if record.name == "blastwatch.monitor")
    assert said.startswith(
        "Version 1: drift in 3 of 5 windows that came while no monitor looked, "
        f"from {second(NIGHT, 0)} until {second(MORNING, 19)}. The worst of them: Version 1, 60 cells: drift in "
    )
    assert [found.report.drifted for found in monitor.findings] == [False, False]  # none starts a training
    assert monitor.look().reason == "no prediction since the last report"
    assert watch.compare is compare


def test_an_outage_of_a_window_or_less_changes_nothing(begin, came, judged, caplog):
    monitor = begin()
    came(300, START)  # more than a window, and no report before: the version has just come
    monitor.look()
    came(WINDOW, NIGHT, darker=8)
    assert monitor.look().report.drifted
    came(WINDOW - 1, MORNING)
    monitor.look()
    assert len(judged.windows) == 3 and not caplog.records


def test_who_sends_more_than_a_window_between_two_looks_has_no_outage(begin, came, judged):
    monitor = begin(interval=60)
    came(WINDOW, START)
    monitor.look()
    came(300, NIGHT)
    monitor.look()
    assert len(judged.windows) == 2
    monitor._past._at -= timedelta(seconds=181)
    came(300, MORNING)
    monitor.look()
    assert len(judged.windows) == 7


def test_the_windows_hold_every_cell_that_came_once(begin, came, judged):
    monitor = begin()
    came(WINDOW, START)
    monitor.look()
    came(160, NIGHT)
    came(200, MORNING)
    monitor.look()
    seen = [cell for window in judged.windows for cell in window]
    assert len(judged.windows) == 7 and len(seen) == len(set(seen)) == 420


def test_what_lies_before_the_limit_is_told_with_the_command_for_a_day(begin, came, judged, store, caplog, monkeypatch):
    monkeypatch.setattr(catching_up, "MOST_WINDOWS", 2)
    monitor = begin()
    came(WINDOW, START)
    monitor.look()
    came(160, NIGHT, darker=14)
    came(200, MORNING)
    look = monitor.look()
    assert [at for at, _ in timeline(monitor)[1:]] == [second(MORNING, number) for number in (79, 139, 199)]
    first, behind = second(START, 59).replace("+00:00", ".000001+00:00"), second(MORNING, 20)
    assert look.problem == (
        "180 predictions of version 1 that came while no monitor looked were not looked at for drift: One look makes "
        f"up for 2 windows at most. Look at them: blastwatch drift report --ref 1 --since {first} --until {behind}"
    )
    assert [record.getMessage() for record in caplog.records] == [look.problem]
    since, until = (datetime.fromisoformat(moment) for moment in (first, behind))
    assert len(spanned(store, model_digest="d" * 64, since=since, until=until).cells) == 180
    monitor.look()
    assert monitor.status.document()["problem"] == look.problem and len(caplog.records) == 1
    found, said = monitor._past._not_looked_at[0]
    monitor._past._not_looked_at = [(found - timedelta(days=1), said)]
    assert monitor.look().problem == ""


def test_a_monitor_that_starts_anew_goes_on_from_the_last_report_on_the_disk(begin, came, judged):
    monitor = begin()
    came(WINDOW, START)
    monitor.look()
    monitor.close()
    came(160, NIGHT, darker=14)
    came(200, MORNING)
    anew = begin()
    anew.look()
    assert [drifted for _, drifted in timeline(anew)] == [False, True, True, True, False, False, False]
    assert anew.status.document()["since"]["at"] == second(MORNING, 79)
    begin().look()
    assert len(judged.windows) == 8  # the present alone


def test_looks_that_fail_lose_nothing_and_make_no_window_twice(begin, came, judged):
    monitor = begin()
    came(WINDOW, START)
    monitor.look()

    def full(current):
        if current["time"].max() >= NIGHT + timedelta(seconds=100):
            raise DriftReportFailed("The disk is full.")

    judged.refuse = full
    came(160, NIGHT, darker=14)
    for _ in range(3):
        with pytest.raises(DriftReportFailed):
            monitor.look()
    assert len(judged.windows) == 2
    judged.refuse = lambda _current: None
    came(200, MORNING)
    monitor.look()
    assert [drifted for _, drifted in timeline(monitor)] == [False, True, True, True, False, False, False]


def test_a_window_that_cannot_be_compared_keeps_nobody_from_the_present(begin, came, judged):
    def refuse(current):
        if current["time"].min() == NIGHT:
            raise DataError("Expected finite values.")

    monitor = begin()
    came(WINDOW, START)
    monitor.look()
    judged.refuse = refuse
    came(200, NIGHT)
    look = monitor.look()
    assert look.report is not None and len(judged.windows) == 4
    assert look.problem.startswith("60 predictions of version 1 that came while no monitor looked were not looked at")
    assert (
        f"Expected finite values. Look at them: blastwatch drift report --ref 1 --since {NIGHT.isoformat()}"
        in look.problem
    )


def test_cells_of_one_request_stay_in_one_window_and_an_image_that_repeats_fills_none(store):
    times = [0, *[1] * 4, *[2] * 3, 3, 4]
    store.add([record(f"{n:02d}", time=NOON + timedelta(seconds=time)) for n, time in enumerate(times)])
    answers = store.answers(model_digest="d")
    assert ends(answers, 6) == [NOON + timedelta(seconds=2)]  # 5, and 5 are left
    assert ends(answers, 3) == [NOON + timedelta(seconds=time) for time in (1, 2, 3)]
    assert ends(answers, 10) == ends(answers.iloc[:0], 10) == ends(answers.iloc[1:5], 3) == []
    assert ends(answers.assign(pixel_sha256="a" * 64), 3) == []
    assert ends(answers, 3)[0].tzinfo is not None and ends(answers, 3)[0].astimezone(UTC) == NOON + timedelta(seconds=1)
