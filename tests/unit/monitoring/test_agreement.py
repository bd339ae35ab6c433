"""The drift page, `/drift.json`, the gauges and the log say the same of the watched version, whatever became of it."""

import json
import re
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.entry import Entry
from blastwatch.errors import AliasNotSet
from blastwatch.registry import Registry
from monitoring import watch, workspace
from monitoring.drift import DriftReport, TooFewPredictions
from monitoring.metrics import MonitorMetrics
from monitoring.page import PageServer, build_app
from monitoring.retention import open_retention
from monitoring.store import StoreUnavailable, open_store
from monitoring.watch import Monitor, _loop
from monitoring.windows import told
from tests.cohorts import START, as_records, draw_cohort, unsealed_package, window_of

WORDS = {"drift": "Drift", "calm": "No drift", "waiting": ("No verdict on version", "Nothing to watch yet")}


def compare(_package, current, *, version, folder, minimum, repeated, keyed, **_):
    """Stands for Evidently: drift where the cells are redder."""
    if len(current) < minimum:
        raise TooFewPredictions(f"Expected at least {minimum} predictions but got {len(current)}.")
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / f"drift-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-v{version}"
    page, score = stem.with_name(f"{stem.name}.html"), float(current["od_red"].mean() / 20)
    page.write_text("a page")
    column = {"name": "od_red", "score": score, "threshold": 1.0, "drifted": score >= 1}
    document = {"version": version, "window": told(current, repeated, keyed=keyed), "drifted": column["drifted"],
                "columns": [column], "causes": [], "report": str(page)}  # fmt: skip
    page.with_name(f"{stem.name}.json").write_text(json.dumps(document))
    return DriftReport(document, None)


class Walk:
    """A monitor, looked at after each look: `states` yields what it should say, and checks gauges and log against its
    document."""

    def __init__(self, settings, package, monkeypatch, capsys):
        self.settings, self.capsys, self.champion = settings, capsys, None
        monkeypatch.setattr(watch, "compare", compare)
        monkeypatch.setattr(workspace, "add_run", lambda *_, **__: None)
        monkeypatch.setattr(Registry, "proven", self.proven)
        monkeypatch.setattr(Registry, "fetch_entry", lambda _, entry: replace(package, digest=entry.digest))
        self.monitor = Monitor(settings, MonitorMetrics(CollectorRegistry()))
        self.store = open_store(settings.predictions_url)
        self.rows = window_of(draw_cohort(np.random.default_rng(2), patients=2, cells=40), ["P000", "P001"], 40,
                              np.random.default_rng(0))  # fmt: skip

    def proven(self, alias):
        if alias != "champion" or self.champion is None:
            raise AliasNotSet(f"nobody is {alias}")
        return self.champion

    def promote(self, version, digest):
        facts = {"run_id": "", "created": "", "synthetic": True, "registered_by": ""}
        self.champion = Entry(version=version, digest=digest * 64, promoted_at=START.isoformat(), **facts)

    def answer(self, digest, hour, *, red, patient=""):
        """Forty cells of an hour, answered by a package."""
        rows = self.rows.assign(od_red=30.0 if red else 10.0)
        made = as_records(rows, digest=digest * 64, start=START + timedelta(hours=hour))
        self.store.add([replace(record, patient=patient) for record in made])

    def look(self):
        """Once, as the monitor's loop does; returns the line of its log."""
        stop, look = threading.Event(), self.monitor.look

        def last():
            stop.set()
            return look()

        self.monitor.look = last
        _loop(self.monitor, self.monitor._metrics, 0.01, stop)
        self.monitor.look = look
        return self.capsys.readouterr().err

    def states(self):
        yield self.says("waiting", "Nothing to watch yet")
        self.promote("2", "b")
        yield self.says("waiting", "Expected at least 30 predictions")
        self.answer("b", 1, red=True)
        yield self.says("drift", "Version 2, 40 cells: drift in od_red")
        self.promote("1", "a")  # a rollback
        self.answer("a", 2, red=False)
        yield self.says("calm", "Version 1, 40 cells: no drift", version="1")
        self.promote("2", "b")  # again, before it has answered anything new
        yield self.says("drift", "Version 2, 40 cells: drift in od_red")
        yield self.says("drift", "no prediction since the last report")
        for hour in range(3, 16):
            self.answer("b", hour, red=False, patient="late" if hour == 15 else "")
        with pytest.MonkeyPatch.context() as away:
            away.setattr(Monitor, "_retain", self.away)
            yield self.says("calm", "This look failed and will be tried again: The database is away.")
        yield self.says("calm", "no prediction since the last report")
        self.answer("b", 16, red=True, patient="late")
        for hour in range(17, 30):
            self.answer("b", hour, red=True, patient="late")
        yield self.says("drift", "drift in od_red")
        with open_retention(self.settings.predictions_url) as retention:
            retention.forget("late")
        yield self.says("calm", "no drift")  # of cells that are older than those of the report before
        self.promote("3", "b")  # the same package once more
        with pytest.MonkeyPatch.context() as away:
            away.setattr(Monitor, "_retain", self.away)
            yield self.says("calm", "This look failed", version="3")
        with open_retention(self.settings.predictions_url) as retention:
            retention.by_age(START + timedelta(days=9))
        yield self.says("waiting", "Expected at least 30 predictions", version="3")

    def away(self, *_):
        raise StoreUnavailable("The database is away.")

    def says(self, state, line, *, version="2"):
        """Look, and hold document, gauges and log against each other."""
        said, told, value = self.look(), self.monitor.status.document(), self.monitor._metrics.registry.get_sample_value
        assert line in said
        assert told["state"] == state and value("blastwatch_drift_detected") == (state == "drift")
        assert self.gauges("score") == {column["name"]: column["score"] for column in told.get("columns", [])}
        assert self.gauges("threshold") == {column["name"]: column["threshold"] for column in told.get("columns", [])}
        assert (told.get("since") is None) == (told.get("window") is None) == (state == "waiting")
        if told.get("window"):
            until = datetime.fromisoformat(told["window"]["until"]).timestamp()
            assert value("blastwatch_drift_window_end_timestamp_seconds") == until
        if "model" in told:
            assert told["model"]["version"] == version
            watched = {name: told["model"][name] for name in ("version", "digest")}
            assert value("blastwatch_drift_model_info", watched) == 1
        return state, told

    def gauges(self, name):
        found = (
            metric for metric in self.monitor._metrics.registry.collect() if metric.name == f"blastwatch_drift_{name}"
        )
        return {sample.labels["column"]: sample.value for metric in found for sample in metric.samples}


@pytest.fixture
def walk(settings, monkeypatch, capsys, tmp_path):
    cohort = draw_cohort(np.random.default_rng(2), patients=8, cells=40)
    walked = Walk(settings, unsealed_package(tmp_path / "package", cohort), monkeypatch, capsys)
    yield walked
    walked.monitor.close()
    walked.store.close()


def test_document_gauges_and_log_agree_after_every_look(walk):
    seen = list(walk.states())
    assert [state for state, _ in seen].count("drift") == 4 and len(seen) == 12
    first, back = seen[2][1], seen[4][1]  # version 2 before the rollback, and after it
    assert back["since"] == first["since"] | {"reports": 2} and back["note"] == ""
    assert [point["version"] for point in back["timeline"]] == ["2", "2", "1"]  # by the time of their cells


def test_a_version_whose_first_look_fails_is_not_taken_for_the_one_before(walk, monkeypatch):
    walk.promote("1", "a")
    walk.answer("a", 1, red=True)
    walk.says("drift", "drift in od_red", version="1")
    walk.promote("2", "b")
    walk.answer("b", 2, red=False)
    with monkeypatch.context() as away:
        away.setattr(Monitor, "_tell_performance", walk.away)
        _, told = walk.says("waiting", "This look failed")
    assert (told["performance"], told["patients"], told["report"]) == (None, None, None)
    walk.says("calm", "no drift")


@pytest.mark.browser
def test_the_page_says_the_same(walk, browser, free_port):
    port, faults = free_port(), []
    server = PageServer(build_app(walk.monitor._metrics.registry, walk.monitor.status), port)
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.on("pageerror", lambda error: faults.append(str(error)))
    try:
        for state, told in walk.states():
            page.goto(f"http://127.0.0.1:{port}/drift")
            page.locator("#sentence").filter(has_not_text="Asking the monitor").wait_for()
            sentence = page.inner_text("#sentence")
            assert sentence.startswith(WORDS[state]), sentence
            if "model" in told:
                assert re.search(rf"version {told['model']['version']}\b", sentence)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.get_by_role("link", name="The whole report").is_visible() == (state != "waiting")
    finally:
        server.close()
    assert not faults
