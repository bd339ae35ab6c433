"""What a worker of the service holds and its routes share: the version that serves, the capture, the guard."""

import asyncio
import contextvars
import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request
from starlette.types import Scope

from blastwatch.errors import ImageRejected
from blastwatch.settings import KEEP_NEVER, Settings
from monitoring.capture import Capture
from monitoring.image_capture import ImageCapture
from monitoring.store import Store, open_store
from serving.audit import AuditLog
from serving.batcher import Row
from serving.binding import keyless
from serving.callers import Callers, caller_of
from serving.drawing import Drawing
from serving.guard import GUARDED, open_guard
from serving.lane import Lane, Slot
from serving.live import LiveModel
from serving.metrics import ServiceMetrics
from serving.predictor import Cell, Prepared, prepare
from serving.problems import of_image
from serving.readers import Readers
from serving.told import Told

if TYPE_CHECKING:
    from serving.contest import Contest
    from serving.following import Following
    from serving.tracing import Traces

ASIDE_THREADS = 4
PLACE = "place"  # in a request's state: the `Place` that it was let in with

_log = logging.getLogger("blastwatch.service")
Result = TypeVar("Result")


class Service:
    """What the routes share: the version that serves, the capture. Built by the worker, closed when it ends.

    `slot` holds the lane of the version that serves. A route takes it once and stays in it.
    """

    def __init__(
        self, live: LiveModel, settings: Settings, metrics: ServiceMetrics, capture: Capture, readers: Readers
    ) -> None:
        self.settings, self.metrics, self.capture = settings, metrics, capture
        self.traces = _open_traces(settings)
        self.slot = Slot(live.served.alias, self.open_lane(live))
        self.following: Following | None = None
        self.contest: Contest | None = None
        self.images = _open_images(settings, metrics)
        self.callers = Callers(settings.patient_salt)
        self.told = Told(settings)
        self.guard = open_guard(settings, keyless=keyless(), refused=lambda name: metrics.kept_out.labels(name).inc())
        metrics.tell_model(self.slot.lane)
        self.audit = AuditLog(settings.audit_log, failed=self._audit_failed)
        # What may wait for a database, and what draws for long, must not keep images from being read.
        self._readers = readers
        self._aside = ThreadPoolExecutor(ASIDE_THREADS, thread_name_prefix="aside")
        self._scraping = ThreadPoolExecutor(1, thread_name_prefix="metrics")
        self._drawing = Drawing()
        self._store: Store | None = None
        self._store_lock = threading.Lock()

    @property
    def lane(self) -> Lane:
        """The lane that serves now; to answer with it, take it: `with service.taken(request) as lane`."""
        return self.slot.lane

    def open_lane(self, live: LiveModel) -> Lane:
        return Lane(
            live,
            self.settings,
            on_batch=self.metrics.observe_batch,
            on_queue=self.metrics.queue_cells.inc,
            on_lookup=lambda outcome: self.metrics.cache.labels(outcome).inc(),
            traces=self.traces,
        )

    def answering(self, scope: Scope) -> Lane:
        """The lane that answers this caller as things are: the champion's, or in the canary the other one."""
        canary = self.contest.canary(caller_of(scope)) if self.contest else None
        return canary or self.lane

    @contextmanager
    def taken(self, request: Request, *, cells: int = 1) -> Iterator[Lane]:
        """Hold the lane that answers this caller, for one request. Where the challenger left meanwhile, the champion
        answers."""
        request.state.cells = cells
        canary = self.contest.canary(caller_of(request.scope)) if self.contest else None
        if canary is None or not canary.enter():
            with self.slot.taken() as lane:
                request.state.model_version = lane.version
                yield lane
            return
        try:
            request.state.model_version = canary.version
            yield canary
        finally:
            canary.leave()

    async def aside(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """Run work that may wait for something else than this process, and would hold up the other requests."""
        return await self._in(self._aside, call, *arguments)

    async def scraped(self) -> bytes:
        """The text of /metrics, made in a thread of its own: whoever watches must see a database that is away, for
        which labels wait in all of the threads aside."""
        return await self._in(self._scraping, self.metrics.export)

    async def explain(self, lane: Lane, data: bytes) -> tuple[bytes, str]:
        """As `blastwatch.explanation.Explainer.explain`. Raises `Overloaded` where several wait for theirs."""
        draw = functools.partial(lane.explainer.explain, data, max_pixels=self.settings.max_image_pixels)
        with self._drawing.place():
            return await self._in(self._drawing.pool, self._drawing.timed, draw)

    async def _in(self, pool: Executor, call: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(pool, self._carried(call, *arguments))

    def _carried(self, call: Callable[..., Result], *arguments: Any) -> Callable[[], Result]:
        """A call that is made in a thread, within the span of this request."""
        work = functools.partial(call, *arguments)
        return work if self.traces is None else functools.partial(contextvars.copy_context().run, work)

    def step(self, name: str) -> AbstractContextManager[None]:
        """A span of the current request, where spans are made."""
        return nullcontext() if self.traces is None else self.traces.step(name)

    async def prepare(self, lane: Lane, data: bytes) -> Prepared:
        """Decode and measure one image for a lane, counted and timed. Raises `Problem`."""
        return await self._readers.run(self._carried(self._prepare, lane, data))

    def _prepare(self, lane: Lane, data: bytes) -> Prepared:
        started = time.perf_counter()
        try:
            with self.step("decode"):
                return prepare(
                    data,
                    lane.predictor.package,
                    max_bytes=self.settings.max_image_bytes,
                    max_pixels=self.settings.max_image_pixels,
                )
        except ImageRejected as error:
            self.metrics.rejected.labels(error.reason).inc()
            raise of_image(error) from error
        finally:
            self.metrics.step_seconds.labels("decode").observe(time.perf_counter() - started)

    def conclude(self, lane: Lane, cell: Cell, row: Row, started: float, patient: str) -> dict[str, Any]:
        """The answer for one cell, counted, handed to the captures and offered to the shadow."""
        seconds = time.perf_counter() - started
        answer, record = lane.predictor.answer(cell.prepared, *row, seconds=seconds, patient=patient)
        self.metrics.predictions.labels(record.label, record.decision).inc()
        with self.step("capture"):
            self.capture.submit(record)
        if self.images is not None:
            self.images.offer(record, cell.file)
        if self.contest is not None:
            self.contest.answered(lane, record, cell.file)
        return answer

    def store_label(self, identity: str, label: str) -> None:
        """Store the truth for one prediction; its id may come in capitals. Raises as `Store.add_labels`."""
        changed = self._opened_store().add_labels([(identity.lower(), label, datetime.now(UTC))])
        self.metrics.labels.labels(label).inc(changed)  # 0 for the same one again

    def _opened_store(self) -> Store:
        """The one store of this worker. Of several first labels each opens one, since that may take long where the
        database is away, and all but one are closed again."""
        store = self._store
        if store is None:
            opened = open_store(self.settings.predictions_url)
            with self._store_lock:
                store = self._store = self._store or opened
            if store is not opened:
                opened.close()
        return store

    def observe(self, route: str, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that was answered, and write it into the audit log."""
        if PLACE in scope["state"]:
            scope["state"][PLACE].leave()
        self.metrics.observe_request(route, status, seconds, problem=scope["state"].get("problem", ""))
        if self.traces is not None:
            self.traces.end(scope, route, status)
        if scope["path"].startswith(GUARDED):
            self.audit.write(scope, route=route, status=status, seconds=seconds)

    def _audit_failed(self, error: OSError) -> None:
        self.metrics.audit_failures.inc()
        _log.error("A line of the audit log is lost: %s", error)

    def close(self) -> None:
        """End the threads, flush the capture."""
        if self.following is not None:
            self.following.close()
        if self.contest is not None:
            self.contest.close()
        self.slot.lane.close()
        self.capture.close()  # before the threads that may wait for its database
        if self.images is not None:
            self.images.close()
        for pool in (self._readers, self._aside, self._scraping, self._drawing.pool):
            pool.shutdown(wait=True, cancel_futures=True)
        if self._store is not None:
            self._store.close()
        self.guard.close()
        self.audit.close()
        self.metrics.close()
        if self.traces is not None:
            self.traces.close()


def _open_traces(settings: Settings) -> "Traces | None":
    if not settings.traces:
        return None
    from serving.tracing import open_traces

    return open_traces(settings.traces)


def _open_images(settings: Settings, metrics: ServiceMetrics) -> ImageCapture | None:
    if settings.keep_images == KEEP_NEVER:
        return None
    stored, dropped, failed = (metrics.images.labels(outcome).inc for outcome in ("stored", "dropped", "failed"))
    return ImageCapture(settings, on_stored=stored, on_dropped=dropped, on_failed=failed)
