"""Children end with their parent, whoever is impatient."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from blastwatch import database
from blastwatch.errors import BlastwatchError, SettingsError, UsageError
from tests.running import until
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
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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
