"""Moves this worker to the version that the follower fetched: load it beside the running one, check it, swap.

A thread looks at the small files of `serving.live_folder` a few times a second. A version that fails to load, or that
does not give its own answers for its golden cells, never serves: the one before it stays, and a metric says why.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from blastwatch.errors import BlastwatchError, PackageError
from blastwatch.registry import CHALLENGER
from blastwatch.settings import Settings
from serving.apart import LOADING_NICE, apart
from serving.contest import Contest
from serving.follower_child import FollowerChild
from serving.lane import Lane, Slot
from serving.live import LiveModel, hand_over, open_live, opening, read_handover, take_over_or_fetch, version_of
from serving.live_folder import LiveFolder, Mark, Refusal, mark, now, reason_of
from serving.memory import MAY_MEND, RETRY_SECONDS, give_back
from serving.metrics import ServiceMetrics
from serving.resting import Rest

LOOK_SECONDS = 0.25
FAILED_SECONDS = 10.0  # until the next look after one that failed

_log = logging.getLogger("blastwatch.service")


class Pursuit:
    """One alias and the slot that shall hold what it names."""

    def __init__(
        self,
        slot: Slot,
        folder: LiveFolder,
        settings: Settings,
        metrics: ServiceMetrics,
        open_lane: Callable[[LiveModel], Lane],
        refusal: Refusal | None,
    ) -> None:
        self.slot = slot
        self.status = folder.read_status(slot.alias)
        self.own = refusal
        self._folder, self._settings, self._metrics, self._open_lane = folder, settings, metrics, open_lane
        self._wanted = folder.wanted(slot.alias)
        self._seen: Mark | None = None
        self._status_seen: Mark | None = None
        self._retry_at = self._write_at = float("inf")
        self._told: tuple[float, str | None] | None = None
        self._leaving: list[Lane] = []
        metrics.tell_following(slot.alias, self.status.reached or time.time(), refusal.reason if refusal else None)
        if refusal is not None and version_of(self._wanted) == refusal.version:
            self._remember(refusal.reason)
        elif refusal is None:
            self._serves_well()

    @property
    def refused(self) -> Refusal | None:
        """Why what the alias names does not serve; what this worker found weighs more."""
        return self.own or self.status.refused

    def look(self) -> None:
        """One look at the files; loads and swaps where there is something new."""
        self._see_off()
        if time.monotonic() > self._write_at:
            self._serves_well()
        seen = mark(self._folder.status(self.slot.alias))
        if seen != self._status_seen:
            self._status_seen, self.status = seen, self._folder.read_status(self.slot.alias)
        seen = mark(self._wanted)
        if seen is not None and (seen != self._seen or time.monotonic() > self._retry_at):
            self._follow(seen)
        self._tell()

    def _tell(self) -> None:
        known = (self.status.reached, self.refused.reason if self.refused else None)
        if known != self._told:
            self._told = known
            self._metrics.tell_following(self.slot.alias, *known)

    def _follow(self, seen: Mark) -> None:
        version = version_of(self._wanted)
        try:
            entry = read_handover(self._wanted)[0]
            lane = self.slot.lane
            if (entry.version, entry.digest) == (lane.version, lane.served.entry.digest):
                lane.tell(entry)  # the same version, promoted anew
            else:
                apart(self._load, nice=LOADING_NICE)
        except PackageError as error:
            self._refuse(error, version)
            self._seen = seen
            self._remember(self.own.reason if self.own else "")
        else:
            self._seen, self._retry_at, self.own = seen, float("inf"), None

    def _load(self) -> None:
        """Open the version beside the running one and let it serve.

        Raises:
            PackageError: the version must not serve here.
        """
        with self._folder.loading():
            started = time.perf_counter()
            with opening(version_of(self._wanted)):
                wanted = take_over_or_fetch(self._wanted, self._settings)
                new = self._open_lane(open_live(wanted, self._settings, self.slot.lane.served.package))
            seconds = time.perf_counter() - started
        old = self.slot.swap(new)
        self._leaving.append(old)
        self._metrics.tell_swap(seconds)
        self._metrics.tell_model(new, old)
        self._serves_well()
        _log.info("Version %s serves, version %s ends; loaded in %.1f s.", new.version, old.version, seconds)

    def _serves_well(self) -> None:
        """Write down what a start falls back to. On a full disk a later look does it: what serves goes on meanwhile."""
        try:
            hand_over(self.slot.lane.served, self._folder.good(self.slot.alias))
        except OSError as error:
            if self._write_at == float("inf"):
                _log.warning("Version %s serves; that could not be written down: %s", self.slot.lane.version, error)
            self._write_at = time.monotonic() + FAILED_SECONDS
        else:
            self._write_at = float("inf")

    def _refuse(self, error: BlastwatchError, version: str) -> None:
        reason = reason_of(error)
        if self.own is not None and (self.own.reason, self.own.version) == (reason, version):
            return  # tried once more, with the same end: said already
        self.own = Refusal(reason=reason, version=version, message=str(error), since=now())
        self._metrics.swaps.labels("refused").inc()
        _log.warning("Version %s does not serve, version %s stays: %s", version, self.slot.lane.version, error)

    def _remember(self, reason: str) -> None:
        """What was refused is not tried again before its file changes."""
        if self._seen is None:
            self._seen = mark(self._wanted)
        self._retry_at = time.monotonic() + RETRY_SECONDS if reason in MAY_MEND else float("inf")

    def _see_off(self) -> None:
        """Forget lanes whose last request was answered, and give their memory back."""
        staying = [lane for lane in self._leaving if not lane.ended.is_set()]
        if len(staying) < len(self._leaving):
            self._leaving = staying
            give_back()

    def facts(self) -> dict[str, Any]:
        """What /v1/model says."""
        refused = self.refused
        reached = self.status.reached
        return {
            "alias": self.slot.alias,
            "since": self.slot.lane.since,
            "registry_reached": datetime.fromtimestamp(reached, UTC).isoformat(timespec="seconds") if reached else None,
            "refused": refused.shown() if refused else None,
        }


class Following:
    """The thread of one worker that follows; started by `start`, ended by `close`.

    Args:
        champion: the alias that answers. contest: the one beside it, where it is wanted.
    """

    def __init__(
        self, champion: Pursuit, folder: LiveFolder, child: FollowerChild, contest: Contest | None = None
    ) -> None:
        self._champion, self._contest = champion, contest
        self._folder = folder
        self._child = child
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="following", daemon=True)

    def start(self) -> None:
        """Begin to look; the first thing started is the follower."""
        self._thread.start()

    def nudge(self) -> None:
        """Let the follower look at the registry at once."""
        self._folder.nudged()

    def facts(self) -> dict[str, Any]:
        """What /v1/model says of the alias that answers."""
        return self._champion.facts()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._child.tend()
                self._champion.look()
                if self._contest is not None:
                    self._contest.look()
            except Exception:  # noqa: BLE001  (a full disk, no process to be had: looks go on, and so does what serves)
                _log.exception("A look at the followed version failed.")
                self._stop.wait(FAILED_SECONDS)

    def close(self) -> None:
        """End the thread and the follower; a version that is being loaded is left."""
        self._stop.set()
        self._thread.join(timeout=30)
        self._child.close()


def follow(pursuit: Pursuit, settings: Settings, contest: Contest | None, environment: Mapping[str, str]) -> Following:
    """Follow the alias of a pursuit, with a process that asks the registry for it and for the contest's."""
    folder, aliases = LiveFolder(settings.home), [pursuit.slot.alias, *([CHALLENGER] if contest else [])]
    return Following(
        pursuit, folder, FollowerChild(folder, aliases, Rest(settings, folder, aliases), environment), contest
    )
