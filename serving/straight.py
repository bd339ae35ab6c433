"""The short ways of what comes most often: past layers that have nothing to say to it.

Between uvicorn and a route lie some fifteen functions of BentoML and Starlette, and every message of a request passes
most of them. All that they do for such a request is done here or in `serving.limits`.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.guard import GUARDED
from serving.handlers import HANDLERS

_SPANS = "opentelemetry.instrumentation.asgi.OpenTelemetryMiddleware"
_IDLE = (  # their names, since importing them takes long where nobody needs them
    "_bentoml_impl.server.app.ContextMiddleware",
    "bentoml._internal.server.http.traffic.TimeoutMiddleware",  # `Limits` sets a deadline before that one
)
_log = logging.getLogger("blastwatch.service")

Endpoint = Callable[[Request], Awaitable[Response]]


class Direct:
    """Calls the endpoints of POST addresses itself and leaves all else to an application.

    Args:
        app: the Starlette application that has the same endpoints, and `HANDLERS`.
        endpoints: by path.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = None
        if scope["type"] == "http" and scope["method"] == "POST":
            endpoint = self._endpoints.get(scope["path"])
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Exception as error:
            kind = next(kind for kind in type(error).__mro__ if kind in HANDLERS)
            response = await HANDLERS[kind](request, error)
            await response(scope, receive, send)
            if kind is Exception:
                raise  # uvicorn logs it
            # Its frames have the request's body, and may have a future that has the error: a ring, which stays until
            # somebody collects it.
            error.__traceback__ = None
            return
        await response(scope, receive, send)


class PastBentoML:
    """Hands what goes to /v1/ to one application and all else to another."""

    def __init__(self, app: ASGIApp, other: ASGIApp) -> None:
        self._app, self._other = app, other

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"].startswith(GUARDED)
        await (self._app if guarded else self._other)(scope, receive, send)


def shorten(loaded: Any, app: ASGIApp) -> None:
    """Let what uvicorn calls hand requests to /v1/ to our application past BentoML's layers.

    Where BentoML was configured to do more than it does by itself (spans, its access log, CORS, a limit of its own),
    everything goes through it as ever. The log says which.

    Args:
        loaded: `uvicorn.Config.loaded_app`.
        app: what BentoML's application hands these requests to.
    """
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

    inner: Any = loaded.app if isinstance(loaded, ProxyHeadersMiddleware) else None
    if isinstance(inner, PastBentoML):  # of another socket of the same server
        return
    working = _working(inner) if isinstance(inner, Starlette) else ["an application that is not BentoML's"]
    if working:
        _log.info("Requests to /v1/ go through all layers of BentoML, because of %s.", ", ".join(working))
    else:
        loaded.app = PastBentoML(app, inner)
        _log.info("Requests to /v1/ go past the layers of BentoML.")


def _working(bento: Starlette) -> list[str]:
    """What BentoML's application does with a request to /v1/ before it hands it to the one that it mounts, by name."""
    found = []
    for layer in bento.user_middleware:
        kind: Any = layer.cls
        name = f"{kind.__module__}.{kind.__qualname__}"
        if name == _SPANS:
            excluded: Any = layer.kwargs.get("excluded_urls")
            idle = bool(excluded) and excluded.url_disabled("")  # every address, and not some
        else:
            idle = name in _IDLE or kind.__module__ == "serving.service"
        found += [] if idle else [name]
    for path in ("/v1/predict", "/v1/"):
        scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": []}
        first = next((route for route in bento.routes if route.matches(scope)[0] != Match.NONE), None)
        if not isinstance(first, Mount) or first.path:
            found.append(f"the route of {path}")
    return found
