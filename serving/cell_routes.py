"""The routes that read images: one cell, many cells, a heat map over one."""

import asyncio
import functools
import logging
import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blastwatch.errors import ImageRejected
from serving.batcher import Place, Row
from serving.connected import while_connected
from serving.lane import Lane
from serving.predictor import Cell, finite
from serving.problems import Problem, of_image
from serving.straight import Endpoint
from serving.uploads import files, read_file, read_files

if TYPE_CHECKING:
    from serving.worker import Service

_log = logging.getLogger("blastwatch.service")


def cell_endpoints(service: "Service") -> dict[str, Endpoint]:
    """By its path what answers each of the routes."""
    calls = {"/v1/predict": _predict, "/v1/predict_batch": _predict_batch, "/v1/explain": _explain}
    return {path: functools.partial(call, service) for path, call in calls.items()}


def cell_routes(service: "Service") -> list[Route]:
    """Every route of this module."""
    return [Route(path, call, methods=["POST"]) for path, call in cell_endpoints(service).items()]


async def _predict(service: "Service", request: Request) -> Response:
    started = time.perf_counter()
    data = await read_file(request, "image")
    patient = service.callers.patient(request)
    with service.taken(request) as lane:
        answer = _answer(service, lane, request, data, started, patient)
        return JSONResponse(await while_connected(request, answer))


async def _answer(
    service: "Service", lane: Lane, request: Request, data: bytes, started: float, patient: str
) -> dict[str, Any]:
    place: Place = request.state.place
    with lane.coming(place=place):
        cell = Cell(data, await service.prepare(lane, data))
    (row,) = await lane.outputs([cell.prepared], since=place.since)
    _check_finite(row, lane, request)
    return service.conclude(lane, cell, row, started, patient)


async def _predict_batch(service: "Service", request: Request) -> Response:
    started = time.perf_counter()
    form = await read_files(request, "images", at_most=service.settings.max_batch_images)
    try:
        patient = service.callers.patient(request)
        uploads = files(form, "images")
        service.guard.charge(request.scope, len(uploads))
        with service.taken(request, cells=len(uploads)) as lane:  # one version answers the whole call
            answers = _answers(service, lane, request, uploads, started, patient)
            return JSONResponse({"results": await while_connected(request, answers)})
    finally:
        await form.close()


async def _answers(
    service: "Service", lane: Lane, request: Request, uploads: list[UploadFile], started: float, patient: str
) -> list[dict[str, Any]]:
    """Part by part, so that a large batch does not stand before everybody else's single cells."""
    results: list[dict[str, Any]] = []
    while len(results) < len(uploads):
        first = len(results)
        part = [await file.read() for file in uploads[first : first + lane.part()]]
        with lane.coming(len(part), place=request.state.place, patient=first > 0):
            prepared = await asyncio.gather(*(_prepared_or_problem(service, lane, data) for data in part))
        cells = [item.prepared for item in prepared if isinstance(item, Cell)]
        # Whether there is room for all was asked at the door; a part is more than the engine has at a time, so its last
        # cells wait for the first ones, however idle the service is.
        rows = iter(await lane.outputs(cells, patient=True))
        told = {"instance": request.url.path, "request_id": request.state.request_id}
        for item in prepared:
            if isinstance(item, Problem):  # raised here it would hold the images of its part
                results.append(item.document(**told))
                continue
            try:
                _check_finite(row := next(rows), lane, request)
                results.append(service.conclude(lane, item, row, started, patient))
            except Problem as problem:
                results.append(problem.document(**told))
    return results


def _check_finite(row: Row, lane: Lane, request: Request) -> None:
    """Raise the `Problem` of a cell for which the engine gave no numbers: it is no prediction, and nothing keeps it."""
    if not finite(*row):
        _log.error("Request %s: version %s gives outputs that are no numbers.", request.state.request_id, lane.version)
        raise Problem("internal", "The model gives no answer for this cell.")


async def _prepared_or_problem(service: "Service", lane: Lane, data: bytes) -> Cell | Problem:
    try:
        return Cell(data, await service.prepare(lane, data))
    except Problem as problem:
        return problem


async def _explain(service: "Service", request: Request) -> Response:
    data = await read_file(request, "image")
    with service.taken(request) as lane:
        try:
            picture, label = await while_connected(request, service.explain(lane, data))
        except ImageRejected as error:
            service.metrics.rejected.labels(error.reason).inc()
            raise of_image(error) from error
        headers = {"Blastwatch-Label": label, "Blastwatch-Model-Version": lane.version}
    return Response(picture, media_type="image/png", headers=headers)
