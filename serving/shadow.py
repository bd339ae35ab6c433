"""The challenger in shadow: it reads a share of the cells that the champion answered, off the caller's path.

    offer --> bounded queue --> one thread <--> child process at SCHED_IDLE --> table `shadow`

`offer` takes a moment and never waits. A full queue sheds and counts: while no core is free the child gets no time,
the queue stays full, and the shadow so costs nothing but its memory. What waited too long is shed too: of a patient who
is forgotten meanwhile nothing may come into the table afterwards. A child that ends, hangs or gives no sense is
started again after a pause that grows; the caller sees nothing of it.
"""

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blastwatch.errors import PackageError
from blastwatch.settings import Settings
from monitoring.capture import QueuedWriter, Rows
from monitoring.shadow_store import ShadowRecord, open_shadow_store
from monitoring.store import PredictionRecord
from serving.apart import LOADING_NICE, apart
from serving.canary import in_shadow
from serving.live import Served, opening, take_over_or_fetch
from serving.live_folder import LiveFolder, now, reason_of
from serving.memory import MAY_MEND, RETRY_SECONDS
from serving.shadow_child import ChildFailed, ChildRefused, Said, ShadowChild, Stopped
from serving.shadow_wire import LARGEST_DATA

if TYPE_CHECKING:
    from serving.metrics import ServiceMetrics

QUEUE_CELLS, QUEUE_BYTES = 512, LARGEST_DATA  # image files that may wait, as the callers sent them
LONGEST_WAIT = 30.0  # seconds that a cell waits for the child, so that one it turns to has time left for being read
LONGEST_WAY = 55.0  # seconds from a cell's answer to its comparison: `store forget` is told again after a minute
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds before a child that failed is started again
STEADY_CELLS = 100  # after so many answers the next failure pauses briefly again
IDLE_SECONDS = 0.5  # between two looks of the thread at what it shall do

_FAILURES = (ChildFailed, OSError, MemoryError)
"""Of a child, whichever side they show on: it is started again."""

_log = logging.getLogger("blastwatch.service")


@dataclass(frozen=True)
class Challenger:
    """The version that challenges, the file that hands it over, and the number of the word that named it: named anew
    it is tried anew."""

    version: str
    digest: str
    handover: Path
    word: int = 0

    def take_over(self, settings: Settings) -> Served:
        """What was handed over, verified; where the copy on this machine is not that, it is fetched anew.

        Raises:
            PackageError: it cannot be had, or another one is named there by now.
        """
        served = take_over_or_fetch(self.handover, settings)
        if served.package.digest != self.digest:
            raise PackageError(f"Expected package {self.digest} in {self.handover}, another is named.")
        return served


class _Compared:
    """The store of what both said. It counts a comparison when that lies there, and so none that is lost on its way."""

    def __init__(self, rows: Rows[ShadowRecord], stored: Callable[[ShadowRecord], None]) -> None:
        self._rows, self._stored = rows, stored

    def add(self, records: Sequence[ShadowRecord], /) -> None:
        self._rows.add(records)
        for record in records:
            self._stored(record)

    def close(self) -> None:
        self._rows.close()


class Shadow:
    """The shadow of one worker; `follow` names the challenger, `close` ends it.

    Args:
        child_words: what to run instead of `serving.shadow_worker`, for tests.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: "ServiceMetrics",
        environment: Mapping[str, str] = os.environ,
        *,
        child_words: tuple[str, ...] | None = None,
    ) -> None:
        self._settings, self._metrics, self._environment = settings, metrics, environment
        self._words = {} if child_words is None else {"words": child_words}
        self._queue: queue.Queue[tuple[PredictionRecord, bytes, float]] = queue.Queue(QUEUE_CELLS)
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._challenger: Challenger | None = None
        self._refusal: tuple[Challenger, dict[str, str]] | None = None
        self._fetched: Challenger | None = None
        self._ready = False
        self._closing = threading.Event()
        self._changed = threading.Event()
        self._writer = QueuedWriter[ShadowRecord](
            lambda: _Compared(open_shadow_store(settings.predictions_url), self._stored),
            queue_size=settings.capture_queue,
            on_dropped=metrics.shadow_cells.labels("failed").inc,
        )
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    def follow(self, challenger: Challenger | None) -> None:
        """Let another challenger read from now on, or none."""
        if challenger == self._challenger:
            return
        self._challenger, self._refusal, self._fetched = challenger, None, None
        self._changed.set()

    @property
    def refused(self) -> dict[str, str] | None:
        """Why the present challenger does not read here: version, reason, since. The words stay in the log."""
        refusal = self._refusal
        return refusal[1] if refusal is not None and refusal[0] == self._challenger else None

    def offer(self, record: PredictionRecord, data: bytes) -> None:
        """Hand over a cell that was answered; `data` is the image file. Never waits, never raises."""
        challenger = self._challenger
        if challenger is None or self.refused is not None or challenger.digest == record.model_digest:
            return
        if not in_shadow(record.id, self._settings.shadow_share):
            return
        if record.seen:
            self._count("seen")
            return
        with self._lock:
            fits = self._waiting_bytes + len(data) <= QUEUE_BYTES
            self._waiting_bytes += len(data) if fits else 0
        if fits:
            try:
                self._queue.put_nowait((record, data, time.monotonic()))
                return
            except queue.Full:
                self._forget(data)
        self._count("shed")

    def facts(self) -> dict[str, Any]:
        """What /v1/model says."""
        return {"share": self._settings.shadow_share, "reading": self._ready, "refused": self.refused}

    def close(self) -> None:
        """End the child, leave what waits, and write what was compared."""
        self._closing.set()
        self._changed.set()
        self._thread.join(timeout=10)
        self._writer.close()

    # -- the thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            self._changed.clear()
            if self._closing.is_set():
                return
            challenger = self._challenger
            if challenger is None or self.refused is not None:
                self._empty()
                self._rest()
                continue
            answered = self._serve(challenger)
            pause = FIRST_PAUSE if answered >= STEADY_CELLS else pause
            if self.refused is None:
                self._changed.wait(pause)
            pause = min(LONGEST_PAUSE, 2 * pause)

    def _rest(self) -> None:
        """Wait until something changes; what needs too much memory is tried again after a while."""
        refused = self.refused
        again = refused is not None and refused["reason"] in MAY_MEND
        if not self._changed.wait(RETRY_SECONDS if again else None):
            self._refusal = self._fetched = None

    def _serve(self, challenger: Challenger) -> int:
        """Run one child until it fails or something changes; returns how many cells it answered."""
        answered = 0
        try:
            child = ShadowChild(
                challenger.handover,
                challenger.digest,
                self._environment,
                stopped=self._changed.is_set,
                **self._words,
            )
        except OSError as error:  # no process to be had
            _log.warning("The shadow cannot be started: %s", error)
            return 0
        try:
            told = child.wait_until_ready()
            self._ready, self._fetched = True, None
            _log.info("Version %s reads in shadow (%s, %s).", challenger.version, told["engine"], told["priority"])
            while not self._changed.is_set():
                answered += self._one(child, challenger)
        except Stopped:
            pass
        except ChildRefused as error:
            if (refused := self._after_fetching(challenger, error)) is not None:
                said = {"version": challenger.version, "reason": refused.reason, "since": now()}
                self._refusal = (challenger, said)
                _log.warning("Version %s does not read in shadow: %s", challenger.version, refused)
        except _FAILURES as error:
            self._metrics.shadow_restarts.inc()
            _log.warning("The shadow of version %s is started again: %s", challenger.version, error)
        finally:
            self._ready = False
            child.close()
        return answered

    def _after_fetching(self, challenger: Challenger, refused: ChildRefused) -> ChildRefused | None:
        """None where another child may find the copy on this machine whole, which was damaged: it is fetched anew once.

        Not by the child: at its priority it might hold the lock of those that load for as long as no core is free.
        """
        if refused.reason != "corrupt" or self._fetched == challenger:
            return refused
        self._fetched = challenger
        try:
            with opening(challenger.version), LiveFolder(self._settings.home).loading():
                apart(lambda: challenger.take_over(self._settings), nice=LOADING_NICE)
        except PackageError as error:
            return ChildRefused(reason_of(error), str(error))
        return None

    def _one(self, child: ShadowChild, challenger: Challenger) -> int:
        """Let the child read the next cell, where one waits; returns how many it answered."""
        try:
            record, data, offered = self._queue.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            child.check()
            return 0
        self._forget(data)
        if time.monotonic() - offered > LONGEST_WAIT:
            self._count("shed")
            return 0
        try:
            said = child.ask(data)
        except Stopped:
            self._count("shed")
            raise
        except _FAILURES:
            self._count("failed")
            raise
        if said is None:
            self._count("failed")
            return 0
        if said.seen:
            self._count("seen")
        elif time.monotonic() - offered > LONGEST_WAY:
            self._count("shed")
        else:
            self._compare(record, challenger, said)
        return 1

    def _compare(self, record: PredictionRecord, challenger: Challenger, said: Said) -> None:
        self._writer.submit(
            ShadowRecord(
                id=record.id,
                time=record.time,
                champion_version=record.model_version,
                champion_digest=record.model_digest,
                champion_probability=record.probability,
                champion_label=record.label,
                champion_decision=record.decision,
                challenger_version=challenger.version,
                challenger_digest=challenger.digest,
                challenger_probability=said.probability,
                challenger_label=said.label,
                challenger_decision=said.decision,
                patient=record.patient,
            )
        )

    def _stored(self, row: ShadowRecord) -> None:
        self._count("compared")
        if row.challenger_label != row.champion_label:
            self._count("flipped")
        self._metrics.shadow_difference.observe(abs(row.challenger_probability - row.champion_probability))

    def _forget(self, data: bytes) -> None:
        with self._lock:
            self._waiting_bytes -= len(data)

    def _empty(self) -> None:
        """Nobody reads: let go of what waits."""
        while True:
            try:
                self._forget(self._queue.get_nowait()[1])
            except queue.Empty:
                return
            self._count("shed")

    def _count(self, outcome: str) -> None:
        self._metrics.shadow_cells.labels(outcome).inc()
