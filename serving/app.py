"""The routes of the service, as one Starlette application that BentoML mounts."""

import asyncio
import contextvars
import functools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from blastwatch import DISCLAIMER
from blastwatch.errors import DataError, ImageRejected
from blastwatch.settings import Settings
from monitoring.capture import GATHER_SECONDS, Capture
from monitoring.store import Store, StoreError, UnknownPredictions, open_store
from serving.audit import AuditLog
from serving.batcher import Row
from serving.binding import keyless
from serving.callers import Callers, caller_of, check_headers
from serving.guard import GUARDED, open_guard
from serving.handlers import HANDLERS
from serving.lane import Lane, Slot
from serving.limits import SMALL_BODY, Limits
from serving.live import LiveModel
from serving.metrics import ServiceMetrics
from serving.openapi import document
from serving.page_routes import page_routes
from serving.predictor import Prepared, prepare
from serving.problems import Problem, of_image
from serving.told import Told
from serving.uploads import files, read_files, read_object
from serving.webhook import receive

if TYPE_CHECKING:
    from serving.contest import Contest
    from serving.following import Following
    from serving.tracing import Traces

BATCH_BODY_IMAGES = 32  # the body of a batch may be as large as so many of the largest images

_log = logging.getLogger("blastwatch.service")
Result = TypeVar("Result")


class Cell(NamedTuple):
    """One image file as it was sent, and what was made of it."""

    file: bytes
    prepared: Prepared


class Service:
    """What the routes share: the version that serves, the capture. Built by the worker, closed when it ends.

    `slot` holds the lane of the version that serves. A route takes it once and stays in it.
    """

    def __init__(
        self, live: LiveModel, settings: Settings, metrics: ServiceMetrics, capture: Capture, *, threads: int
    ) -> None:
        self.settings, self.metrics, self.capture = settings, metrics, capture
        self.traces = _open_traces(settings)
        self.slot = Slot(live.served.alias, self.open_lane(live))
        self.following: Following | None = None
        self.contest: Contest | None = None
        self.callers = Callers(settings.home)
        self.told = Told(settings)
        self.guard = open_guard(settings, keyless=keyless(), refused=lambda name: metrics.kept_out.labels(name).inc())
        metrics.tell_model(self.slot.lane)
        self.audit = AuditLog(settings.audit_log, failed=self._audit_failed)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
        self._store: Store | None = None

    @property
    def lane(self) -> Lane:
        """The lane that serves now; to answer with it, take it: `with service.taken(request) as lane`."""
        return self.slot.lane

    def open_lane(self, live: LiveModel) -> Lane:
        return Lane(
            live,
            self.settings,
            on_batch=self.metrics.observe_batch,
            on_lookup=lambda outcome: self.metrics.cache.labels(outcome).inc(),
            traces=self.traces,
        )

    @contextmanager
    def taken(self, request: Request, *, cells: int = 1) -> Iterator[Lane]:
        """Hold the lane that answers this caller, for one request: the champion's, or in the canary the other one."""
        request.state.cells = cells
        canary = self.contest.canary(caller_of(request)) if self.contest else None
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

    async def in_thread(self, call: Callable[..., Result], *arguments: Any, **named: Any) -> Result:
        """Run work that would hold up the other requests."""
        loop = asyncio.get_running_loop()
        work = functools.partial(call, *arguments, **named)
        if self.traces is not None:
            work = functools.partial(contextvars.copy_context().run, work)
        return await loop.run_in_executor(self._pool, work)

    def step(self, name: str) -> AbstractContextManager[None]:
        """A span of the current request, where spans are made."""
        return nullcontext() if self.traces is None else self.traces.step(name)

    def prepare(self, lane: Lane, data: bytes) -> Prepared:
        """Decode and measure one image for a lane, counted and timed. Raises `Problem`."""
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
        """The answer for one cell, counted, handed to the capture and offered to the shadow."""
        seconds = time.perf_counter() - started
        answer, record = lane.predictor.answer(cell.prepared, *row, seconds=seconds, patient=patient)
        self.metrics.predictions.labels(record.label, record.decision).inc()
        with self.step("capture"):
            self.capture.submit(record)
        if self.contest is not None:
            self.contest.answered(lane, record, cell.file)
        return answer

    def store_label(self, identity: str, label: str) -> None:
        """Store the truth for one prediction. Raises as `Store.add_labels`."""
        if self._store is None:
            self._store = open_store(self.settings.predictions_url)
        self._store.add_labels([(identity, label, datetime.now(UTC))])
        self.metrics.labels.labels(label).inc()

    def observe(self, route: str, scope: Scope, status: int, seconds: float) -> None:
        """Count a request that was answered, and write it into the audit log."""
        self.metrics.observe_request(route, status, seconds)
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
        self._pool.shutdown(wait=True, cancel_futures=True)
        self.capture.close()
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


def build_app(service: Service) -> ASGIApp:
    """The whole application: routes, problems, limits."""
    webhook = [Route("/v1/webhook", functools.partial(_webhook, service), methods=["POST"])]
    if service.following is None or not service.settings.webhook_secret:
        webhook = []
    routes = [
        Route("/v1/predict", functools.partial(_predict, service), methods=["POST"]),
        Route("/v1/predict_batch", functools.partial(_predict_batch, service), methods=["POST"]),
        Route("/v1/explain", functools.partial(_explain, service), methods=["POST"]),
        Route("/v1/labels", functools.partial(_labels, service), methods=["POST"]),
        Route("/v1/model", functools.partial(_model, service), methods=["GET"]),
        Route("/v1/history", functools.partial(_history, service), methods=["GET"]),
        *webhook,
        Route("/metrics", functools.partial(_metrics, service), methods=["GET"]),
        # BentoML answers these two, and leaves to this application whatever is no GET.
        *(Route(path, _alive, methods=["GET"]) for path in ("/livez", "/readyz")),
        Route("/docs.json", functools.partial(_document, service), methods=["GET"]),
        *page_routes(),
    ]
    app = Starlette(routes=routes, exception_handlers=HANDLERS)
    known = {route.path for route in routes}
    one = service.settings.max_image_bytes + SMALL_BODY
    limits = {
        "/v1/predict": one,
        "/v1/explain": one,
        "/v1/predict_batch": BATCH_BODY_IMAGES * service.settings.max_image_bytes,
    }

    def admit(scope: Scope) -> None:
        if service.traces is not None:
            service.traces.begin(scope)
        service.guard.admit(scope)
        if scope["path"] in limits:
            check_headers(scope)

    return Limits(
        app,
        body_limits=limits,
        # An unknown address must not become a label value of its own.
        observe=lambda scope, status, seconds: service.observe(
            scope["path"] if scope["path"] in known else "other", scope, status, seconds
        ),
        admit=admit,
    )


# -- routes -----------------------------------------------------------------------------------------------------


async def _predict(service: Service, request: Request) -> Response:
    started = time.perf_counter()
    data = await _one_image(request)
    with service.taken(request) as lane:
        cell = Cell(data, await service.in_thread(service.prepare, lane, data))
        (row,) = await lane.outputs([cell.prepared])
        return JSONResponse(service.conclude(lane, cell, row, started, service.callers.patient(request)))


async def _predict_batch(service: Service, request: Request) -> Response:
    started = time.perf_counter()
    form = await read_files(request, "images", at_most=service.settings.max_batch_images)
    size, results = service.settings.max_batch_size, []
    patient = service.callers.patient(request)
    try:
        uploads = files(form, "images")
        service.guard.charge(request.scope, len(uploads))
        with service.taken(request, cells=len(uploads)) as lane:  # one version answers the whole call
            for first in range(0, len(uploads), size):
                part = [await file.read() for file in uploads[first : first + size]]
                prepared = await asyncio.gather(*(_prepared_or_problem(service, lane, data) for data in part))
                cells = [item.prepared for item in prepared if isinstance(item, Cell)]
                # Part by part, so that a large batch does not stand before everybody else's single cells.
                rows = iter(await lane.outputs(cells, patient=first > 0))
                results += [
                    service.conclude(lane, item, next(rows), started, patient)
                    if isinstance(item, Cell)
                    else item.document(instance=request.url.path, request_id=request.state.request_id)
                    for item in prepared
                ]
    finally:
        await form.close()
    return JSONResponse({"results": results})


async def _prepared_or_problem(service: Service, lane: Lane, data: bytes) -> Cell | Problem:
    try:
        return Cell(data, await service.in_thread(service.prepare, lane, data))
    except Problem as problem:
        return problem


async def _explain(service: Service, request: Request) -> Response:
    data = await _one_image(request)
    with service.taken(request) as lane:
        try:
            picture, label = await service.in_thread(
                lane.explainer.explain, data, max_pixels=service.settings.max_image_pixels
            )
        except ImageRejected as error:
            service.metrics.rejected.labels(error.reason).inc()
            raise of_image(error) from error
        headers = {"Blastwatch-Label": label, "Blastwatch-Model-Version": lane.version}
    return Response(picture, media_type="image/png", headers=headers)


async def _one_image(request: Request) -> bytes:
    form = await read_files(request, "image", at_most=1)
    try:
        return await files(form, "image")[0].read()
    finally:
        await form.close()


async def _labels(service: Service, request: Request) -> Response:
    value = await read_object(request, ("id", "label"))
    try:
        try:
            await service.in_thread(service.store_label, value["id"], value["label"])
        except UnknownPredictions:
            # A prediction of this very moment may still be on its way to the database.
            await asyncio.sleep(3 * GATHER_SECONDS)
            await service.in_thread(service.store_label, value["id"], value["label"])
    except UnknownPredictions as error:
        raise Problem("prediction-unknown", f"There is no prediction {value['id'][:64]!r}.") from error
    except DataError as error:
        raise Problem("label-refused", str(error)) from error
    except StoreError as error:
        _log.warning("A label could not be stored: %s", error)
        raise Problem("store-unavailable", "The label was not stored.", headers={"Retry-After": "5"}) from error
    return JSONResponse(value)


async def _model(service: Service, _request: Request) -> Response:
    lane = service.lane
    served, info = lane.served, lane.predictor.package.info
    return JSONResponse(
        lane.predictor.model
        | {
            "created": served.entry.created,
            "promoted_at": served.entry.promoted_at,
            "promoted_by": served.entry.promoted_by,
            "overridden": served.entry.overridden,
            "following": service.following.facts() if service.following else None,
            "challenger": service.contest.facts() if service.contest else None,
            "metrics": served.entry.metrics,
            "run_id": info.run_id,
            "architecture": info.architecture,
            "engine": lane.engine_name,
            "thresholds": {"hem": info.thresholds.hem, "all": info.thresholds.all},
            "input": {"crop": info.preprocessing.crop, "size": info.preprocessing.size},
            "data_digest": info.data_digest,
            "split_digest": info.split_digest,
            "git_commit": info.git_commit,
            "disclaimer": DISCLAIMER,
        }
    )


async def _webhook(service: Service, request: Request) -> Response:
    body = await request.body()
    receive(request.headers, body, service.settings.webhook_secret)
    assert service.following is not None
    await service.in_thread(service.following.nudge)
    return Response(status_code=204)


async def _history(service: Service, request: Request) -> Response:
    return JSONResponse(await service.in_thread(service.told.answer, request.query_params.get("at")))


async def _metrics(service: Service, _request: Request) -> Response:
    from prometheus_client import CONTENT_TYPE_LATEST

    text = await service.in_thread(service.metrics.export)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _alive(_request: Request) -> Response:
    return Response(status_code=200)


async def _document(service: Service, _request: Request) -> Response:
    return JSONResponse(document(service.settings, keyed=service.guard.wants_keys()))
