"""What becomes of an error that a route raised: an answer of the shape of all problems."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from serving.limits import respond
from serving.problems import CALLER_GONE, Overloaded, Problem, no_address, no_method

_log = logging.getLogger("blastwatch.service")


async def on_problem(request: Request, error: Problem) -> Response:
    return respond(error, request.scope)


async def on_overload(request: Request, error: Overloaded) -> Response:
    return respond(error.problem(), request.scope)


async def on_http(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        return respond(no_address(request.url.path), request.scope)
    if error.status_code == 405:
        return respond(no_method(request.method, (error.headers or {}).get("Allow", "")), request.scope)
    return respond(Problem("bad-request", "The request cannot be read."), request.scope)


async def on_departure(_request: Request, _error: ClientDisconnect) -> Response:
    """Nobody reads this; the status is for the metrics and the audit log."""
    return Response(status_code=CALLER_GONE)


async def on_failure(request: Request, _error: Exception) -> Response:
    """Starlette logs the traceback through the server; the caller learns only the request id."""
    _log.error("Request %s failed", request.state.request_id)
    return respond(Problem("internal", "The answer could not be made."), request.scope)


HANDLERS: Mapping[Any, Any] = {
    Problem: on_problem, Overloaded: on_overload, HTTPException: on_http, ClientDisconnect: on_departure,
    Exception: on_failure,
}  # fmt: skip
"""For `starlette.applications.Starlette`."""
