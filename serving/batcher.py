"""Cells of concurrent requests meet in one batch of the engine, within one process.

Whoever comes while the engine is busy joins the next batch; an idle engine starts at once, so a single caller never
waits for company. BentoML's own ways were left for reasons: a batchable service joined by `depends` pickles arrays
between two processes and lost 8 % of the calls, and its batchable methods answer only their own routes, with their
own shape of error.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blastwatch.engines import Outputs
from serving.problems import Overloaded

if TYPE_CHECKING:
    from serving.tracing import Mark, Traces

Cell = NDArray[np.float32]
Row = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Logits (2,) and embedding (d,) of one cell."""

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
        infer: the engine; called in a thread of its own, one batch at a time.
        max_batch_size: cells in one call of `infer`.
        longest_wait: seconds that a cell may wait for its batch before `Overloaded` is raised.
        on_batch: called with the number of cells and the seconds of each batch.
        traces: where the spans of batches go.
    """

    def __init__(
        self,
        infer: Callable[[Cell], Outputs],
        *,
        max_batch_size: int,
        longest_wait: float,
        on_batch: Callable[[int, float], None] = lambda _cells, _seconds: None,
        traces: "Traces | None" = None,
    ) -> None:
        self._infer = infer
        self._max_batch_size = max_batch_size
        self._longest_wait = longest_wait
        self._on_batch = on_batch
        self._traces = traces
        self._queue: deque[_Waiting] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._pump: asyncio.Task[None] | None = None
        self._seconds_a_cell = 0.0

    async def run(self, cells: Sequence[Cell], *, patient: bool = False) -> list[Row]:
        """Logits and embedding of each cell, in order.

        Args:
            cells: float32 (3, size, size) each.
            patient: wait as long as it takes; for the later parts of a call that was already let in.

        Raises:
            Overloaded: the cells that wait already would take too long, or did.
        """
        expected = len(self._queue) * self._seconds_a_cell
        if not patient and expected > self._longest_wait:
            raise Overloaded(retry_after=max(1, math.ceil(expected)), waiting=len(self._queue))
        loop, now = asyncio.get_running_loop(), time.monotonic()
        mark = None if self._traces is None else self._traces.mark()
        waiting = [_Waiting(cell, now, patient, loop.create_future(), mark) for cell in cells]
        self._queue.extend(waiting)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._drain())
        try:
            return list(await asyncio.gather(*(row.done for row in waiting)))
        finally:
            for row in waiting:  # the caller went away: spare the engine what nobody reads
                row.done.cancel()

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            cells = np.stack([row.cell for row in batch])
            began = time.monotonic()
            running = loop.run_in_executor(self._thread, self._timed, cells)
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

    def _next_batch(self) -> list[_Waiting]:
        """The cells that waited longest; those that waited too long are turned away here."""
        batch: list[_Waiting] = []
        now = time.monotonic()
        while self._queue and len(batch) < self._max_batch_size:
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

    def _timed(self, cells: Cell) -> Outputs:
        started = time.perf_counter()
        outputs = self._infer(cells)
        seconds = time.perf_counter() - started
        latest = seconds / len(cells)
        past = self._seconds_a_cell
        self._seconds_a_cell = latest if past == 0 else _FORGET * past + (1 - _FORGET) * latest
        self._on_batch(len(cells), seconds)
        return outputs

    def close(self, *, wait: bool = True) -> None:
        """Let the running batch end and take no more."""
        self._thread.shutdown(wait=wait, cancel_futures=True)
