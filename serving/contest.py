"""The challenger beside the champion, in one worker: it reads in shadow, and answers the callers of the canary.

The follower fetches and verifies what the alias `challenger` names, as it does for the champion. Here a look tells
whether there is a challenger now. One that is withdrawn, refused, or become champion stops both at once.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from blastwatch.errors import EngineBroken, PackageError
from blastwatch.registry import CHALLENGER
from blastwatch.settings import Settings
from monitoring.store import PredictionRecord
from serving.apart import LOADING_NICE, apart
from serving.canary import in_canary
from serving.engine_health import DEAD_SECONDS
from serving.lane import Lane, Slot
from serving.live import LiveModel, foreign, open_live, opening, read_handover
from serving.live_folder import REASONS, LiveFolder, Mark, Status, mark, now, reason_of
from serving.memory import MAY_MEND, RETRY_SECONDS, give_back
from serving.metrics import ServiceMetrics
from serving.shadow import Challenger, Shadow

_log = logging.getLogger("blastwatch.service")


class Contest:
    """Call `look` now and then, from one thread. Everything else may be called from any."""

    def __init__(
        self,
        champion: Slot,
        folder: LiveFolder,
        settings: Settings,
        metrics: ServiceMetrics,
        open_lane: Callable[[LiveModel], Lane],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self.shadow = Shadow(settings, metrics, environment) if settings.shadow_share else None
        self._champion, self._folder, self._settings, self._metrics = champion, folder, settings, metrics
        self._open_lane = open_lane
        self._began = time.time()
        self._status = Status()
        self._status_seen: Mark | None = None
        self._handed_over: Challenger | None = None
        self._handover_seen: Mark | None = None
        self._challenger: Challenger | None = None
        self._lane: Lane | None = None
        self._leaving: list[Lane] = []
        self._failed: Challenger | None = None
        self._retry_at = float("inf")
        self._refused: dict[str, str] | None = None
        self._told: set[str] | None = None

    def look(self) -> None:
        """One look at the files: begin, go on or stop."""
        self._see_off()
        challenger = self._present()
        if challenger != self._challenger:
            _log.info("The challenger is %s.", f"version {challenger.version}" if challenger else "nobody")
            self._challenger = challenger
        if self.shadow is not None:
            self.shadow.follow(challenger)
        if self._settings.canary_share:
            self._follow(challenger)
        self._tell()

    def canary(self, caller: str) -> Lane | None:
        """The lane that answers this caller instead of the champion's, which answers for one whose engine fails."""
        lane = self._answering()
        if lane is None or not in_canary(caller, lane.served.entry.digest, self._settings.canary_share):
            return None
        return lane

    def answered(self, lane: Lane, record: PredictionRecord, file: bytes) -> None:
        """Take note of an answer. Never waits."""
        if lane.served.alias == CHALLENGER:
            self._metrics.canary_answers.labels(record.label, record.decision).inc()
        elif self.shadow is not None:
            self.shadow.offer(record, file)

    def facts(self) -> dict[str, Any]:
        """What /v1/model says."""
        challenger, refused = self._challenger, self._status.refused
        return {
            "version": challenger.version if challenger else None,
            "digest": challenger.digest if challenger else None,
            "refused": refused.shown() if refused else None,
            "shadow": self.shadow.facts() if self.shadow else None,
            "canary": {
                "share": self._settings.canary_share,
                "answering": self._answering() is not None,
                "refused": self._refused,
            }
            if self._settings.canary_share
            else None,
        }

    def close(self) -> None:
        """Stop both; requests in flight should have ended before."""
        if self.shadow is not None:
            self.shadow.close()
        for lane in (self._lane, *self._leaving):
            if lane is not None:
                lane.close()

    # -- who challenges -----------------------------------------------------------------------------------------

    def _present(self) -> Challenger | None:
        """The challenger of now; None where there is none, or it must not serve."""
        seen = mark(self._folder.status(CHALLENGER))
        if seen != self._status_seen:
            self._status_seen, self._status = seen, self._folder.read_status(CHALLENGER)
        seen = mark(self._folder.wanted(CHALLENGER))
        if seen != self._handover_seen:
            self._handover_seen, self._handed_over = seen, self._read()
        refused, challenger = self._status.refused, self._handed_over
        if self._status.reached < self._began:
            return None  # files that an earlier service left: the follower has not asked the registry yet
        if refused is not None and refused.reason != "unreachable":
            return None
        if challenger is not None and challenger.digest == self._champion.lane.served.entry.digest:
            return None
        return challenger

    def _read(self) -> Challenger | None:
        path = self._folder.wanted(CHALLENGER)
        if foreign(path, self._settings):
            return None
        try:
            entry, _, _ = read_handover(path)
        except PackageError:
            return None
        return Challenger(entry.version, entry.digest, path, entry.word)

    def _tell(self) -> None:
        """Why the challenger does not serve, whoever found it: the follower, the shadow, or this worker. That nothing
        carries the alias is how it mostly is, and no refusal."""
        found = {self._status.refused.reason} if self._status.refused else set()
        found |= {said["reason"] for said in (self._refused, self.shadow.refused if self.shadow else None) if said}
        found -= {"alias-not-set"}
        if found != self._told:
            self._told = found
            for word in REASONS:
                self._metrics.refused.labels(CHALLENGER, word).set(word in found)

    # -- the canary ---------------------------------------------------------------------------------------------

    def _answering(self) -> Lane | None:
        lane = self._lane
        return lane if lane is not None and lane.batcher.health.ready else None

    def _follow(self, challenger: Challenger | None) -> None:
        lane, broken = self._lane, False
        # The digest alone would not do: a package that is registered anew answers under its new number from then on.
        if challenger and lane and (lane.version, lane.served.entry.digest) == (challenger.version, challenger.digest):
            broken = not lane.batcher.health.alive
            if not broken:
                return
        if lane is not None:  # before another is loaded: it should answer nobody any more, and its memory is needed
            self._lane = None
            lane.retire()
            self._leaving.append(lane)
            _log.info("Version %s leaves the canary.", lane.version)
        if challenger is None:
            # What keeps a challenger away for now, as a poll that MLflow refuses, mends no engine.
            if self._withdrawn() or not (self._refused and self._refused["reason"] == reason_of(EngineBroken())):
                self._failed = self._refused = None
        elif broken:
            said = f"Its engine failed for {DEAD_SECONDS:g} s. Mend that, then withdraw it and challenge with it anew."
            self._refuse(challenger, EngineBroken(said))
        elif challenger != self._failed or time.monotonic() > self._retry_at:
            self._load(challenger)

    def _withdrawn(self) -> bool:
        """Whether nobody challenges, rather than somebody who must not serve for now."""
        refused, named = self._status.refused, self._handed_over
        if refused is not None:
            return refused.reason == "alias-not-set"
        return named is not None and named.digest == self._champion.lane.served.entry.digest

    def _load(self, challenger: Challenger) -> None:
        try:
            lane = apart(lambda: self._open(challenger), nice=LOADING_NICE)
        except PackageError as error:
            self._refuse(challenger, error)
            return
        self._failed = self._refused = None
        self._lane = lane
        _log.info("Version %s answers the canary.", challenger.version)

    def _refuse(self, challenger: Challenger, error: PackageError) -> None:
        reason = reason_of(error)
        self._failed, self._retry_at = challenger, float("inf")
        if reason in MAY_MEND:
            self._retry_at = time.monotonic() + RETRY_SECONDS
        self._refused = {"version": challenger.version, "reason": reason, "since": now()}
        _log.warning("Version %s does not answer the canary: %s", challenger.version, error)

    def _open(self, challenger: Challenger) -> Lane:
        with self._folder.loading(), opening(challenger.version):
            wanted, champion = challenger.take_over(self._settings), self._champion.lane.served.package
            return self._open_lane(open_live(wanted, self._settings, champion))

    def _see_off(self) -> None:
        staying = [lane for lane in self._leaving if not lane.ended.is_set()]
        if len(staying) < len(self._leaving):
            self._leaving = staying
            give_back()


def unasked(settings: Settings) -> str | None:
    """What a service that follows nothing says where it is to ask a challenger; None where it is to ask none."""
    if not (settings.shadow_share or settings.canary_share):
        return None
    return (
        "No challenger is asked, though BLASTWATCH_SHADOW_SHARE or BLASTWATCH_CANARY_SHARE says so: this service stays "
        "on the version that it has, since BLASTWATCH_FOLLOW_SECONDS is 0 or a bento carries its own."
    )


def open_contest(
    champion: Slot,
    folder: LiveFolder,
    settings: Settings,
    metrics: ServiceMetrics,
    open_lane: Callable[[LiveModel], Lane],
    environment: Mapping[str, str],
) -> Contest | None:
    """The contest of a service that follows; None without a share above 0, or where the challenger itself serves."""
    if not (settings.shadow_share or settings.canary_share) or settings.model_alias == CHALLENGER:
        return None
    return Contest(champion, folder, settings, metrics, open_lane, environment)
