"""The routes without images: labels, what serves and has served, metrics, health, the document of the API."""

import asyncio
import functools
import logging
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from blastwatch import DISCLAIMER
from blastwatch.errors import DataError
from monitoring.capture import GATHER_SECONDS
from monitoring.store import StoreError, UnknownPredictions
from monitoring.waiting import waiting_among
from serving.openapi import document
from serving.problems import Problem
from serving.uploads import read_object
from serving.webhook import receive

if TYPE_CHECKING:
    from serving.worker import Service

_log = logging.getLogger("blastwatch.service")


def about_routes(service: "Service") -> list[Route]:
    """Every route of this module."""
    calls = {"/v1/model": _model, "/v1/history": _history, "/metrics": _metrics, "/docs.json": _document}
    # Under BentoML it answers these two (`serving.service`), and leaves to this application whatever is no GET.
    calls |= {"/livez": _alive, "/readyz": _ready}
    found = [
        Route("/v1/labels", functools.partial(_labels, service), methods=["POST"]),
        *(Route(path, functools.partial(call, service), methods=["GET"]) for path, call in calls.items()),
    ]
    if service.following is not None and service.settings.webhook_secret:
        found.append(Route("/v1/webhook", functools.partial(_webhook, service), methods=["POST"]))
    return found


async def _labels(service: "Service", request: Request) -> Response:
    value = await read_object(request, ("id", "label"))
    waits: list[str] = []
    try:
        try:
            await service.aside(service.store_label, value["id"], value["label"])
        except UnknownPredictions as error:
            # A prediction of this very moment may still be on its way to the database.
            await asyncio.sleep(3 * GATHER_SECONDS)
            # Before the database is asked again: what leaves the disk meanwhile is there then.
            waits = await service.aside(waiting_among, service.settings.waiting, error.ids)
            await service.aside(service.store_label, value["id"], value["label"])
    except UnknownPredictions as error:
        if waits:
            raise _later("The label was not stored: its prediction waits for the database still.") from error
        raise Problem("prediction-unknown", f"There is no prediction {value['id'][:64]!r}.") from error
    except DataError as error:
        raise Problem("label-refused", str(error)) from error
    except StoreError as error:
        _log.warning("A label could not be stored: %s", error)
        raise _later("The label was not stored.") from error
    return JSONResponse(value)


def _later(detail: str) -> Problem:
    return Problem("store-unavailable", detail, headers={"Retry-After": "5"})


async def _model(service: "Service", _request: Request) -> Response:
    lane = service.lane
    served, info = lane.served, lane.predictor.package.info
    return JSONResponse(
        lane.predictor.model
        | {
            "created": info.created,
            "promoted_at": served.entry.promoted_at,
            "promoted_by": served.entry.promoted_by,
            "overridden": served.entry.overridden,
            "following": service.following.facts() if service.following else None,
            "challenger": service.contest.facts() if service.contest else None,
            # As all of its evidence, of the verified package: the entry has what anybody wrote into MLflow's tags.
            "metrics": served.package.headline,
            "intervals": lane.intervals,
            "run_id": info.run_id,
            "architecture": info.architecture,
            "engine": lane.engine_name,
            "thresholds": {"hem": info.thresholds.hem, "all": info.thresholds.all},
            "input": {"crop": info.preprocessing.crop, "size": info.preprocessing.size},
            "data_digest": info.data_digest,
            "split_digest": info.split_digest,
            "git_commit": info.git_commit,
            "keeps_images": service.settings.keep_images,
            "history": not service.told.none_to_ask(follows=service.following is not None),
            "disclaimer": DISCLAIMER,
        }
    )


async def _history(service: "Service", request: Request) -> Response:
    answer = functools.partial(service.told.answer, follows=service.following is not None)
    return JSONResponse(await service.aside(answer, request.query_params.get("at")))


async def _webhook(service: "Service", request: Request) -> Response:
    body = await request.body()
    receive(request.headers, body, service.settings.webhook_secret)
    assert service.following is not None
    await service.aside(service.following.nudge)
    return Response(status_code=204)


async def _metrics(service: "Service", _request: Request) -> Response:
    from prometheus_client import CONTENT_TYPE_LATEST

    return Response(await service.scraped(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def _alive(service: "Service", _request: Request) -> Response:
    return Response(status_code=200 if service.lane.batcher.health.alive else 503)


async def _ready(service: "Service", _request: Request) -> Response:
    return Response(status_code=200 if service.lane.batcher.health.ready else 503)


async def _document(service: "Service", _request: Request) -> Response:
    return JSONResponse(document(service.settings, keyed=service.guard.wants_keys()))
