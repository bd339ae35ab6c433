"""The demo empties its work folder first: only one that a demo made, and nothing that anyone would miss."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from click.testing import CliRunner

from blastwatch import demo as module
from blastwatch.demo import MARK, Asked, Demo
from blastwatch.errors import BlastwatchError, UsageError
from tests.running import runs, until
from training.demo_commands import demo

ROOT = Path(__file__).parents[3]
SET_UP = "[core]\n    no_scm = True\n    remote = local\n['remote \"local\"']\n    url = /somewhere/remote\n"


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The current folder: a checkout with the state of Blastwatch in it, in a home directory."""
    place = tmp_path / "user" / "work" / "checkout"
    for name in module.NEEDED:
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
    Demo(checkout, folder, cells=None, patients=12, each=1)._prepare({"train": {"epochs": 3}})
    assert {path.name for path in folder.iterdir()} == {MARK, "home", "dvc.yaml", "params.yaml"}
    assert not list((folder / "home").iterdir())
    assert yaml.safe_load((folder / "params.yaml").read_text()) == {"train": {"epochs": 3}}
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


@pytest.mark.usefixtures("nothing_removed")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "train.epoch=3"], "Expected keys of train among"),
        (["--set", "training.epochs=3"], "Expected the sections"),
        (["--set", "train.epochs=many"], "Expected train.epochs to be a whole number but got 'many'"),
        (["--set", "train.epochs"], "Expected SECTION.KEY=VALUE"),
        (["--patients", "14", "--cells-each", "6"], "Expected --cells-each 14 or more for 14 patients, of whom 6 are"),
        (["--set", "contract.least_cells=1000"], "Expected --cells-each 63 or more"),
    ],
)
def test_what_would_fail_later_is_refused_before_an_earlier_demo_is_removed(checkout, words, said):
    folder = left_by_an_earlier_version(checkout / ".blastwatch" / "demo")
    found = CliRunner().invoke(demo, ["--dir", str(folder), *words])
    assert isinstance(found.exception, UsageError) and said in str(found.exception), found.exception
    assert (folder / "dvc.yaml").is_file()


@pytest.mark.usefixtures("checkout")
def test_the_demo_goes_by_its_own_parameters_and_by_those_that_were_set(monkeypatch):
    """Over all of params.yaml, in which DVC finds every key."""
    taken = []
    monkeypatch.setattr(Demo, "run", lambda _, knobs: taken.append(knobs) or "done")
    sizes = ["--patients", "12", "--cells-each", "16"]
    found = CliRunner().invoke(demo, [*sizes, "--set", "train.epochs=9", "--set", "image.size=32"])
    assert found.output == "done\n", found.exception
    [knobs] = taken
    wanted, changed = (yaml.safe_load((ROOT / name).read_text()) for name in ("params.yaml", module.KNOBS))
    for section, values in (changed | {"image": {"size": 32}}).items():
        wanted[section] |= values
    wanted["train"]["epochs"] = 9
    assert knobs == wanted


def test_a_work_folder_that_cannot_be_made_is_said(checkout):
    (checkout / "file").touch()
    with pytest.raises(UsageError, match=r"can be made and written to but got .*file/demo.* --dir"):
        Demo(checkout, checkout / "file" / "demo", cells=None, patients=12, each=1)._prepare({})


@pytest.mark.parametrize("end", [BlastwatchError("no room"), KeyboardInterrupt()])
def test_a_pipeline_that_ends_early_says_how_to_go_on(checkout, tmp_path, monkeypatch, capsys, end):
    def stopped(*_):
        raise end

    run = Demo(checkout, tmp_path / "a demo", cells=None, patients=12, each=8)
    monkeypatch.setattr(run, "_pipeline", stopped)
    monkeypatch.setattr(module, "make_embedded", lambda _: None)
    monkeypatch.setattr(module.Processes, "start", lambda *_: None)
    for begun in (False, True):
        monkeypatch.setattr(run, "_prepare", lambda _, begun=begun: source_added(run.folder) if begun else None)
        with pytest.raises(type(end)):
            run.run({})
        said = capsys.readouterr().err
        assert begun == (f"cd '{tmp_path}/a demo'\n" in said), "before that there is nothing to go on with"
    assert (
        f"export BLASTWATCH_HOME='{tmp_path}/a demo/home' BLASTWATCH_POLICY={checkout}/deploy/demo/policy.yaml" in said
    )
    assert "dvc repro && blastwatch registry register results/package" in said
    assert said.index("unset MLFLOW_TRACKING_URI\n") < said.index("dvc repro"), "the laboratory's is no demo's"


def source_added(folder):
    """What `dvc add data/source` leaves."""
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "source.dvc").touch()


def test_the_remote_is_named_in_ascii_wherever_the_folder_is(checkout, monkeypatch):
    """DVC writes its address into a file of ASCII."""
    calls = []
    run = Demo(checkout, checkout / "d\u00e9mo", cells=None, patients=12, each=8)
    monkeypatch.setattr(run, "_call", lambda *words, **_: calls.append(words) or "")
    run._pipeline(type("Children", (), {"wait_for": lambda *_: None})())
    [remote] = [words for words in calls if words[:3] == ("dvc", "remote", "add")]
    assert " ".join(remote).isascii() and "remote" in remote[4:]


def test_a_figure_near_one_is_not_told_as_one():
    assert module._figure("auroc", {"value": 0.9996, "low": 0.9, "high": 0.99999}).endswith("0.9996 (0.900 to 0.99999)")


STEP = """
import contextlib, signal, subprocess, sys, time
from pathlib import Path
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):  # as in a terminal, whatever starts the tests
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
from blastwatch import demo
from blastwatch.processes import stopping_politely
SLEEP = "import time; time.sleep(60)"
FAMILY = f"import os, subprocess, sys; one = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); "
FAMILY += "print(os.getpid(), one.pid, file=open('family', 'w'), flush=True); one.wait()"
demo.script = lambda name: sys.executable
checkout, folder = map(Path, sys.argv[1:])
run = demo.Demo(checkout, folder, cells=None, patients=12, each=8)
with contextlib.suppress(KeyboardInterrupt), stopping_politely():
    run._call("step", "-c", FAMILY, show=True)
"""


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return runs(psutil.Process(pid))
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL])
def test_a_step_ends_with_the_demo_and_so_do_its_children(tmp_path, number):
    """As a training does, which is a child of DVC."""

    told = tmp_path / "family"
    with subprocess.Popen([sys.executable, "-c", STEP, ROOT, tmp_path], cwd=ROOT) as parent:
        until(lambda: told.is_file() and told.read_text().endswith("\n"), 20)
        family = [int(pid) for pid in told.read_text().split()]
        try:
            parent.send_signal(number)
            ended = parent.wait(20)
            if number == signal.SIGKILL:  # the guardian sees to it
                until(lambda: not any(map(alive, family)), 20)
            assert ended == (-number if number == signal.SIGKILL else 0)
            assert not any(map(alive, family))
        finally:
            for pid in filter(alive, family):
                os.kill(pid, signal.SIGKILL)


def test_a_step_that_fails_is_told_with_what_it_printed(checkout, monkeypatch):
    monkeypatch.setattr(module, "script", lambda _: sys.executable)
    run = Demo(checkout, checkout, cells=None, patients=12, each=8)
    assert run._call("step", "-c", "import os; print(os.getpgid(0) == os.getpid())") == "True\n"
    with pytest.raises(BlastwatchError, match=r"`step -c .*` ended with exit code 3:\nno room"):
        run._call("step", "-c", "import sys; print('no room', file=sys.stderr); sys.exit(3)")
