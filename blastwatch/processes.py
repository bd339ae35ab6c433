"""Child processes that never outlive their parent: started in groups of their own, waited for, and stopped.

Where the parent is killed, its guardian (`blastwatch.guardian`) stops them.
"""

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

import psutil

from blastwatch import guardian
from blastwatch.addresses import encrypted
from blastwatch.errors import BlastwatchError

GRACE = 15.0  # seconds between the request to stop and the kill
LOOK_SECONDS = 0.05  # between two looks at what is left of a family
TAIL = 12  # lines of a log that an error shows
ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""What ends a block of `stopping_politely`, besides Ctrl+C."""


class ProcessFailed(BlastwatchError):
    """A child process ended or did not answer; the message holds the end of its log."""


class Processes:
    """Starts children and, on leaving the `with` block, stops them all, the last one first."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._guardian: subprocess.Popen[bytes] | None = None
        self._alone: set[str] = set()  # names of children whose own sessions go on

    def __enter__(self) -> "Processes":
        self._logs.mkdir(parents=True, exist_ok=True)
        self._guardian = subprocess.Popen(  # noqa: S603  (a fixed command, no shell)
            [sys.executable, "-I", "-S", guardian.__file__, str(GRACE)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _undisturbed():
            for name in reversed(list(self._children)):
                self.stop(name)
            assert self._guardian is not None
            self._guardian.communicate()

    def start(self, name: str, command: list[str], *, alone: bool = False) -> None:
        """Start a command; what it prints goes to a log file of its name.

        Args:
            alone: what it starts in sessions of their own goes on when it is stopped.
        """
        with (self._logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(  # noqa: S603  (a fixed command, no shell)
                command, stdout=log, stderr=subprocess.STDOUT, env=self._environment, start_new_session=True
            )
        if alone:
            self._alone.add(name)
        self._take(name, child)

    def run(self, command: list[str], folder: Path, *, show: bool) -> subprocess.CompletedProcess[str]:
        """Run a command in a folder to its end, as `subprocess.run` does; where this block ends before, it is stopped
        with all its children.

        Args:
            show: what it prints goes where this process prints, and is not returned.
        """
        into = None if show else subprocess.PIPE
        child = subprocess.Popen(  # noqa: S603  (a fixed command, no shell)
            command, cwd=folder, stdout=into, stderr=into, env=self._environment, start_new_session=True
        )
        name = Path(command[0]).name
        self._take(name, child)
        printed = [(text or b"").decode(errors="replace") for text in child.communicate()]
        self.stop(name)
        return subprocess.CompletedProcess(command, child.returncode, *printed)

    def _take(self, name: str, child: "subprocess.Popen[bytes]") -> None:
        """Answer for a child from now on, and have the guardian do so."""
        self._children[name] = child
        try:
            self._tell_guardian(f"+{child.pid}")
        except BrokenPipeError as error:
            raise ProcessFailed(
                f"Expected {guardian.__name__}, which ends these processes with their parent, to run but it was "
                "killed. Start again."
            ) from error

    def stop(self, name: str) -> None:
        """Ask the whole group to stop, and kill what is left of it and of its descendants after `GRACE` seconds.

        BentoML's workers are groups of their own: its supervisor asks them, but would wait for them a whole day.
        """
        child = self._children.pop(name)
        last = time.monotonic() + GRACE
        family = set() if name in self._alone else _offspring(child)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        if name not in self._alone:
            family |= _offspring(child)
        while time.monotonic() < last and any(map(_runs, family)):
            time.sleep(LOOK_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        child.wait()
        with contextlib.suppress(BrokenPipeError):  # somebody killed it, and this child needs it no more
            self._tell_guardian(f"-{child.pid}")

    def _tell_guardian(self, line: str) -> None:
        assert self._guardian is not None and self._guardian.stdin is not None
        self._guardian.stdin.write(f"{line}\n".encode())

    def wait_for(self, name: str, address: str, *, timeout: float = 120) -> None:
        """Wait until an address of this machine answers with success; no proxy of the environment is asked for it.

        Raises:
            ProcessFailed: where the child ended, or did not answer in time.
        """
        import httpx

        end = time.monotonic() + timeout
        with httpx.Client(timeout=5, trust_env=False, verify=encrypted(address)) as caller:
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


def _offspring(child: subprocess.Popen[bytes]) -> set[psutil.Process]:
    """All that descend from a child, nobody where it has ended: somebody else may have its number since."""
    if child.returncode is not None:
        return set()
    with contextlib.suppress(psutil.NoSuchProcess):
        return set(psutil.Process(child.pid).children(recursive=True))
    return set()


def _runs(process: psutil.Process) -> bool:
    """False for one that has ended but that nobody has waited for yet, as may be up to the first process of all."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no second Ctrl+C or other request to end leave children behind; only the main thread is ever disturbed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stopping_politely() -> Iterator[None]:
    """Let SIGTERM, a closed terminal (SIGHUP) and Ctrl+\\ (SIGQUIT) end the block as Ctrl+C does, so that children are
    stopped. What is ignored stays so, but for SIGTERM: `nohup` wants a closed terminal to end nothing."""

    def stop(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise KeyboardInterrupt

    heeded = [one for one in ENDING if one == signal.SIGTERM or signal.getsignal(one) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    return [sys.executable, "-P", "-m", "blastwatch.evidently_server", str(workspace), str(port)]
