"""A real `blastwatch serve` on a loopback port, for the tests that look at the whole service."""

import contextlib
import functools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from serving.live_folder import LiveFolder

START_SECONDS = 60

# There is nothing to verify on the loopback, and loading the certificates takes 40 ms a call.
get, post = (functools.partial(call, verify=False) for call in (httpx.get, httpx.post))


def environment(**variables):
    """This process's environment without its settings; MLflow writes one into it by itself."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BLASTWATCH_", "MLFLOW_"))}
    return kept | variables


class Running:
    """A service process with its address and its home; `variables` go into its environment."""

    def __init__(self, settings, port, cell=None, *, workers=1, **variables):
        self.settings, self.port, self.cell, self.count = settings, port, cell, workers
        self.url = f"http://127.0.0.1:{port}"
        self.log = settings.home / f"serve-{port}.log"
        words = [sys.executable, "-m", "blastwatch.cli", "serve", "--port", str(port), "--workers", str(workers)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                words, cwd=settings.home, env=environment(BLASTWATCH_HOME=str(settings.home), **variables),
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def wait_until_ready(self):
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                if get(f"{self.url}/readyz", timeout=2).status_code == 200:
                    return self
            except httpx.TransportError:
                time.sleep(0.2)
        raise AssertionError(f"not ready in time: {self.log.read_text()}")

    def wait_until_following(self, alias="champion", seconds=START_SECONDS):
        """Every worker is there within these seconds, and the follower has looked at the registry since."""
        until(lambda: self.log.read_text().count("Service blastwatch initialized") >= self.count, seconds)
        folder, now = LiveFolder(self.settings.home), time.time()
        until(lambda: folder.read_status(alias).reached > now, START_SECONDS)
        return self

    def children(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def followers(self):
        return [child for child in self.children() if "serving.follower" in _words(child)]

    def workers(self):
        return [child for child in self.children() if "_bentoml_impl.worker.service" in _words(child)]

    def stop(self):
        """End it as a person does, and return what is left of it."""
        parts = [self.process.pid, *(child.pid for child in self.children())] if self.process.poll() is None else []
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return [pid for pid in parts if psutil.pid_exists(pid)]

    def metrics(self):
        """Every sample by its name and its sorted label values."""
        text = get(f"{self.url}/metrics").text
        return {
            (sample.name, *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def reached(supervisor):
    """Where others reach a process and all that descend from it: ports, and files that are sockets."""
    found = set()
    for process in (supervisor, *supervisor.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            lines = process.net_connections("all")
            bound = [line for line in lines if line.laddr and not line.raddr]
            found |= {line.laddr if line.family == socket.AF_UNIX else line.laddr.port for line in bound}
    return found


def runs(process):
    """Whether a process has not ended; one that has may be there until somebody waits for it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _words(process):
    try:
        return process.cmdline()
    except psutil.Error:  # it ended, or nobody has waited for it yet
        return []


def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():  # asked once a turn: of two workers the other one may answer the next time
        assert time.monotonic() < end, f"waited {seconds:g} s in vain"
        time.sleep(0.1)
