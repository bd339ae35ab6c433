"""Evidently's own pages over the drift reports, for this machine: `python -m blastwatch.evidently_server FOLDER PORT`.

By itself (`evidently ui`) Evidently answers whoever asks, and writes for them. So a page from elsewhere could let the
browser of this machine read every report and add or delete some; here it is refused, as by the service and the monitor.
"""

import sys
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from blastwatch.browsers import from_elsewhere

HOST = "127.0.0.1"
LINKED = "Open this address in a window of its own, by the name or address of the loopback."


class Guarded:
    """ASGI middleware: 403 to whom a page from elsewhere sent. Every address counts: which of them say nothing of a
    report is Evidently's to change."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] != "lifespan" and (reason := from_elsewhere(Headers(scope=scope))):
            app = PlainTextResponse(f"{reason} {LINKED}\n", status_code=403)
        await app(scope, receive, send)


def main(workspace: str, port: str) -> None:
    """Answer until stopped."""
    import uvicorn
    from evidently.ui.service.app import create_app, get_config

    config: Any = get_config(host=HOST, port=int(port), workspace=workspace)
    uvicorn.run(Guarded(create_app(config)), host=HOST, port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
