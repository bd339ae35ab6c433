"""What goes past BentoML's and Starlette's layers is answered as it is through them."""

import asyncio
import logging

import pytest
from opentelemetry.util.http import parse_excluded_urls
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from serving.handlers import HANDLERS
from serving.problems import Overloaded, Problem
from serving.straight import Direct, shorten

PATH = "/v1/predict"


def asked(app, path=PATH, method="POST", kind="http"):
    """The messages of the answer, and the error that reached the server, of one request."""
    said = []

    async def send(message):
        said.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": kind, "method": method, "path": path, "headers": [], "query_string": b"", "client": ("10.0.0.7", 1),
        "state": {"request_id": "one"},
    }  # fmt: skip
    try:
        asyncio.run(app(scope, receive, send))
    except Exception as error:  # noqa: BLE001  (it is compared)
        return said, error
    return said, None


async def marked(_scope, _receive, send):
    await send({"type": "told"})


@pytest.mark.parametrize(
    "outcome",
    [
        JSONResponse({"a": 1.5}),
        Problem("overloaded", "Too many.", headers={"Retry-After": "5"}),
        Overloaded(retry_after=3, waiting=7),
        HTTPException(418),
        HTTPException(404),
        ClientDisconnect(),
        LookupError("its own"),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
def test_an_endpoint_is_answered_as_by_starlette(outcome, caplog):
    async def endpoint(_request):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    through = Starlette(routes=[Route(PATH, endpoint, methods=["POST"])], exception_handlers=HANDLERS)
    with caplog.at_level(logging.INFO):
        there, logged = asked(through), caplog.messages
        caplog.clear()
        assert asked(Direct(marked, {PATH: endpoint})) == there
    assert caplog.messages == logged


def test_all_else_goes_to_the_application():
    direct = Direct(marked, {PATH: marked})
    for other in ({"method": "GET"}, {"path": "/v1/predict/"}, {"kind": "websocket"}):
        assert asked(direct, **other) == ([{"type": "told"}], None)


def layer(name, **settings):
    module, _, kind = name.rpartition(".")
    return Middleware(type(kind, (), {"__module__": module}), **settings)


def spans(excluded):
    return layer(
        "opentelemetry.instrumentation.asgi.OpenTelemetryMiddleware", excluded_urls=parse_excluded_urls(excluded)
    )


OWN = [
    spans(".*"),
    layer("bentoml._internal.server.http.traffic.TimeoutMiddleware", timeout=130),
    layer("serving.service.Some"),
    layer("_bentoml_impl.server.app.ContextMiddleware", context=None),
]


@pytest.fixture
def bento():
    """Gives what uvicorn calls: an application with these layers and routes, as BentoML makes it of a service."""

    def make(layers=OWN, routes=()):
        mount = Mount("", app=marked)
        return ProxyHeadersMiddleware(Starlette(routes=[Route("/livez", marked), *routes, mount], middleware=layers))

    return make


async def sidelong(_scope, _receive, _send):
    raise AssertionError("not through BentoML")


def past(loaded, path=PATH, kind="http"):
    """Whether a request goes past BentoML's layers."""
    if isinstance(loaded.app, Starlette):
        return False
    loaded.app._other = sidelong
    return asked(loaded, path, kind=kind) == ([{"type": "told"}], None)


def test_requests_to_v1_go_past_bentoml(bento, caplog):
    loaded = bento()
    with caplog.at_level(logging.INFO):
        shorten(loaded, marked)
        first = loaded.app
        shorten(loaded, marked)  # of a further socket
    assert loaded.app is first
    assert past(loaded) and past(loaded, "/v1/none\n") and past(loaded, "/v1/")
    assert not past(loaded, "/livez") and not past(loaded, "/v1") and not past(loaded, kind="websocket")
    assert caplog.messages == ["Requests to /v1/ go past the layers of BentoML."]


@pytest.mark.parametrize(
    "layers",
    [
        [*OWN, layer("starlette.middleware.cors.CORSMiddleware")],
        [spans("livez"), *OWN[1:]],
        [spans(""), *OWN[1:]],
        [layer("opentelemetry.instrumentation.asgi.OpenTelemetryMiddleware"), *OWN[1:]],
    ],
    ids=["another layer", "some spans", "all spans", "spans by default"],
)
def test_with_anything_that_bentoml_is_to_do_they_go_through_it(bento, layers, caplog):
    loaded = bento(layers)
    with caplog.at_level(logging.INFO):
        shorten(loaded, marked)
    assert not past(loaded)
    assert "go through all layers of BentoML, because of" in caplog.text


def test_an_address_that_bentoml_answers_is_left_to_it(bento, caplog):
    loaded = bento(routes=[Route("/v1/{rest:path}", marked)])
    with caplog.at_level(logging.INFO):
        shorten(loaded, marked)
    assert not past(loaded)
    assert "the route of /v1/predict" in caplog.text


def test_another_application_is_left_as_it_is(caplog):
    loaded = ProxyHeadersMiddleware(marked)
    with caplog.at_level(logging.INFO):
        shorten(loaded, marked)
        shorten(marked, marked)
    assert loaded.app is marked
    assert len(caplog.messages) == 2
