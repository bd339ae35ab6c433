"""One process of the shadow as its worker sees it: started, asked, and ended when it hangs.

A child that gets no time from the kernel is no hung one: it stays until there is a core again. It hangs where it has
used much time on one cell, or where it sleeps although it owes an answer.
"""

import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blastwatch.decision import CLASS_NAMES, DECISIONS
from serving.offspring import same_code
from serving.shadow_wire import WireBroken, receive, send

LOOK_SECONDS = 1.0  # between two looks at a child that owes something
START_SECONDS, CELL_SECONDS = 120.0, 30.0  # of processor time, and of sleep, after which it hangs
GRACE_SECONDS = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")


class ChildFailed(Exception):
    """The child is of no use any more: it ended, hangs, or says what makes no sense."""


class ChildRefused(Exception):
    """The challenger must not read on this machine. `reason` is a word of `serving.live_folder.REASONS`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Stopped(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Said:
    """The challenger's answer to one cell; `probability` is calibrated, of a blast. seen: it learned from the image."""

    probability: float
    label: str
    decision: str
    seen: bool = False


class ShadowChild:
    """A running child. Use it from one thread, and close it.

    Args:
        words: what to run; the number of its socket, the handover and the digest are appended.
        stopped: asked about once a second while the child owes something; True ends the wait with `Stopped`.
    """

    def __init__(
        self,
        handover: Path,
        digest: str,
        environment: Mapping[str, str],
        *,
        stopped: Callable[[], bool],
        words: tuple[str, ...] = (sys.executable, "-m", "serving.shadow_worker"),
    ) -> None:
        self._stopped = stopped
        self._wire, theirs = socket.socketpair()
        self._wire.settimeout(LOOK_SECONDS)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  (a fixed command, no shell)
                [*words, str(theirs.fileno()), str(handover), digest],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=same_code(environment),
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> dict[str, Any]:
        """What the child says once it has loaded.

        Raises:
            ChildRefused, ChildFailed, Stopped.
        """
        header = self._receive(self._watch(START_SECONDS))
        if "refused" in header:
            raise ChildRefused(str(header["refused"]), str(header.get("message", "")))
        if not (header.get("ready") and header.keys() >= {"engine", "priority"}):
            raise ChildFailed(f"Expected a child that is ready but got {header!r:.200}")
        return header

    def ask(self, data: bytes) -> Said | None:
        """Let the challenger read one image file; None where it rejects it, or its answer is no probability.

        Raises:
            ChildFailed, Stopped.
        """
        watch = self._watch(CELL_SECONDS)
        try:
            send(self._wire, {}, data, on_wait=watch)
        except OSError as error:
            raise ChildFailed(f"The child takes nothing any more: {error}") from error
        header = self._receive(watch)
        if "rejected" in header:
            return None
        try:
            said = Said(
                float(header["probability"]), str(header["label"]), str(header["decision"]), header.get("seen") is True
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ChildFailed(f"Expected an answer but got {header!r:.200}") from error
        sound = math.isfinite(said.probability) and 0 <= said.probability <= 1
        return said if sound and said.label in CLASS_NAMES and said.decision in DECISIONS else None

    def check(self) -> None:
        """Raise `ChildFailed` where the child has ended although it owes nothing."""
        if self._process.poll() is not None:
            raise ChildFailed(f"The child ended with code {self._process.returncode}")

    def _receive(self, watch: Callable[[], None]) -> dict[str, Any]:
        try:
            message = receive(self._wire, on_wait=watch)
        except (OSError, WireBroken) as error:
            raise ChildFailed(str(error)) from error
        if message is None:
            raise ChildFailed(f"The child ended with code {self._ended()}")
        return message[0]

    def _watch(self, limit: float) -> Callable[[], None]:
        """What is called about once a second while the child owes an answer."""
        used = processor_seconds(self.pid)
        awake = time.monotonic()

        def look() -> None:
            nonlocal awake
            if self._stopped():
                raise Stopped
            if runnable(self.pid):
                awake = time.monotonic()
            if processor_seconds(self.pid) - used > limit:
                raise ChildFailed(f"The child hangs: it worked {limit:g} s and gave no answer")
            if time.monotonic() - awake > limit:
                raise ChildFailed(f"The child hangs: it slept {limit:g} s and gave no answer")

        return look

    def _ended(self) -> int | None:
        try:
            return self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End the child at once; it has nothing to lose."""
        self._wire.close()
        self._process.kill()
        self._process.wait()


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used, 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def runnable(pid: int) -> bool:
    """Whether any thread of a process runs, would run if it got a core, or waits for the disk."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return False
    for task in tasks:
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if state in "RD":
            return True
    return False
