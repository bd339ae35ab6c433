"""One loaded version and everything that belongs to it. A request takes the lane once and stays in it to the end.

Everything here may be called from any thread.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from blastwatch.entry import Entry
from blastwatch.explanation import Explainer
from blastwatch.settings import Settings
from serving.batcher import Batcher, Cell, Place, Row
from serving.live import LiveModel
from serving.live_folder import now
from serving.predictor import Predictor, Prepared, finite
from serving.remembered import Remembered

if TYPE_CHECKING:
    from serving.tracing import Traces


class Lane:
    """Version, engine, batcher. It ends once it is retired and nothing is in flight on it.

    Args:
        on_batch, on_queue: see `Batcher`.
        on_lookup: see `Remembered`.
        traces: where the spans of batches go.
    """

    def __init__(
        self,
        live: LiveModel,
        settings: Settings,
        *,
        on_batch: Callable[[int, float], None] = lambda _n, _s: None,
        on_queue: Callable[[int], None] = lambda _change: None,
        on_lookup: Callable[[str], None] = lambda _outcome: None,
        traces: "Traces | None" = None,
    ) -> None:
        self.served = live.served
        self.since = now()
        self.intervals = live.served.intervals()
        self.engine_name = live.engine.name
        self.predictor = Predictor(live.served, model_name=settings.model_name, engine=live.engine.name)
        self.explainer = Explainer(live.served.package)
        self.batcher = Batcher(
            live.engine,
            max_batch_size=settings.max_batch_size,
            longest_wait=settings.max_latency_ms / 1000,
            on_batch=on_batch,
            on_queue=on_queue,
            traces=traces,
        )
        self._remembered = Remembered(settings.answer_cache, on_lookup=on_lookup)
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._in_flight = 0
        self._retired = False

    @property
    def version(self) -> str:
        return self.served.entry.version

    @property
    def in_flight(self) -> int:
        """Requests that are being answered by this version."""
        return self._in_flight

    def coming(
        self, cells: int = 1, *, place: Place | None = None, patient: bool = False
    ) -> AbstractContextManager[None]:
        """See `Batcher.coming`."""
        return self.batcher.coming(cells, place=place, patient=patient)

    def part(self) -> int:
        """See `Batcher.part`."""
        return self.batcher.part()

    def reserve(self) -> Place:
        """See `Batcher.reserve`."""
        return self.batcher.reserve()

    async def outputs(
        self, cells: Sequence[Prepared], *, since: float | None = None, patient: bool = False
    ) -> list[Row]:  # fmt: skip
        """Logits and embedding of each cell, in order: remembered ones, the others by the batcher. Raises as
        `Batcher.run`."""
        known: dict[str, Row] = {}
        new: dict[str, Cell] = {}
        for cell in cells:
            row = self._remembered.find(cell.pixel_sha256)
            if row is None:
                new[cell.pixel_sha256] = cell.crop
            else:
                known[cell.pixel_sha256] = row
        rows = await self.batcher.run(list(new.values()), since=since, patient=patient) if new else []
        for digest, row in zip(new, rows, strict=True):
            known[digest] = row
            if finite(*row):  # else the next who asks for it may get an answer
                self._remembered.keep(digest, row)
        return [known[cell.pixel_sha256] for cell in cells]

    def tell(self, entry: Entry) -> None:
        """Take newer facts of the registry about the same version."""
        self.served = replace(self.served, entry=entry)

    def enter(self) -> bool:
        """Begin a request on this version; False where it takes no more. `leave` must follow."""
        with self._lock:
            self._in_flight += not self._retired
            return not self._retired

    def leave(self) -> None:
        with self._lock:
            self._in_flight -= 1
        self._end_if_done()

    def retire(self) -> None:
        """Take no new request; end when the last one is answered."""
        with self._lock:
            self._retired = True
        self._end_if_done()

    def close(self) -> None:
        """End now, waiting for the running batch."""
        self.batcher.close()
        self.ended.set()

    def _end_if_done(self) -> None:
        with self._lock:
            done = self._retired and self._in_flight == 0
        if done and not self.ended.is_set():
            # A request that ran out of time may have left its batch behind: it ends by itself, nobody waits for it.
            self.batcher.close(wait=False)
            self.ended.set()


class Slot:
    """Where requests find the lane of one alias. It is replaced in one step."""

    def __init__(self, alias: str, lane: Lane) -> None:
        self.alias = alias
        self.lane = lane

    @contextmanager
    def taken(self) -> Iterator[Lane]:
        """Hold the lane that serves now, for one request: it is this one to the end, whatever is swapped meanwhile."""
        lane = self.lane
        while not lane.enter():  # retired between the two steps, so another one stands here already
            lane = self.lane
        try:
            yield lane
        finally:
            lane.leave()

    def swap(self, lane: Lane) -> Lane:
        """Let another version serve from the next request on; returns the old lane, which ends by itself."""
        old, self.lane = self.lane, lane
        old.retire()
        return old
