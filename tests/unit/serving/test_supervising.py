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
SERVES = """
import os, sys, time
from serving.supervising import tell_serving
kind, number = sys.argv[1:]
if kind == "none-serves" or (kind == "one-serves" and number == "1"):
    sys.exit(3)
tell_serving(os.environ)
print("serving", flush=True)
time.sleep(60)
"""
SUPERVISOR = f"""
import signal, os, sys
from bentoml._internal.utils.circus import create_standalone_arbiter
from bentoml.exceptions import BentoMLException
from bentoml.serving import create_watcher
from serving.supervising import prepare_supervisor
kind = sys.argv[1]
signal.signal(signal.SIGHUP, signal.SIG_IGN if kind == "nohup" else signal.SIG_DFL)
os.environ.update(prepare_supervisor())
words = ["-c", {SERVES!r}, kind, "$(CIRCUS.WID)"]
worker = create_watcher(name="service", cmd=sys.executable, args=words, numprocesses=2)
plugins = [{{"use": "circus.plugins.watchdog.WatchDog"}}] if kind == "plugin" else None
arbiter = create_standalone_arbiter(watchers=[worker], sockets=[], plugins=plugins, check_delay=0.2)

def started(_):
    if kind == "busy":
        arbiter._exclusive_running_command = "manage_watchers"
        arbiter.loop.call_later(1.5, setattr, arbiter, "_exclusive_running_command", None)
    print("started", flush=True)

try:
    arbiter.start(started)
    print("stopped", flush=True)
except BentoMLException as error:
    print(error)
"""


def run(script, *words):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, *words], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def lines_of(supervisor, count):
    return sorted(supervisor.stdout.readline().strip() for _ in range(count))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_supervisor_binds_nothing_replaces_workers_and_stops(number):
    with run(SUPERVISOR, "all-serve") as supervisor:
        try:
            assert lines_of(supervisor, 3) == ["serving", "serving", "started"]
            family = psutil.Process(supervisor.pid)
            assert reached(family) == set()
            first, second = family.children()
            first.kill()
            until(lambda: len({*family.children()} - {first, second}) == 1, 20)
            assert second in family.children() and reached(family) == set()
            assert lines_of(supervisor, 1) == ["serving"]
            supervisor.send_signal(number)
            assert supervisor.wait(20) == 0 and supervisor.stdout.read() == "stopped\n"
            assert not runs(second)
        finally:
            supervisor.terminate()


def test_a_closed_terminal_ends_no_supervisor_under_nohup():
    """Nor does it start the workers anew."""
    with run(SUPERVISOR, "nohup") as supervisor:
        try:
            assert lines_of(supervisor, 3) == ["serving", "serving", "started"]
            family = psutil.Process(supervisor.pid)
            first, second = family.children()
            supervisor.send_signal(signal.SIGHUP)
            first.kill()
            assert lines_of(supervisor, 1) == ["serving"]
            assert len(family.children()) == 2 and second in family.children()
            supervisor.terminate()
            assert supervisor.wait(20) == 0 and supervisor.stdout.read() == "stopped\n"
        finally:
            supervisor.terminate()


def test_a_supervisor_that_looks_after_its_workers_just_then_stops_afterwards():
    with run(SUPERVISOR, "busy") as supervisor:
        try:
            assert lines_of(supervisor, 3) == ["serving", "serving", "started"]
            supervisor.terminate()
            assert supervisor.wait(20) == 0 and supervisor.stdout.read() == "stopped\n"
        finally:
            supervisor.kill()


def test_a_supervisor_of_which_no_worker_can_start_ends():
    with run(SUPERVISOR, "none-serves") as supervisor:
        try:
            assert lines_of(supervisor, 1) == ["started"] and supervisor.wait(30) == 0
            assert supervisor.stdout.read().startswith("Expected at least one worker that serves but all ended")
        finally:
            supervisor.terminate()


def test_a_worker_that_cannot_start_is_tried_again_where_another_serves():
    with run(SUPERVISOR, "one-serves") as supervisor:
        try:
            assert lines_of(supervisor, 2) == ["serving", "started"]
            family, seen = psutil.Process(supervisor.pid), set()
            until(lambda: seen.update(family.children()) or len(seen) > 3, 20)
            assert supervisor.poll() is None
            supervisor.terminate()  # while it starts one of them anew, mostly
            assert supervisor.wait(20) == 0
        finally:
            supervisor.kill()


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
_, telling = os.pipe()
worker = [sys.executable, "-c", {WORKER!r}, *sys.argv[1:]]
subprocess.Popen(worker, env={{**os.environ, **own_name(telling)}}, start_new_session=True).wait()
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
