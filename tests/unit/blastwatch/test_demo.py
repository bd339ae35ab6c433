"""The demo empties its work folder first: only one that a demo made, and nothing that anyone would miss."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from blastwatch import demo as module
from blastwatch.demo import MARK, Asked, Demo
from blastwatch.errors import UsageError
from blastwatch.stack_commands import demo

ROOT = Path(__file__).parents[3]
READ = ("dvc.yaml", "params.yaml", "deploy/demo/params.yaml", "deploy/demo/policy.yaml")
SET_UP = "[core]\n    no_scm = True\n    remote = local\n['remote \"local\"']\n    url = /somewhere/remote\n"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The current folder: a checkout with the state of Blastwatch in it, in a home directory."""
    place = tmp_path / "user" / "work" / "checkout"
    for name in READ:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / name)
    (place / ".blastwatch").mkdir()
    (place / ".blastwatch" / "mlflow.db").write_text("dear")
    monkeypatch.chdir(place)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.delenv("BLASTWATCH_HOME", raising=False)
    return place


@pytest.fixture
def nothing_removed(monkeypatch):
    """Whatever the demo would remove stays, and is said."""

    def told(folder):
        raise AssertionError(f"{folder} would be gone")

    monkeypatch.setattr(module.shutil, "rmtree", told)


def left_by_an_earlier_version(folder):
    """What a demo has made of its work folder once DVC is set up."""
    (folder / "home" / "logs").mkdir(parents=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc" / "config").write_text(SET_UP)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.usefixtures("nothing_removed")
@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (".", "without the checkout in it"),
        ("..", "without the checkout in it"),
        ("../..", "without the checkout in it"),
        ("~", "without your home directory in it"),
        (".blastwatch", r"without the state of Blastwatch \(BLASTWATCH_HOME\) in it"),
        ("results", "results holds other things"),
    ],
)
def test_a_folder_that_someone_would_miss_is_refused(checkout, tmp_path, monkeypatch, folder, said):
    (checkout / "results").mkdir()
    (checkout / "results" / "summary.json").write_text("{}")
    if folder == "~":  # with the checkout elsewhere
        monkeypatch.setenv("HOME", str(tmp_path / "other"))
        folder = str(left_by_an_earlier_version(tmp_path / "other"))
    found = CliRunner().invoke(demo, ["--dir", folder])
    assert isinstance(found.exception, UsageError), found.exception
    with pytest.raises(UsageError, match=said):
        raise found.exception


@pytest.mark.usefixtures("checkout", "nothing_removed")
def test_a_project_that_looks_like_a_demo_is_refused(tmp_path):
    """With a home, the stages and DVC, but set up by a person."""
    project = left_by_an_earlier_version(tmp_path / "project")
    (project / ".dvc" / "config").write_text("[core]\n    remote = lab\n")
    found = CliRunner().invoke(demo, ["--dir", str(project)])
    assert isinstance(found.exception, UsageError) and "holds other things" in str(found.exception)


def test_a_link_to_the_state_is_refused_as_the_state_is(checkout, nothing_removed, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(checkout / ".blastwatch")
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "link"))
    found = CliRunner().invoke(demo, ["--dir", ".blastwatch"])
    assert isinstance(found.exception, UsageError) and "BLASTWATCH_HOME" in str(found.exception)


@pytest.mark.parametrize("left", ["nothing", "an empty folder", "an earlier version", "a demo that was stopped"])
def test_a_folder_of_a_demo_is_emptied_and_marked(checkout, monkeypatch, left):
    folder = checkout / ".blastwatch" / "demo"
    if left != "nothing":
        folder.mkdir()
    if left == "an earlier version":
        left_by_an_earlier_version(folder)
        monkeypatch.setenv("BLASTWATCH_HOME", str(folder / "home"))  # as the README has a user set it
    if left == "a demo that was stopped":
        (folder / MARK).touch()
        (folder / "home").mkdir()
    Demo(checkout, folder, cells=None, patients=12, each=1)._prepare([])
    assert {path.name for path in folder.iterdir()} == {MARK, "home", "dvc.yaml", "params.yaml"}
    assert not list((folder / "home").iterdir())
    assert (checkout / ".blastwatch" / "mlflow.db").read_text() == "dear"


def test_the_summary_names_a_cell_to_try_that_was_held_out(checkout, tmp_path):
    """The first file of the cells is one of those that were trained on, most of which are referred."""
    interval = {"value": 0.9, "low": 0.8, "high": 1.0}
    metrics = {
        "synthetic": True, "counts": {"cells": 2, "groups": 1}, "cells": dict.fromkeys(module.SHOWN, interval),
        "size_baseline": {"auroc": interval},
    }  # fmt: skip
    sides = {side: {"all": {"groups": 1}} for side in module.SIDES}
    for name, content in (("results/evaluate/metrics.json", metrics), ("data/split/split.json", {"sides": sides})):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(json.dumps(content))
    demo = Demo(checkout, tmp_path, cells=None, patients=1, each=1)
    demo.environment["BLASTWATCH_DRIFT_WINDOW"] = "2"
    answers = [{"decision": "hem", "path": f"/cells/{name}.bmp"} for name in "ab"]
    asked = Asked(answers, {"columns": [], "report": ""}, gauge=False)
    said = demo._summary({"version": "1", "digest": "0" * 64}, asked, asked)
    assert "Try       /cells/a.bmp\n          (held out: " in said
