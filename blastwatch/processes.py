"""Child processes that never outlive their parent: started in groups of their own, waited for, and stopped."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType, TracebackType

from blastwatch.errors import BlastwatchError
from blastwatch.http_environment import reading, usable_environment

GRACE = 15.0  # seconds between the request to stop and the kill
TAIL = 12  # lines of a log that an error shows


class ProcessFailed(BlastwatchError):
    """A child process ended or did not answer; the message holds the end of its log."""


class Processes:
    """Starts children and, on leaving the `with` block, stops them all, the last one first."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Processes":
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _undisturbed():
            for name in reversed(list(self._children)):
                self.stop(name)

    def start(self, name: str, command: list[str]) -> None:
        """Start a command; what it prints goes to a log file of its name."""
        with (self._logs / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(  # noqa: S603  (a fixed command, no shell)
                command, stdout=log, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
            )

    def stop(self, name: str) -> None:
        """Ask the whole group to stop, and kill what is left of it after `GRACE` seconds."""
        child = self._children.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()

    def wait_for(self, name: str, address: str, *, timeout: float = 120) -> None:
        """Wait until an address answers with success.

        Raises:
            ProcessFailed: where the child ended, or did not answer in time.
        """
        import httpx

        end = time.monotonic() + timeout
        with usable_environment():
            caller = httpx.Client(timeout=5, **reading(address))
        with caller:
            while time.monotonic() < end:
                self.check(name)
                with contextlib.suppress(httpx.HTTPError):
                    if caller.get(address).is_success:
                        return
                time.sleep(0.2)
        raise ProcessFailed(f"{name} did not answer at {address} within {timeout:g} s.\n{self._tail(name)}")

    def check(self, name: str) -> None:
        """Raise `ProcessFailed` where a child has ended."""
        code = self._children[name].poll()
        if code is not None:
            raise ProcessFailed(f"{name} ended with exit code {code}.\n{self._tail(name)}")

    def check_all(self) -> None:
        for name in self._children:
            self.check(name)

    def _tail(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        return "\n".join([f"The end of {path}:", *path.read_text(errors="replace").splitlines()[-TAIL:]])


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl+C or SIGTERM leave children behind; only the main thread is ever disturbed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stopping_politely() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl+C does, so that children are stopped."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def script(name: str) -> str:
    """A command that is installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mlflow_server(home: Path, artifacts: Path, port: int) -> list[str]:
    """MLflow's server over the embedded store."""
    return [
        script("mlflow"), "server",
        "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}",
        "--default-artifact-root", artifacts.as_uri(),
        "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
    ]  # fmt: skip


def evidently_pages(workspace: Path, port: int) -> list[str]:
    """Evidently's own pages over the drift reports."""
    return [script("evidently"), "ui", "--workspace", str(workspace), "--host", "127.0.0.1", "--port", str(port)]
