"""A supervisor that nobody else gives commands to, and workers that end with theirs."""

import contextlib
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from serving.supervising import end_with_supervisor
from tests.running import reached, runs, until

ROOT = Path(__file__).parents[3]
SUPERVISOR = """
import sys
from bentoml._internal.utils.circus import create_standalone_arbiter
from bentoml.serving import create_watcher
from serving.supervising import take_no_commands
take_no_commands()
worker = create_watcher(name="service", cmd=sys.executable, args=["-c", "import time; time.sleep(60)"], numprocesses=2)
plugins = [{"use": "circus.plugins.watchdog.WatchDog"}] if "plugin" in sys.argv else None
arbiter = create_standalone_arbiter(watchers=[worker], sockets=[], plugins=plugins, check_delay=0.2)
arbiter.start(lambda _: print("started", flush=True))
print("stopped", flush=True)
"""


def run(script, *words):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *words], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_supervisor_binds_nothing_replaces_workers_and_stops(number):
    with run(SUPERVISOR) as supervisor:
        try:
            assert supervisor.stdout.readline() == "started\n"
            family = psutil.Process(supervisor.pid)
            assert reached(family) == set()
            first, second = family.children()
            first.kill()
            until(lambda: len({*family.children()} - {first, second}) == 1, 20)
            assert second in family.children() and reached(family) == set()
            supervisor.send_signal(number)
            assert supervisor.wait(20) == 0 and supervisor.stdout.read() == "stopped\n"
            assert not runs(second)
        finally:
            supervisor.terminate()


def test_what_needs_a_supervisor_that_takes_commands_is_refused():
    with run(SUPERVISOR, "plugin") as supervisor:
        try:
            assert supervisor.stdout.readline() == ""
            assert "but got --reload" in supervisor.stderr.read() and supervisor.wait(20) != 0
        finally:
            supervisor.terminate()


WORKER = """
import os, signal, subprocess, sys, time
from serving import supervising
supervising.LOOK_SECONDS, supervising.LAST_SECONDS = 0.05, 1.0
kind = sys.argv[1]
signal.signal(signal.SIGTERM, signal.SIG_IGN if kind == "stubborn" else lambda *_: sys.exit())
child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
if kind == "early":
    supervising.end_with_supervisor(os.environ)
print(os.getpid(), child.pid, flush=True)
try:
    if kind != "early":
        time.sleep(0.5)
        supervising.end_with_supervisor(os.environ)
    time.sleep(60)
finally:
    child.kill()
    print("ended by itself", flush=True)
"""
STARTS_IT = f"""
import os, subprocess, sys, time
from serving.supervising import own_name
worker = [sys.executable, "-c", {WORKER!r}, *sys.argv[1:]]
subprocess.Popen(worker, env={{**os.environ, **own_name()}}, start_new_session=True).wait()
"""


@pytest.mark.parametrize("kind", ["early", "late", "stubborn"])
def test_a_worker_and_its_child_end_with_the_supervisor(kind):
    """Also one whose supervisor went before it looked for it, and one that hangs."""
    with run(STARTS_IT, kind) as supervisor:
        family = [psutil.Process(int(pid)) for pid in supervisor.stdout.readline().split()]
        try:
            supervisor.kill()
            until(lambda: not any(map(runs, family)), 20)
            assert ("ended by itself" in supervisor.stdout.read()) == (kind != "stubborn")
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()


def test_a_worker_that_nobody_supervises_stays():
    before = threading.active_count()
    end_with_supervisor({})
    assert threading.active_count() == before
