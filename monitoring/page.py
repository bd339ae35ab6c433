"""The monitor's own port: `/drift` for a person, with example cells where pictures are kept and the report behind the
verdict, `/metrics` for Prometheus, `/livez`.

A look runs in the main thread and leaves what it found; this server only reads it, in a thread of its own. It listens
on the loopback address, and where BLASTWATCH_MONITOR_HOST is another there too: for Prometheus and the probes of a
cluster, which get the last two. What it says of cells it says to nobody on another machine, and to nobody whom a page
from elsewhere sent.
"""

import functools
import ipaddress
import socket
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blastwatch.addresses import bound, is_loopback
from blastwatch.browsers import FILES as SHARED
from blastwatch.browsers import SECURITY_HEADERS, from_elsewhere
from blastwatch.errors import BlastwatchError
from monitoring.status import Status

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

HOST = "127.0.0.1"
PROXIED = "A proxy before the monitor has to ask it by the address that it has here, such as 127.0.0.1:3001."
LINKED = "Open /drift of this monitor in a window of its own and go on from there."
PAGES = Path(__file__).parent / "pages"
FILES = SHARED | {
    "/drift": PAGES / "drift.html",
    "/drift.js": PAGES / "drift.js",
    "/drift.css": PAGES / "drift.css",
    "/charts.js": PAGES / "charts.js",
    "/examples.js": PAGES / "examples.js",
    "/patients.js": PAGES / "patients.js",
}
TO_OTHERS = {"/livez", "/metrics"}
"""What other machines get: counts for Prometheus, probes."""
THIS_MACHINE = {"127.0.0.1", "::1"}
"""From where a program of this machine asks. A program that forwards for others, unlike a sidecar, does so too."""
OPEN = {"/", *TO_OTHERS, *FILES}
"""What says nothing of a cell: pages without what they show, and `TO_OTHERS`. Answered whatever site sent one there."""
KEPT_HERE = (
    "Other machines get /metrics and /livez of the monitor. See the drift page through a port that leads to its own "
    "machine (ssh -L 3001:127.0.0.1:3001 HOST, kubectl port-forward), or let a proxy with sign-on there ask for it."
)

OF_EVIDENTLY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What a browser may do with Evidently's pages, whose scripts stand in the page: they reach nothing, the monitor's own
pages and port included."""


class _Secured:
    """ASGI middleware: the service's security headers on every answer, and 403 where another machine asks for more than
    `TO_OTHERS`, or a page from elsewhere for more than `OPEN`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self._app
        if scope["type"] == "http" and (reason := _not_for(scope)):
            app = PlainTextResponse(f"{reason}\n", status_code=403)
        await app(scope, receive, send_with_headers)


def _not_for(scope: Scope) -> str:
    """Why whoever sent a request does not get what it asks for; "" for who does."""
    path, peer = scope["path"], scope["client"]
    if path in TO_OTHERS:
        return ""
    # By both ends of the connection: what headers say of it anybody may write. A mesh's sidecar hands over what others
    # sent from 127.0.0.6, to the address of the pod.
    here = scope["server"]
    if peer is None or here is None or _plain(peer[0]) not in THIS_MACHINE or not is_loopback(_plain(here[0])):
        return KEPT_HERE
    reason = "" if path in OPEN else from_elsewhere(Headers(scope=scope))
    return f"{reason} {PROXIED if '`Host`' in reason else LINKED}" if reason else ""


def _plain(address: str) -> str:
    """An address as it is written elsewhere: one of IPv4 has a prefix at a socket of IPv6."""
    return address.removeprefix("::ffff:")


def build_app(registry: "CollectorRegistry", status: Status) -> ASGIApp:
    """The routes.

    Args:
        registry: what `/metrics` exports.
        status: what `/drift.json` says, and the pictures of its example cells.
    """
    routes = [
        Route("/", _to_the_page, methods=["GET"]),
        Route("/drift.json", functools.partial(_status, status), methods=["GET"]),
        Route("/cells/{identity}.png", functools.partial(_picture, status), methods=["GET"]),
        Route("/reports/{name}", functools.partial(_report, status), methods=["GET"]),
        Route("/metrics", functools.partial(_metrics, registry), methods=["GET"]),
        Route("/livez", _alive, methods=["GET"]),
        *(Route(path, functools.partial(_file, file), methods=["GET"]) for path, file in FILES.items()),
    ]
    return _Secured(Starlette(routes=routes))


async def _to_the_page(_request: Request) -> Response:
    return RedirectResponse("/drift")


async def _status(status: Status, _request: Request) -> Response:
    return JSONResponse(status.document())


async def _picture(status: Status, request: Request) -> Response:
    png = status.picture(request.path_params["identity"])
    if png is None:
        return PlainTextResponse("This is no example cell of now.\n", status_code=404)
    return Response(png, media_type="image/png")


async def _report(status: Status, request: Request) -> Response:
    path = status.report(request.path_params["name"])
    if path is None:
        return PlainTextResponse("There is no such report, or only its JSON file is kept.\n", status_code=404)
    return FileResponse(path, headers={"Content-Security-Policy": OF_EVIDENTLY})


async def _metrics(registry: "CollectorRegistry", request: Request) -> Response:
    from prometheus_client.exposition import choose_encoder

    encode, kind = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(registry), headers={"Content-Type": kind})


async def _alive(_request: Request) -> Response:
    return PlainTextResponse("alive\n")


async def _file(path: Path, _request: Request) -> Response:
    return FileResponse(path)


class PageServer:
    """Serves an application on a port of the loopback address, and of `host`, from a thread, until closed.

    Raises:
        BlastwatchError: the port is taken, or there is no such address here.
    """

    def __init__(self, app: ASGIApp, port: int, host: str = HOST) -> None:
        import uvicorn

        self._sockets = _listening(host, port)
        # h11 bounds what a connection may send before it is answered; uvicorn's faster parser keeps it all.
        config = uvicorn.Config(
            app,
            http="h11",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,  # else X-Forwarded-For could make anybody one of this machine
            timeout_graceful_shutdown=2,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=(self._sockets,), name="page", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer what was asked, and end."""
        self._server.should_exit = True
        self._thread.join()
        for one in self._sockets:
            one.close()


def _listening(host: str, port: int) -> list[socket.socket]:
    """Sockets of an address and of the loopback, one where it is both. Raises `BlastwatchError`."""
    variable = "BLASTWATCH_MONITOR_PORT"
    found = [bound(host, port, variable if host == HOST else f"BLASTWATCH_MONITOR_HOST or {variable}")]
    got = ipaddress.ip_address(found[0].getsockname()[0].partition("%")[0])
    if not got.is_unspecified and str(got) != HOST:
        try:
            found.append(bound(HOST, port, variable))
        except BlastwatchError:
            found[0].close()
            raise
    return found
