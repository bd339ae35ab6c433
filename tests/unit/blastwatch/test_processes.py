"""Children end with their parent, whoever is impatient."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from blastwatch import database, processes
from blastwatch.errors import BlastwatchError, SettingsError, UsageError
from tests.running import runs, until
from training.demo_commands import demo

ROOT = Path(__file__).parents[3]
IMPATIENT = """
import sys, time
from pathlib import Path
import blastwatch.processes
from blastwatch.processes import Processes, stopping_politely
blastwatch.processes.GRACE = 1.5
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
try:
    with stopping_politely(), Processes({}, Path(sys.argv[1])) as children:
        for name in ("one", "two"):
            children.start(name, [sys.executable, "-c", STUBBORN])
        print(*(child.pid for child in children._children.values()), flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return runs(psutil.Process(pid))
    return False


def test_a_second_ctrl_c_leaves_no_child_behind(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    ) as parent:
        children = [int(pid) for pid in parent.stdout.readline().split()]
        until(lambda: all("ready" in (tmp_path / f"{name}.log").read_text() for name in ("one", "two")), 20)
        parent.send_signal(signal.SIGTERM)
        for _ in range(3):
            with pytest.raises(subprocess.TimeoutExpired):
                parent.wait(0.5)
            parent.send_signal(signal.SIGINT)
        assert parent.wait(20) == 0 and "stopped" in parent.stdout.read()
    assert not any(map(alive, children))


UP = """
import sys, time
from pathlib import Path
from blastwatch.processes import Processes, stopping_politely
SLEEP = "import time; time.sleep(60)"
FAMILY = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid, flush=True); {SLEEP}"
try:
    with stopping_politely(), Processes({}, Path(sys.argv[1])) as children:
        for name in ("one", "two"):
            children.start(name, [sys.executable, "-c", FAMILY])
        print(*(child.pid for child in children._children.values()), flush=True)
        while True:
            children.check_all()
            time.sleep(0.05)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


AS_IN_A_TERMINAL = """
import signal  # of what starts the tests in the background some are ignored, and so are they here
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
"""


@contextlib.contextmanager
def up(folder, *before):
    """A process with two children that have a child each, and the ids of these four; all end with the block."""
    words = [*before, sys.executable, "-c", UP if before else AS_IN_A_TERMINAL + UP, folder]
    with subprocess.Popen(
        words, stdin=(idle := subprocess.PIPE), stdout=idle, stderr=idle, text=True, cwd=ROOT, start_new_session=True
    ) as parent:
        family = [int(pid) for pid in parent.stdout.readline().split()]
        logs = [folder / f"{name}.log" for name in ("one", "two")]
        until(lambda: all(log.read_text() for log in logs), 20)
        family += [int(log.read_text()) for log in logs]
        try:
            yield parent, family
        finally:
            for pid in filter(alive, (parent.pid, *family)):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_whatever_asks_a_parent_to_end_children_end_with_it(tmp_path, number):
    with up(tmp_path) as (parent, family):
        parent.send_signal(number)
        assert parent.wait(20) == 0 and "stopped" in parent.stdout.read()
        assert not any(map(alive, family))


def test_children_of_a_parent_that_is_killed_end_soon_after(tmp_path):
    with up(tmp_path) as (parent, family):
        parent.kill()
        until(lambda: not any(map(alive, family)), 20)


def test_children_end_with_a_parent_that_is_killed_after_all_were_asked_to_end(tmp_path):
    """As a machine that shuts down does: the guardian must not be the first to go."""
    with up(tmp_path) as (parent, family):
        parent.send_signal(signal.SIGSTOP)
        guardian = next(one for one in psutil.Process(parent.pid).children() if one.pid not in family)
        guardian.terminate()
        with pytest.raises(psutil.TimeoutExpired):
            guardian.wait(0.5)
        parent.kill()
        until(lambda: not any(map(alive, family)), 20)


def test_a_closed_terminal_ends_nothing_under_nohup(tmp_path):
    with up(tmp_path, "nohup") as (parent, family):
        parent.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            parent.wait(0.5)
        assert all(map(alive, family))
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(20) == 0
        assert not any(map(alive, family))


def test_a_parent_without_its_guardian_stops_its_children_all_the_same(tmp_path):
    with up(tmp_path) as (parent, family):
        guardian = next(one for one in psutil.Process(parent.pid).children() if one.pid not in family)
        guardian.kill()
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(20) == 0 and "stopped" in parent.stdout.read()
        assert not any(map(alive, family))


@pytest.mark.parametrize("alone", [False, True])
def test_who_left_its_group_ends_with_it_all_the_same_unless_it_is_to_go_on(tmp_path, monkeypatch, alone):
    """As the worker of a supervisor does: nobody but that asks it to end, and it may take its time. A retraining is to
    go on when its monitor ends."""
    monkeypatch.setattr(processes, "GRACE", 1.0)
    worker = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    supervisor = f"""
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", {worker!r}], start_new_session=True).pid, flush=True)
time.sleep(60)
"""
    with processes.Processes({}, tmp_path) as children:
        children.start("one", [sys.executable, "-c", supervisor], alone=alone)
        until(lambda: "ready" in (tmp_path / "one.log").read_text(), 20)
        pid = int((tmp_path / "one.log").read_text().split()[0])
        children.stop("one")
        if not alone:
            until(lambda: not alive(pid))
    assert alive(pid) == alone
    if alone:
        os.kill(pid, signal.SIGKILL)


def test_cells_within_the_folder_that_is_emptied_are_left_alone(tmp_path):
    cells = tmp_path / "demo" / "cells"
    cells.mkdir(parents=True)
    (cells / "cell.bmp").write_bytes(b"dear")
    found = CliRunner().invoke(demo, ["--dir", str(tmp_path / "demo"), "--cells", str(cells)])
    assert isinstance(found.exception, UsageError) and "outside of the work folder" in str(found.exception)
    assert (cells / "cell.bmp").exists()


@pytest.mark.parametrize("url", ["postgresql://somebody@host:port/name", "nothing", "mysql://host/name"])
def test_a_database_that_is_none_is_named_with_its_setting(url):
    with pytest.raises(SettingsError, match="Expected BLASTWATCH_HISTORY_URL as sqlite:///FILE"):
        database.create(url, "BLASTWATCH_HISTORY_URL", unavailable=BlastwatchError)
