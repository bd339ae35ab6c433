"""Evidently's workspace under several writers and a reader."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pandas as pd
import pytest

from monitoring import workspace as module
from monitoring.workspace import PROJECT, WorkspaceFailed, add_run

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


def _runs(path, project):
    import json
    from types import SimpleNamespace

    return [
        SimpleNamespace(**json.loads(file.read_text()))
        for file in (path / str(project.id) / "snapshots").glob("*.json")
    ]
