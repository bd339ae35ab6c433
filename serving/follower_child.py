"""Keeps the one follower of a service running: the worker that holds the lock starts it, and starts it again."""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import IO

from serving.live_folder import HEARTBEAT_SECONDS, LiveFolder, Refusal
from serving.live_folder import now as iso_now
from serving.offspring import same_code
from serving.resting import RESTS_AFTER, Rest

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before a follower that ended is started again
STEADY_SECONDS = 60.0  # one that ran so long starts with the first pause again
GRACE_SECONDS = 5.0

# MLflow alone tries for minutes when a server goes away in the middle of a call; the follower comes back to it anyway.
MLFLOW = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}

_log = logging.getLogger("blastwatch.service")


class FollowerChild:
    """Call `tend` now and then. Workers of one home compete for the lock; the kernel frees it when its holder dies."""

    def __init__(self, folder: LiveFolder, aliases: Sequence[str], rest: Rest, environment: Mapping[str, str]) -> None:
        self._environment = MLFLOW | same_code(environment)
        self._aliases = list(aliases)
        self._folder = folder
        self._rest = rest
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._said = 0.0
        self._pause = FIRST_PAUSE
        self._unasked: list[str] = []

    def tend(self) -> None:
        """Take the lock where it is free; start the follower where this worker holds the lock, none runs, and there is
        something to look at."""
        if self._lock is None:
            self._lock = self._folder.try_follower_lock(self._aliases)
        now = time.monotonic()
        if self._lock is None:
            self._compare(now)
        elif self._process is not None and self._process.poll() is None:
            if now - self._started > STEADY_SECONDS:
                self._pause = FIRST_PAUSE
        elif self._rest.holds():
            self._say_so(now)
        elif self._process is None or (self._process.returncode == 0 and now - self._started > RESTS_AFTER):
            self._start()
        elif now - self._started > self._pause:
            _log.warning("The follower ended with code %s; it is started again.", self._process.returncode)
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)
            self._start()

    def _say_so(self, now: float) -> None:
        """In the follower's place: the registry stands where it stood."""
        if now - self._said > HEARTBEAT_SECONDS:
            self._said = now
            for alias in self._aliases:
                self._folder.write_status(alias, replace(self._folder.read_status(alias), reached=time.time()))

    def _compare(self, now: float) -> None:
        """Say of which aliases nobody will ever tell this worker: the follower is that of a service over the same home
        with other settings. Said at the second look, since one that has just begun may not have written what it asks
        for."""
        if now - self._said < HEARTBEAT_SECONDS:
            return
        self._said, before, followed = now, self._unasked, self._folder.followed()
        self._unasked = [alias for alias in self._aliases if alias not in followed] if followed else []
        for alias in self._unasked if self._unasked == before else ():
            status = self._folder.read_status(alias)
            if status.refused is not None and status.refused.reason == "registry":
                continue
            said = (
                f"Expected {alias} among the aliases that the follower of this home asks for but it asks for "
                f"{', '.join(followed)}: another service over {self._folder.path.parent} has another "
                "BLASTWATCH_MODEL_ALIAS, or no share for a challenger. Give both the same, or a home each."
            )
            refusal = Refusal(reason="registry", version="", message=said, since=iso_now())
            self._folder.write_status(alias, replace(status, refused=refusal))
            _log.warning("Not followed (registry), the alias %s: %s", alias, said)

    def _start(self) -> None:
        self._rest.end()
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        command = [sys.executable, "-m", "serving.follower", *self._aliases]
        self._process = subprocess.Popen(  # noqa: S603  (a fixed command, no shell)
            command, stdin=subprocess.PIPE, env=self._environment
        )
        self._started = time.monotonic()

    def close(self) -> None:
        """End the follower, then free the lock."""
        if self._process is not None:
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                self._process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._lock is not None:
            self._lock.close()
