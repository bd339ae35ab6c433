"""Evidently's workspace under several writers and a reader."""

import asyncio
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pandas as pd
import pytest
import uuid6

from blastwatch import DISCLAIMER
from monitoring import workspace as module
from monitoring.report_page import arranged
from monitoring.scores import METHODS
from monitoring.workspace import PANELS, PROJECT, WorkspaceFailed, add_run

WRITERS, RUNS = 4, 5


@pytest.fixture(scope="module")
def snapshot():
    from evidently import Report
    from evidently.metrics import ValueDrift

    values = pd.DataFrame({"brightness": np.arange(40.0)})
    return Report([ValueDrift(column="brightness", method="wasserstein", threshold=1.0)]).run(values, values + 1)


def test_writers_at_once_lose_no_run_and_a_reader_never_sees_half_of_one(tmp_path, snapshot):
    from evidently.ui.workspace import Workspace

    path, done = tmp_path / "workspace", Event()

    def write(number):
        for run in range(RUNS):
            add_run(path, snapshot, name=f"{number}.{run}")

    def read():
        seen = 0
        while not done.is_set():
            for project in Workspace.create(str(path)).list_projects():
                seen = len(Workspace.create(str(path)).list_runs(project.id))
        return seen

    with ThreadPoolExecutor(WRITERS + 1) as pool:
        reader = pool.submit(read)
        try:
            for _ in pool.map(write, range(WRITERS)):
                pass
        finally:
            done.set()
        assert reader.result() > 0
    [project] = Workspace.create(str(path)).list_projects()
    assert project.name == PROJECT
    names = {run.name for run in _runs(path, project)}
    assert names == {f"{number}.{run}" for number in range(WRITERS) for run in range(RUNS)}
    assert sorted(entry.name for entry in tmp_path.iterdir() if entry.is_dir()) == ["workspace"]


def test_a_damaged_file_and_a_folder_that_takes_nothing_are_said_in_our_words(tmp_path, snapshot):
    path = tmp_path / "workspace"
    add_run(path, snapshot, name="first")
    (metadata,) = path.rglob("metadata.json")
    whole = metadata.read_text()
    for damaged in ("", "{}", whole[: len(whole) // 2]):
        metadata.write_text(damaged)
        with pytest.raises(WorkspaceFailed, match=r"the folder: it is made anew"):
            add_run(path, snapshot, name="second")
    shutil.rmtree(path)
    add_run(path, snapshot, name="third")
    path.with_name("workspace.lock").unlink()
    path.with_name("workspace.lock").mkdir()
    with pytest.raises(WorkspaceFailed, match="Is a directory"):
        add_run(path, snapshot, name="fourth")


def test_the_oldest_runs_are_dropped(tmp_path, snapshot, monkeypatch):
    from evidently.ui.workspace import Workspace

    monkeypatch.setattr(module, "KEEP_RUNS", 3)
    for number in range(5):
        add_run(tmp_path / "workspace", snapshot, name=str(number))
    [project] = Workspace.create(str(tmp_path / "workspace")).list_projects()
    assert sorted(run.name for run in _runs(tmp_path / "workspace", project)) == ["2", "3", "4"]


@pytest.mark.parametrize("ahead", [range(1, 2), range(4)])
def test_after_a_clock_that_ran_ahead_the_first_that_were_added_are_dropped(tmp_path, snapshot, monkeypatch, ahead):
    """Evidently takes the ids of its runs from that clock as well."""
    from evidently.ui.workspace import Workspace

    monkeypatch.setattr(module, "KEEP_RUNS", 3)
    path, now = tmp_path / "workspace", time.time_ns
    for number in range(7):
        wrong = 300 * 86_400 * 10**9 if number in ahead else 0
        with monkeypatch.context() as clock:
            clock.setattr(time, "time_ns", lambda wrong=wrong: now() + wrong)
            clock.setattr(uuid6, "_last_v7_timestamp", None)  # as in a process of its own
            add_run(path, snapshot, name=str(number))
        [project] = Workspace.create(str(path)).list_projects()
        there = sorted(run.name for run in _runs(path, project))
        assert there == [str(one) for one in range(max(number - 2, 0), number + 1)]


def test_every_column_that_is_compared_stands_in_one_panel():
    drawn = [column for _, _, columns in PANELS for column in columns]
    assert sorted(drawn) == sorted(METHODS)


def test_a_line_of_the_dashboard_is_one_column_of_one_version(tmp_path, snapshot):
    """Whatever the thresholds, which are others for a window of another size: what Evidently's pages draw."""
    for version, threshold in (("1", 0.5), ("1", 2.0), ("2", 4.0)):
        score = snapshot.dict()["metrics"][0]["value"]
        column = {"name": "brightness", "score": score, "threshold": threshold, "drifted": score >= threshold}
        window = {"since": "2026-11-01", "until": "2026-11-02", "cells": 40, "patients": 4, "repeated": 0,
                  "caution": None}  # fmt: skip
        document = {"version": version, "window": window, "compared": 40, "columns": [column], "causes": []}
        add_run(tmp_path / "workspace", arranged(snapshot, document, digest="d" * 64, synthetic=True), name=version)
    about, *panels = _dashboard(tmp_path / "workspace").panels
    assert about.title == DISCLAIMER and "from 1 upwards it is drift" in about.subtitle
    assert [panel.title for panel in panels][1] == "Drift score of stain and light, over its threshold"
    found = {name: values for panel in panels for name, values in _lines(tmp_path / "workspace", panel)}
    assert found == {
        "brightness, version 1": [score / 0.5, score / 2.0],
        "brightness, version 2": [None, None, score / 4.0],
        "threshold": [1.0, 1.0, 1.0],
    }


def test_a_project_of_an_earlier_release_gets_the_dashboard_and_keeps_its_runs(tmp_path, snapshot):
    from evidently.sdk.panels import text_panel

    path = tmp_path / "workspace"
    add_run(path, snapshot, name="first")
    now = _dashboard(path)
    with pytest.MonkeyPatch.context() as earlier:
        earlier.setattr(module, "_panels", lambda: [text_panel(title="Answers")])
        add_run(path, snapshot, name="second")
        assert [panel.title for panel in _dashboard(path).panels] == ["Answers"]
    add_run(path, snapshot, name="third")
    again = _dashboard(path)
    assert [panel.title for panel in again.panels] == [panel.title for panel in now.panels]
    add_run(path, snapshot, name="fourth")
    assert _dashboard(path) == again  # written once
    [project] = path.iterdir()
    assert len(list((project / "snapshots").iterdir())) == 4


def _dashboard(path):
    from evidently.ui.workspace import Workspace

    [project] = Workspace.create(str(path)).list_projects()
    return project.dashboard.model()


def _lines(path, panel):
    """Legend and values of each line of a panel, read and named as Evidently's pages do."""
    from evidently.ui.service.base import SeriesFilter
    from evidently.ui.service.storage.local.base import InMemoryDataStorage
    from evidently.ui.workspace import Workspace

    [project] = Workspace.create(str(path)).list_projects()
    wanted = [
        SeriesFilter(tags=one.tags, metadata=one.metadata, metric=one.metric, metric_labels=one.metric_labels)
        for one in panel.values
    ]
    found = asyncio.run(InMemoryDataStorage(str(path)).get_data_series(project.id, wanted, None, None))
    for series in found.series:
        legend = panel.values[series.filter_index].legend
        yield re.sub(r"{{(\w+)}}", lambda name, given=series.params: given[name[1]], legend), series.values


def _runs(path, project):
    import json
    from types import SimpleNamespace

    return [
        SimpleNamespace(**json.loads(file.read_text()))
        for file in (path / str(project.id) / "snapshots").glob("*.json")
    ]
