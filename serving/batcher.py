"""Cells of concurrent requests meet in batches of the engine, within one process.

Whoever comes while the engine is busy joins a later batch; an idle engine starts at once, so a single caller never
waits for company. An engine that computes several batches abreast shares those who wait among them; a cell that comes
to an idle one has the whole of it.

BentoML's own ways were left for reasons: a batchable service joined by `depends` pickles arrays between two processes
and lost 8 % of the calls, and its batchable methods answer only their own routes, with their own shape of error.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blastwatch.engines import Engine, Outputs
from serving.problems import Overloaded

if TYPE_CHECKING:
    from serving.tracing import Mark, Traces

Cell = NDArray[np.float32]
Row = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits (2,) and embedding (d,) of one cell."""

ABREAST_CELLS = 4
"""In each of several batches at a time: more make none of them faster, and who comes next waits longer."""

_FORGET = 0.8  # weight of the past in the running mean of seconds a cell


@dataclass
class _Waiting:
    cell: Cell
    since: float
    patient: bool
    done: "asyncio.Future[Row]"
    mark: "Mark | None"


class Batcher:
    """One queue before one engine. Use it from the event loop that first awaits it.

    Args:
        engine: called in threads of its own, `abreast` batches at a time.
        max_batch_size: cells that the engine has at a time.
        longest_wait: seconds that a cell may wait for its batch before `Overloaded` is raised.
        on_batch: called with the number of cells and the seconds of each batch.
        traces: where the spans of batches go.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch_size: int,
        longest_wait: float,
        on_batch: Callable[[int, float], None] = lambda _cells, _seconds: None,
        traces: "Traces | None" = None,
    ) -> None:
        self._engine = engine
        self._largest = max_batch_size if engine.abreast == 1 else min(ABREAST_CELLS, max_batch_size)
        self._longest_wait = longest_wait
        self._on_batch = on_batch
        self._traces = traces
        self._queue: deque[_Waiting] = deque()
        self._coming = 0
        self._threads = ThreadPoolExecutor(engine.abreast, thread_name_prefix="engine")
        self._running: set[asyncio.Task[None]] = set()
        self._alone = False
        self._seconds_a_cell = 0.0

    @contextmanager
    def coming(self, cells: int = 1, *, patient: bool = False) -> Iterator[None]:
        """Let in cells whose images are read meanwhile; afterwards they go to `run`.

        Args:
            patient: for the later parts of a call that was already let in.

        Raises:
            Overloaded: see `check_room`.
        """
        if not patient:
            self.check_room()
        self._coming += cells
        try:
            yield
        finally:
            self._coming -= cells

    def check_room(self) -> None:
        """Raise `Overloaded` where those who wait would keep another cell waiting too long."""
        before = self._coming + len(self._queue)
        expected = before * self._seconds_a_cell
        if expected > self._longest_wait:
            raise Overloaded(retry_after=max(1, math.ceil(expected)), waiting=before)

    async def run(self, cells: Sequence[Cell], *, patient: bool = False) -> list[Row]:
        """Logits and embedding of each cell, in order.

        Args:
            cells: float32 (3, size, size) each.
            patient: wait as long as it takes.

        Raises:
            Overloaded: a cell waited too long.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        mark = None if self._traces is None else self._traces.mark()
        waiting = [_Waiting(cell, now, patient, loop.create_future(), mark) for cell in cells]
        idle = not self._queue and not self._running
        self._queue.extend(waiting)
        self._start(alone=idle and len(waiting) == 1)
        try:
            return list(await asyncio.gather(*(row.done for row in waiting)))
        finally:
            for row in waiting:  # the caller went away: spare the engine what nobody reads
                row.done.cancel()

    def _start(self, *, alone: bool = False) -> None:
        """Let every idle part of the engine have its share of those who wait, or all of it a cell that is alone."""
        while self._queue and not self._alone and len(self._running) < self._engine.abreast:
            # A part that takes all who wait leaves none to the next part that is done before they come again.
            share = math.ceil(len(self._queue) / self._engine.abreast)
            batch = self._next_batch(min(share, self._largest))
            if batch:
                self._alone = alone or self._engine.abreast == 1
                task = asyncio.get_running_loop().create_task(self._run(batch, alone=self._alone))
                self._running.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        self._alone = False
        self._start()

    async def _run(self, batch: list[_Waiting], *, alone: bool) -> None:
        cells = np.stack([row.cell for row in batch])
        began = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._threads, self._timed, cells, alone)
        await asyncio.wait([running])
        if self._traces is not None:
            self._traces.batch([row.mark for row in batch if row.mark], began, time.monotonic())
        error = running.exception()
        for index, row in enumerate(batch):
            if row.done.done():
                continue
            if error is not None:
                row.done.set_exception(error)
            else:
                outputs = running.result()
                row.done.set_result((outputs.logits[index], outputs.embeddings[index]))

    def _next_batch(self, most: int) -> list[_Waiting]:
        """The cells that waited longest; those that waited too long are turned away here."""
        batch: list[_Waiting] = []
        now = time.monotonic()
        while self._queue and len(batch) < most:
            row = self._queue.popleft()
            if row.done.done():
                continue
            if not row.patient and now - row.since > self._longest_wait:
                row.done.set_exception(
                    Overloaded(retry_after=max(1, math.ceil(now - row.since)), waiting=len(self._queue))
                )
                continue
            batch.append(row)
        return batch

    def _timed(self, cells: Cell, alone: bool) -> Outputs:
        started = time.perf_counter()
        outputs = (self._engine.infer if alone else self._engine.infer_beside)(cells)
        seconds = time.perf_counter() - started
        latest = seconds / len(cells) / (1 if alone else self._engine.abreast)
        past = self._seconds_a_cell
        self._seconds_a_cell = latest if past == 0 else _FORGET * past + (1 - _FORGET) * latest
        self._on_batch(len(cells), seconds)
        return outputs

    def close(self, *, wait: bool = True) -> None:
        """Let the running batches end and take no more."""
        self._threads.shutdown(wait=wait, cancel_futures=True)
