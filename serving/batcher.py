"""Cells of concurrent requests meet in batches of the engine, within one process.

Whoever comes while the engine is busy joins a later batch; an idle engine starts at once, so a single caller never
waits for company. An engine that computes several batches abreast shares those who wait among them; a cell that comes
to an idle one has the whole of it.

The threads of the engine take their batches themselves. Were the event loop to hand them out, the engine would wait for
a turn of it between two batches, and a turn takes longest when there are most to be answered.

BentoML's own ways were left for reasons: a batchable service joined by `depends` pickles arrays between two processes
and lost 8 % of the calls, and its batchable methods answer only their own routes, with their own shape of error.
"""

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blastwatch.inference import Engine, Outputs
from serving.apart import ENGINE_NICE, step_back
from serving.engine_health import EngineHealth
from serving.memory import trim
from serving.problems import Overloaded

if TYPE_CHECKING:
    from serving.tracing import Mark, Traces

Cell = NDArray[np.uint8]
Row = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits (2,) and embedding (d,) of one cell."""

ABREAST_CELLS = 4
"""In each of several batches at a time on the cores: more make none faster, and who comes next waits longer."""

IDLE_SECONDS = 10.0  # after which memory that requests took goes back to the system: whoever comes then may wait for it
_FULL = 0.5  # of the longest wait; who was let in by an estimate that erred would be turned away after all of it
_PART = 0.25  # of the longest wait, that a part of a large call takes at most: half of what lets others in
_BODY = 0.5  # of the longest wait, that the time of a request's body counts for at most
_FORGET = 0.8  # weight of the past in the running mean of seconds a cell


@dataclass
class _Waiting:
    cell: Cell
    since: float
    patient: bool
    done: "asyncio.Future[Row]"  # set by its loop alone
    mark: "Mark | None"


class Place:
    """Room for a request that was let in, while its body is read: until its cells count themselves, or it ends.

    A body that comes slowly keeps its place from nobody for longer than a cell may wait. `since` is from where on the
    wait of its cell counts.
    """

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.left = False

    def leave(self) -> None:
        self.left = True

    def read(self, longest_wait: float) -> None:
        """Its body is here. The time that it took counts, since under overload it is the event loop that reads late,
        but for a part of the wait at most: else a slow line would be turned away from an idle engine.

        Args:
            longest_wait: seconds, as of `Batcher`.
        """
        self.since = max(self.since, time.monotonic() - _BODY * longest_wait)
        self.leave()


@dataclass(frozen=True)
class BatchSizes:
    """Cells at a time that an engine gets at most: by `infer`, when it has all of it, and by `infer_beside`."""

    alone: int
    beside: int


def batch_sizes(engine: Engine, max_batch_size: int) -> BatchSizes:
    """Where an engine computes several batches at a time, it is one lone cell that gets all of it."""
    if engine.abreast == 1:
        return BatchSizes(alone=max_batch_size, beside=max_batch_size)
    return BatchSizes(alone=1, beside=min(ABREAST_CELLS, max_batch_size) if engine.on_cores else max_batch_size)


class Batcher:
    """One queue before one engine. Use it from one event loop.

    Args:
        engine: called in threads of its own, `abreast` batches at a time.
        max_batch_size: cells that the engine has at a time.
        longest_wait: seconds that a cell may wait for its batch before `Overloaded` is raised.
        on_batch: called with the number of cells and the seconds of each batch.
        on_queue: called with the number of cells that came to the queue, and negative with those that left it.
        traces: where the spans of batches go.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch_size: int,
        longest_wait: float,
        on_batch: Callable[[int, float], None] = lambda _cells, _seconds: None,
        on_queue: Callable[[int], None] = lambda _change: None,
        traces: "Traces | None" = None,
    ) -> None:
        self.health = EngineHealth()
        self._engine = engine
        self._max_batch_size = max_batch_size
        self._largest = batch_sizes(engine, max_batch_size).beside
        self._longest_wait = longest_wait
        self._on_batch = on_batch
        self._on_queue = on_queue
        self._traces = traces
        self._coming = 0
        self._places: deque[Place] = deque()
        self._seconds_a_cell = 0.0
        self._lag = 0.0  # seconds until the event loop came to what was next for it, when that was last felt
        self._feeling = False  # how long this turn of the event loop takes is on the way
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()  # this and the next four under `_changed`
        self._running = 0
        self._alone = False
        self._tidy = False
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True)
            for number in range(engine.abreast)
        ]
        for thread in self._threads:
            thread.start()

    def reserve(self) -> Place:
        """Let a request in before its body is read.

        Raises:
            Overloaded: see `check_room`.
        """
        self.check_room()
        place = Place()
        self._places.append(place)
        return place

    @contextmanager
    def coming(self, cells: int = 1, *, place: Place | None = None, patient: bool = False) -> Iterator[None]:
        """Let in cells whose images are read meanwhile; afterwards they go to `run`.

        Args:
            place: where the request has one, its body is read now and it is given up for the cells; one cell then needs
                no room but this.
            patient: for the later parts of a call that was already let in.

        Raises:
            Overloaded: see `check_room`.
        """
        has_room = patient or (cells == 1 and place in self._places)
        if place is not None:
            place.read(self._longest_wait)
        if not has_room:
            self.check_room()
        self._coming += cells
        try:
            yield
        finally:
            self._coming -= cells

    def part(self) -> int:
        """Cells of a large call that may wait at a time, at the speed of the latest batches: beside them there is room
        for others. Of an engine whose speed is not known yet, what it computes at a time."""
        if self._seconds_a_cell == 0:
            return min(self._max_batch_size, self._largest * self._engine.abreast)
        most = min(self._max_batch_size, int(_PART * self._longest_wait / self._seconds_a_cell))
        most -= most % self._engine.abreast  # else one of several batches abreast is done before the others
        return max(1, most)

    def check_room(self) -> None:
        """Raise `Overloaded` where those who wait would keep another cell waiting too long."""
        now = time.monotonic()
        while self._places and (self._places[0].left or now - self._places[0].since > self._longest_wait):
            self._places.popleft()
        before = sum(not place.left for place in self._places) + self._coming + len(self._queue)
        # The request waited for a turn of the event loop before it came here, and its answer will wait for another.
        expected = before * self._seconds_a_cell + 2 * self._lag
        if before and expected > _FULL * self._longest_wait:
            # A lag that is over is to keep nobody else out, and there may be no outcome to feel that by.
            # From the first of a turn: those refused later in it would measure what is left of it.
            if not self._feeling:
                self._feeling = True
                asyncio.get_running_loop().call_soon(self._end_of_turn, now)
            raise Overloaded(retry_after=max(1, math.ceil(expected)), waiting=before)

    async def run(
        self, cells: Sequence[Cell], *, since: float | None = None, patient: bool = False
    ) -> list[Row]:  # fmt: skip
        """Logits and embedding of each cell, in order.

        Args:
            cells: crops, uint8 (size, size, 3) each.
            since: when they were let in (`Place.since`), from where on their wait counts; None: now.
            patient: wait as long as it takes.

        Raises:
            Overloaded: a cell waited too long.
        """
        loop = asyncio.get_running_loop()
        since = time.monotonic() if since is None else since
        mark = None if self._traces is None else self._traces.mark()
        waiting = [_Waiting(cell, since, patient, loop.create_future(), mark) for cell in cells]
        with self._changed:
            self._queue.extend(waiting)
            self._on_queue(len(waiting))
            self._changed.notify(min(len(waiting), self._engine.abreast))
        try:
            if len(waiting) == 1:  # most calls have one cell
                return [await waiting[0].done]
            return list(await asyncio.gather(*(row.done for row in waiting)))
        finally:
            for row in waiting:  # the caller went away: spare the engine what nobody reads
                row.done.cancel()

    def _work(self) -> None:
        """One thread of the engine: a batch after another, until the end."""
        if self._engine.on_cores:  # one that feeds a GPU must not wait for a core itself
            step_back(ENGINE_NICE)
        while True:
            with self._changed:
                batch = self._next_batch()
                while not batch and not self._closed:
                    self._wait()
                    batch = self._next_batch()
                if not batch:
                    return
                self._tidy = False
                alone = self._alone = self._engine.abreast == 1 or (
                    len(batch) == 1 and not self._running and not self._queue
                )
                self._running += 1
            try:
                self._infer(batch, alone=alone)
            finally:
                with self._changed:
                    self._running -= 1
                    self._alone = False
                    if self._queue:
                        self._changed.notify_all()

    def _wait(self) -> None:
        """Until something changes. What a rush of requests took is given back once nobody came for a while."""
        if self._tidy:
            self._changed.wait()
        elif not self._changed.wait(IDLE_SECONDS) and not (self._running or self._tidy):
            self._tidy = True
            self._engine.rest()
            trim()

    def _next_batch(self) -> list[_Waiting]:
        """A share of the cells that waited longest, or none; those that waited too long are turned away here."""
        if self._alone:  # it has the whole engine
            return []
        batch: list[_Waiting] = []
        now = time.monotonic()
        # A part that takes all who wait leaves none to the next part that is done before they come again.
        waited = len(self._queue)
        share = math.ceil(waited / self._engine.abreast)
        while self._queue and len(batch) < min(share, self._largest):
            row = self._queue.popleft()
            if row.done.done():
                continue
            if not row.patient and now - row.since > self._longest_wait:
                self._tell([row], Overloaded(retry_after=max(1, math.ceil(now - row.since)), waiting=len(self._queue)))
                continue
            batch.append(row)
        if len(self._queue) < waited:
            self._on_queue(len(self._queue) - waited)
        return batch

    def _infer(self, batch: list[_Waiting], *, alone: bool) -> None:
        try:
            cells = np.stack([row.cell for row in batch])
            began = time.monotonic()
            outputs = (self._engine.infer if alone else self._engine.infer_beside)(cells)
            ended = time.monotonic()
            latest = (ended - began) / len(cells) / (1 if alone else self._engine.abreast)
            past = self._seconds_a_cell
            self._seconds_a_cell = latest if past == 0 else _FORGET * past + (1 - _FORGET) * latest
            self._on_batch(len(cells), ended - began)
            if self._traces is not None:
                self._traces.batch([row.mark for row in batch if row.mark], began, ended)
        except Exception as error:  # noqa: BLE001  (each caller raises it; the engine goes on with the next batch)
            self.health.failed()
            self._tell(batch, error)
        else:
            self.health.answered()
            self._tell(batch, outputs)

    def _tell(self, batch: Sequence[_Waiting], outcome: Outputs | Exception) -> None:
        """Give each of a batch its row, or the error, in the turn of its event loop that comes next."""
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            batch[0].done.get_loop().call_soon_threadsafe(self._hand_on, batch, outcome, time.monotonic())

    def _hand_on(self, batch: Sequence[_Waiting], outcome: Outputs | Exception, told: float) -> None:
        self._feel(told)
        for index, row in enumerate(batch):
            if row.done.done():
                continue
            if isinstance(outcome, Exception):
                row.done.set_exception(outcome)
            else:
                row.done.set_result((outcome.logits[index], outcome.embeddings[index]))

    def _feel(self, since: float) -> None:
        self._lag = time.monotonic() - since

    def _end_of_turn(self, began: float) -> None:
        self._feeling = False
        self._feel(began)

    def close(self, *, wait: bool = True) -> None:
        """Answer those who wait, and take no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()
