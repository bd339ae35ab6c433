"""What a look of the monitor says, in which order, and what it no longer says once there is nothing behind it."""

import json
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.entry import Entry
from blastwatch.errors import AliasMoved, AliasNotSet, DataError, RegistryUnreachable
from blastwatch.registry import Registry
from monitoring import watch, workspace
from monitoring.doubts import REASONS
from monitoring.drift import KEEP_PAGES, DriftReport, TooFewPredictions
from monitoring.metrics import MonitorMetrics
from monitoring.performance import STATES
from monitoring.retention import open_retention
from monitoring.store import open_store
from monitoring.watch import Monitor, _loop
from monitoring.windows import Window
from monitoring.workspace import WorkspaceFailed
from tests.cohorts import START, as_records, draw_cohort, unsealed_package, window_of
from tests.unit.monitoring.test_watch_failing import looped

LATER = timedelta(hours=1)


class Blind:
    """A monitor whose looks raise one error after another; the last one stops the loop."""

    def __init__(self, stop, *errors):
        self.stop, self.errors, self.status = stop, list(errors), self

    def fail(self, line):
        self.said = line

    begin = fail

    def look(self):
        error = self.errors.pop(0)
        if not self.errors:
            self.stop.set()
        raise error


def looked(*errors, before=0.0):
    """When the monitor last looked, as its gauge says after these looks."""
    metrics, stop = MonitorMetrics(CollectorRegistry()), threading.Event()
    _loop(Blind(stop, *errors), metrics, 0.01, stop)
    return metrics.registry.get_sample_value("blastwatch_drift_last_look_timestamp_seconds") - before


def test_without_a_champion_nobody_is_called_and_a_look_that_fails_is_none():
    """`BlastwatchMonitorStale` pages once this lies ten minutes back: not right after a start, and not for as long as
    a new installation has no version that serves."""
    began = time.time()
    assert 0 <= looked(DataError("away"), before=began) < 5
    waited = looked(*[AliasNotSet("nobody")] * 20, before=began)
    assert waited >= 0.19
    assert looked(*[DataError("away")] * 20, before=time.time()) < 0.05
    assert looked(*[OSError(28, "No space left on device")] * 3, before=began) < 5  # and the monitor goes on


def test_nothing_that_was_said_of_the_version_before_is_said_of_the_next():
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.watch_model("4", "a" * 64)
    metrics.performance_fell.labels("realised").set(1)
    metrics.performance_verdict.labels("realised").set(1)
    metrics.estimate_state.labels("untrusted").set(1)
    metrics.tell_doubts([{"reason": reason, "since": None} for reason in REASONS])
    metrics.detected.set(1)
    metrics.patients.set(321)
    metrics.window_cells.set(500)
    metrics.labelled_cells.set(812)
    metrics.labelled_agreement.set(0.6)
    metrics.performance.labels("realised", "accuracy", "low").set(0.5)
    metrics.performance_cells.labels("realised", "patient").set(500)
    metrics.estimate_difference.labels("low").set(-0.3)
    metrics.shadow_agreement.set(0.9)
    metrics.shadow_units.labels("patient").set(40)
    metrics.shadow_difference.labels("mean").set(0.1)
    metrics.shadow_evidence.labels("better").set(3)
    metrics.watch_model("5", "b" * 64)  # and its first look fails
    value = metrics.registry.get_sample_value
    assert value("blastwatch_drift_model_info", {"version": "5", "digest": "b" * 64}) == 1
    for name in ("fell", "verdict"):
        told = [value(f"blastwatch_performance_{name}", {"kind": kind}) for kind in ("estimated", "realised")]
        assert told == [0, 0]
    assert [value("blastwatch_estimate_state", {"state": state}) for state in STATES] == [0] * len(STATES)
    assert [value("blastwatch_estimate_doubted", {"reason": reason}) for reason in REASONS] == [0] * len(REASONS)
    assert value("blastwatch_drift_detected") == 0
    counts = ("patient_drift_patients", "drift_window_cells", "labelled_cells")
    assert [value(f"blastwatch_{name}") for name in counts] == [0, 0, 0]
    assert np.isnan([value(f"blastwatch_{name}_agreement_ratio") for name in ("labelled", "shadow")]).all()
    cleared = ("performance", "performance_cells", "estimate_difference", "shadow_units", "shadow_difference",
               "shadow_evidence")  # fmt: skip
    assert [name for name in cleared for metric in getattr(metrics, name).collect() if metric.samples] == []


def test_another_version_has_patients_of_its_own(settings):
    said = ["4"]

    def fetched():
        return SimpleNamespace(
            entry=SimpleNamespace(version=said[-1]),
            package=SimpleNamespace(digest=said[-1] * 64, info=SimpleNamespace(synthetic=True)),
        )

    monitor = Monitor(settings, MonitorMetrics(CollectorRegistry()), fetch=fetched)
    monitor._watched()
    monitor._patients, monitor._window = "of version 4", ["a"]
    monitor._watched()
    assert monitor._patients == "of version 4"
    said.append("5")
    monitor._watched()
    assert (monitor._patients, monitor._window) == (None, None)
    monitor.close()


@pytest.fixture(scope="module")
def cohort():
    return draw_cohort(np.random.default_rng(2), patients=12, cells=40)


@pytest.fixture(scope="module")
def package(cohort, tmp_path_factory):
    return unsealed_package(tmp_path_factory.mktemp("watch") / "package", cohort[cohort["group"] < "P008"])


def entry(version="1", **facts):
    facts = {"digest": "d" * 64, "promoted_at": START.isoformat()} | facts
    return Entry(version=version, run_id="", created="", synthetic=True, registered_by="", **facts)


@pytest.fixture
def store(settings):
    with open_store(settings.predictions_url) as opened:
        yield opened


@pytest.fixture
def cells(cohort):
    return as_records(window_of(cohort, ["P008", "P009", "P010"], 60, np.random.default_rng(0)), digest="d" * 64)


@pytest.fixture
def made(monkeypatch):
    """Stands for Evidently: drift in every window of 30 cells, with a page and a report; counts them."""
    windows = []

    def compare(_package, current, *, version, folder, minimum, repeated, keyed, **_):
        if len(current) < minimum:
            raise TooFewPredictions(f"Expected at least {minimum} predictions but got {len(current)}.")
        windows.append(current["id"].tolist())
        folder.mkdir(parents=True, exist_ok=True)
        stem = folder / f"drift-20261101T{len(windows):06d}.000000Z-v{version}"
        stem.with_name(f"{stem.name}.html").write_text("a page")
        window = {"since": START.isoformat(), "until": (START + LATER).isoformat(), "cells": len(current),
                  "patients": None, "repeated": repeated, "caution": None}  # fmt: skip
        column = {"name": "od_red", "score": 2.0, "threshold": 1.0, "drifted": True}
        document = {"version": version, "window": window, "drifted": True, "columns": [column], "causes": [],
                    "report": ""}  # fmt: skip
        stem.with_name(f"{stem.name}.json").write_text(json.dumps(document))
        return DriftReport(document, None)

    monkeypatch.setattr(watch, "compare", compare)
    monkeypatch.setattr(workspace, "add_run", lambda *_, **__: None)
    return windows


@pytest.fixture
def monitor(settings, package, monkeypatch, made):
    """One that follows the registry; `monitor.says[alias]` is the entry, or the error, that it is told."""
    says = {"champion": entry(), "challenger": AliasNotSet("no challenger")}

    def proven(_self, alias):
        if isinstance(says[alias], Exception):
            raise says[alias]
        return says[alias]

    monkeypatch.setattr(Registry, "proven", proven)
    monkeypatch.setattr(Registry, "fetch_entry", lambda *_: package)
    opened = Monitor(settings, MonitorMetrics(CollectorRegistry()))
    opened.says, opened.value = says, opened._metrics.registry.get_sample_value
    yield opened
    opened.close()


def frame(*ids):
    return Window(cells=pd.DataFrame({"id": [*ids, *(f"cell {number}" for number in range(30))]}), repeated=0)


def detected(monitor):
    return monitor.value("blastwatch_drift_detected"), monitor.value("blastwatch_drift_score", {"column": "od_red"})


def test_the_watched_version_stays_while_the_registry_is_away_or_an_alias_is_moved_by_hand(monitor, store, cells):
    store.add(cells[:40])
    assert monitor.look().problem == "" and monitor.status.document()["problem"] is None
    assert monitor.value("blastwatch_drift_model_info", {"version": "1", "digest": "d" * 64}) == 1
    for number, error in enumerate((RegistryUnreachable("MLflow is away."), AliasMoved("Moved by hand."))):
        monitor.says |= {"champion": error, "challenger": error}
        store.add(cells[: 50 + number])
        monitor._metrics.last_look.set(0)
        look = monitor.look()
        assert look.report is not None and detected(monitor) == (1, 2)
        assert f"{error} Version 1 is watched as before." in look.problem
        assert monitor.status.document()["problem"] == look.problem
        assert monitor.value("blastwatch_drift_last_look_timestamp_seconds") > 0
    monitor.says |= {"champion": entry(), "challenger": entry("2", digest="e" * 64)}
    assert monitor.look().problem == ""


def test_a_challenger_that_is_moved_by_hand_is_not_compared(monitor, store, monkeypatch):
    compared = []
    monkeypatch.setattr(watch, "shadow_report", lambda _store, _champion, challenger, **_: compared.append(challenger))
    monitor.says["challenger"] = entry("2", digest="e" * 64)
    monitor.look()
    monitor.says["challenger"] = AliasMoved("The challenger was moved.")
    assert "The challenger was moved. Version 2 is watched as before." in monitor.look().problem
    assert [one.version for one in compared] == ["2", "2"]


def test_a_promotion_of_a_clock_that_ran_ahead_silences_nothing_for_long(monitor, store, cohort):
    now = datetime.now(UTC)
    monitor.says["champion"] = entry(promoted_at=(now + timedelta(days=300)).isoformat())
    (one,) = as_records(cohort.iloc[:1], digest="e" * 64, start=now - timedelta(minutes=1))
    store.add([replace(one, model_version="0")])
    assert monitor.look().problem == ""  # services may be following it just now
    monitor._seen = {promotion: at - LATER for promotion, at in monitor._seen.items()}  # an hour later
    assert monitor.look().problem.startswith("The newest predictions are of version 0, and version 1 is watched.")


def test_predictions_of_another_version_than_the_watched_one_are_said(monitor, store, cohort, cells):
    def answered(version, digest, start):
        (one,) = as_records(cohort.iloc[:1], digest=digest * 64, start=start)
        store.add([replace(one, model_version=version)])

    answered("0", "e", START)  # within the moment that services take to follow a promotion
    assert monitor.look().problem == ""
    store.add(cells)
    answered("0", "e", START + LATER)
    look = monitor.look()
    assert look.problem.startswith("The newest predictions are of version 0, and version 1 is watched. See which one")
    assert monitor.status.document()["problem"] == look.problem
    answered("1", "d", START + 2 * LATER)
    assert monitor.look().problem == ""
    monitor.says["challenger"] = entry("2", digest="f" * 64)
    answered("1", "d", START + 3 * LATER)
    answered("2", "f", START + 3 * LATER + timedelta(minutes=5))  # in a canary
    assert monitor.look().problem == ""
    answered("2", "f", START + 4 * LATER)  # instead of the champion
    assert "are of version 2" in monitor.look().problem
    answered("1", "d", START + 5 * LATER)
    answered("0", "e", START + 5 * LATER + timedelta(minutes=5))
    assert "are of version 0" in monitor.look().problem


def test_a_workspace_that_fails_hides_no_drift_and_keeps_no_page_too_many(monitor, settings, monkeypatch):
    def fail(*_, **__):
        raise WorkspaceFailed("the workspace is damaged")

    monkeypatch.setattr(workspace, "add_run", fail)
    fetched = monitor._watched()
    for number in range(KEEP_PAGES + 10):
        assert monitor._compare(fetched, frame(str(number))).report is not None
    assert detected(monitor) == (1, 2) and len(list(settings.drift.glob("*.html"))) == KEEP_PAGES
    assert monitor.value("blastwatch_drift_failures_total") == KEEP_PAGES + 10
    look = monitor.look()
    assert "the workspace is damaged" not in look.problem  # there was no report this time
    assert monitor._compare(fetched, frame("again")).report and monitor._problems[-1] == "the workspace is damaged"


def test_one_prediction_with_a_time_ahead_hides_none_of_those_behind_it(monitor, made):
    fetched = monitor._watched()
    for number in range(3):
        window = frame(str(number), "of tomorrow")
        assert monitor._compare(fetched, window).report is not None
        assert monitor._compare(fetched, window).reason == "no prediction since the last report"
    assert len(made) == 3


def test_an_image_that_comes_again_is_no_other_window_and_is_said(monitor, store, cells):
    store.add(cells)
    assert monitor.look().report.document["window"]["repeated"] == 0
    again = [replace(cells[0], id=f"again {n}", time=cells[-1].time + timedelta(seconds=n)) for n in range(1, 4)]
    store.add(again)
    assert monitor.look().reason == "no prediction since the last report"
    store.add([replace(cells[0], id="another", pixel_sha256="a" * 64, time=again[-1].time)])
    window = monitor.look().report.document["window"]
    assert (window["cells"], window["repeated"]) == (61, 3)
    assert monitor.value("blastwatch_drift_window_cells") == 61


def test_a_look_reaches_back_to_another_patient(settings, monitor, store, cells, made):
    monitor._settings = replace(settings, drift_window=30)
    store.add([replace(cell, patient="b" if n < 30 else "a") for n, cell in enumerate(cells)])
    assert monitor.look().report is not None and len(made[-1]) == 60


def test_predictions_of_a_clock_that_ran_ahead_hide_none_of_the_right_time_and_are_said(
    monitor, settings, store, cells, made
):
    now = datetime.now(UTC)
    wrong = [replace(cell, id=f"ahead {n}", time=now + timedelta(days=1, seconds=n)) for n, cell in enumerate(cells)]
    right = [replace(cell, time=now - timedelta(seconds=n)) for n, cell in enumerate(cells[:40])]
    store.add(wrong)
    assert monitor.look().report is None and made == []
    store.add(right)
    look = monitor.look()
    assert look.report is not None and sorted(made[-1]) == sorted(cell.id for cell in right)
    assert look.problem.startswith("60 predictions carry a time ahead of this clock, up to ")
    assert monitor.status.document()["problem"] == look.problem
    assert monitor.value("blastwatch_drift_ahead_predictions") == 60
    assert _estimated_until(monitor) == max(cell.time for cell in right)
    store.add([replace(cells[0], id="a little ahead", pixel_sha256="a" * 64, time=now + timedelta(minutes=2))])
    assert monitor.look().report is not None and made[-1][-1] == "a little ahead"
    assert _estimated_until(monitor) == now + timedelta(minutes=2)
    with open_retention(settings.predictions_url) as retention:
        retention.by_age(now + timedelta(days=2))
    monitor.look()
    assert monitor.value("blastwatch_drift_ahead_predictions") == 0


def test_what_lies_ahead_is_exported_from_the_first_look_on(monitor, settings, store, cells):
    """`BlastwatchClocksDiffer` goes by its changes, and a restart is none."""
    store.add([replace(cell, time=datetime.now(UTC) + timedelta(days=1)) for cell in cells[:5]])
    assert monitor.value("blastwatch_drift_ahead_predictions") is None
    monitor._watched()
    assert monitor.value("blastwatch_drift_ahead_predictions") is None
    for _ in range(2):
        monitor.look()
        assert monitor.value("blastwatch_drift_ahead_predictions") == 5


def _estimated_until(monitor):
    """Time of the newest prediction behind the estimate."""
    return datetime.fromisoformat(monitor.status.document()["performance"]["now"]["latest"]["until"])


def test_cells_that_are_forgotten_take_their_verdict_with_them(monitor, settings, store, cells, monkeypatch):
    findings = []
    monkeypatch.setattr(monitor._retraining, "look", lambda _version, found, **_: findings.append(found))
    store.add(cells)
    monitor.look()
    assert detected(monitor) == (1, 2) and monitor.status.document()["state"] == "drift"
    with open_retention(settings.predictions_url) as retention:
        retention.by_age(START + LATER)
    assert monitor.look().report is None
    assert detected(monitor) == (0, None)
    assert monitor.value("blastwatch_drift_threshold", {"column": "od_red"}) is None
    told = monitor.status.document()
    assert (told["state"], told["columns"]) == ("waiting", []) and "Expected at least 30" in told["note"]
    assert [found.verdict for found in findings] == [True, False] and findings[1].report is None
    store.add(cells)  # the same ones: a report again
    assert monitor.look().report is not None and detected(monitor) == (1, 2)


def test_an_alias_that_was_taken_away_ends_no_verdict(monitor, store, cells):
    """Services go on with the version that they have."""
    store.add(cells)
    monitor.look()
    monitor.says["champion"] = AliasNotSet("Nobody carries the alias.")
    look = monitor.look()
    assert look.problem == "Nobody carries the alias. Version 1 is watched as before."
    assert detected(monitor) == (1, 2)
    told = monitor.status.document()
    assert (told["state"], told["problem"]) == ("drift", look.problem)


def test_where_no_version_serves_yet_that_is_no_failure(monitor, capsys):
    monitor.says["champion"] = AliasNotSet("nobody carries the alias in sqlite:///mlflow.db")
    looped(monitor)
    assert monitor.value("blastwatch_drift_failures_total") == 0
    told = monitor.status.document()
    assert told["state"] == "waiting" and told["note"].startswith("Nothing to watch yet: no version serves.")
    assert "mlflow.db" not in told["note"]  # a page shows no address; the log does
    assert "Nothing to watch yet: nobody carries the alias in sqlite:///mlflow.db" in capsys.readouterr().err


def test_the_interval_is_told():
    metrics, stop = MonitorMetrics(CollectorRegistry()), threading.Event()
    _loop(Blind(stop, DataError("away")), metrics, 0.25, stop)
    assert metrics.registry.get_sample_value("blastwatch_drift_interval_seconds") == 0.25
