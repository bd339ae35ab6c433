"""Bounds to what a connection may have sent before anything of it reaches the application.

uvicorn keeps the head of a request, and requests that came while an earlier one is answered (HTTP pipelining), as they
are and however many: nobody who asks for a key has seen them yet, and a single connection could fill the memory.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serving.straight import shorten

MOST_HEAD = 64 * 1024
"""Bytes of an address and the headers, also those behind a chunked body. h11, uvicorn's other parser, has it too."""
MOST_WAITING = 256
"""Requests of one connection that wait until an earlier one is answered."""


class TooMuch(Exception):
    """Raised below the parser, which turns it into an error of its own: the caller gets 400 and is disconnected."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's own, which refuses a head that is too large and more requests than may wait.

    It makes no WebSocket of a connection: who asks for one has sent a request, which the door and the audit log see.
    """

    _head = 0  # bytes of the present request's address and headers
    _untold = 0  # bytes of a part that the parser collects and has not told of yet
    _answered: RequestResponseCycle | None = None  # the request that is being answered
    _asked_for_another = False  # protocol than HTTP/1.1; for the parser the head then is all of the request

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.ws_protocol_class = None

    def _unsupported_upgrade_warning(self) -> None:
        self.logger.warning(
            "A request asked for another protocol, and was taken for one of HTTP/1.1 without a body; its connection "
            "ends with the answer."
        )

    def data_received(self, data: bytes) -> None:
        if self._asked_for_another:  # the parser would take a body, which is anybody's words, for further requests
            return
        self._untold += len(data)
        super().data_received(data)
        if self._untold > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response("Invalid HTTP request received.")

    def on_message_begin(self) -> None:
        self._head = self._untold = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MOST_WAITING:
            raise TooMuch
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self._asked_for_another = True
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._untold = 0
        cycle: Any = self.cycle
        if not cycle.body:
            cycle.body = b""  # adding to it is no copy, nor is handing it on; uvicorn's own bytearray makes two
        elif isinstance(cycle.body, bytes):
            cycle.body = bytearray(cycle.body)  # several pieces at a time, and there may be thousands
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._untold = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        super().send_400_response(msg)
        if self._answered is not None:  # an answer to a closed connection would be an error in the log
            self._answered.disconnected = True
            self._answered.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def _count(self, size: int) -> None:
        self._head += size
        self._untold = 0
        if self._head > MOST_HEAD:
            raise TooMuch


def bounded(make: Callable[[], Any], app: ASGIApp | None = None) -> Callable[[], Any]:
    """What makes a connection's protocol in place of what uvicorn gives to its loop; any other is left as it is.

    Args:
        app: see `serving.accepting.take_many`.
    """
    first = make()
    if type(first) is not HttpToolsProtocol:
        return make
    if app is not None:
        shorten(first.config.loaded_app, app)
    return partial(BoundedProtocol, first.config, first.server_state, first.app_state)
