"""The outermost layer of the service: request ids, counted bytes, a deadline, security headers, request metrics.

BentoML sets no limit to a body, nor to all of them together, so the bytes are counted here, also those of a body
without a declared length.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blastwatch.browsers import SECURITY_HEADERS
from serving.header import has_header, header
from serving.in_flight import InFlight
from serving.problems import MEDIA_TYPE, Problem

REQUEST_ID_HEADER = "X-Request-Id"
REQUEST_SECONDS = 120.0  # after this the caller gets an answer that says so
_REQUEST_ID_NAME = REQUEST_ID_HEADER.lower().encode()
_SECURITY = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
SMALL_BODY = 64 * 1024  # bytes; whatever carries no image
# Of a body that is too large: times the limit, and of images at least so many bytes. What is larger is not waited for.
PASSED_OVER, LEAST_PASSED_OVER = 4, 64 << 20
PASSING_SECONDS = 30.0  # that the rest of a body which is passed over has to come
FOR_NOBODY = ("not-found", "method-not-allowed")  # problems of a body that no address takes; it may well be an image
BATCH_BODY_IMAGES = 32  # the body of a batch may be as large as so many of the largest images
_REQUEST_ID = re.compile(r"(?!.*bw_)[A-Za-z0-9._-]{1,64}")  # an API key given as an id must not enter a log


class Limits:
    """ASGI middleware around the whole application.

    Args:
        app: what answers; it turns `Problem` into answers itself.
        body_limits: largest body in bytes by path; `SMALL_BODY` for every other path.
        in_flight: counts the bytes of all bodies together; None: without a limit.
        observe: called with scope, HTTP status and seconds of every request.
        admit: called with the scope of every request before its body is read; raises the `Problem` that keeps it out.
        settle: called with the scope of every request that is kept out before its body is read, its problem known,
            just before the answer goes out.
        seconds: deadline of a request.
        passing_seconds: that the rest of a body which is too large, or for no address, has to come, before the answer
            says so.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        body_limits: Mapping[str, int],
        in_flight: InFlight | None = None,
        observe: Callable[[Scope, int, float], None] = lambda _scope, _status, _seconds: None,
        admit: Callable[[Scope], None] = lambda _scope: None,
        settle: Callable[[Scope], None] = lambda _scope: None,
        seconds: float = REQUEST_SECONDS,
        passing_seconds: float = PASSING_SECONDS,
    ) -> None:
        self._app = app
        self._body_limits = body_limits
        self._in_flight = in_flight or InFlight({})
        self._observe = observe
        self._admit = admit
        self._settle = settle
        self._seconds = seconds
        self._passing_seconds = passing_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = time.perf_counter(), 500
        answered = False

        async def send_with_headers(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
                given = {name for name, _ in message["headers"]}
                ours = [(_REQUEST_ID_NAME, request_id.encode()), *_SECURITY]
                message["headers"] = [*message["headers"], *(pair for pair in ours if pair[0] not in given)]
            await send(message)

        try:
            async with asyncio.timeout(self._seconds):
                await self._answer(scope, receive, send_with_headers)
        except TimeoutError:
            if answered:
                raise
            problem = Problem("timeout", f"Expected to be done within {self._seconds:g} s.")
            await respond(problem, scope)(scope, receive, send_with_headers)
        finally:
            self._observe(scope, status, time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        # A body that nobody reads any further may never end where its length is not declared.
        unread = {"Connection": "close"} if has_header(scope, b"transfer-encoding") else {}
        limit = self._body_limits.get(path, SMALL_BODY)
        declared = header(scope, b"content-length", "0")
        too_large = not declared.isdecimal() or int(declared) > limit
        try:
            self._admit(scope)
            if not too_large:
                self._in_flight.check(path, int(declared))
        except Problem as problem:
            if problem.kind.name in FOR_NOBODY:
                await self._pass_over_all(scope, receive, LEAST_PASSED_OVER)
            problem.headers |= unread
            answer = respond(problem, scope)
            self._settle(scope)
            await answer(scope, receive, send)
            return
        most = PASSED_OVER * limit
        if path in self._body_limits:
            most = max(most, LEAST_PASSED_OVER)
        if too_large:
            ended = await self._pass_over_all(scope, receive, most)
            await respond(_too_large(limit, close=not ended), scope)(scope, receive, send)
            return
        count = 0

        async def receive_counted() -> Message:
            nonlocal count
            message = await receive()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                if count + size > limit:
                    ended = not message.get("more_body", False) or await self._pass_over(receive, most - count - size)
                    raise _too_large(limit, close=not ended)
                try:
                    self._in_flight.take(path, size)
                except Problem as problem:
                    problem.headers |= unread
                    raise
                count += size
            return message

        try:
            await self._app(scope, receive_counted, send)
        finally:
            self._in_flight.give_back(count)

    async def _pass_over_all(self, scope: Scope, receive: Receive, most: int) -> bool:
        """`_pass_over` of a whole body; one that is told to be larger is not waited for."""
        declared = header(scope, b"content-length", "0")
        if has_header(scope, b"expect"):  # whoever asks whether to send it is told not to
            return False
        return declared.isdecimal() and int(declared) <= most and await self._pass_over(receive, most)

    async def _pass_over(self, receive: Receive, most: int) -> bool:
        """Drop the rest of a body as it comes, up to so many bytes, and tell whether it came to its end.

        Many programs read nothing before they have sent all, and would lose the answer with the connection.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._passing_seconds):
                while most >= 0:
                    message = await receive()
                    if message["type"] != "http.request":
                        return False
                    if not message.get("more_body", False):
                        return True
                    most -= len(message.get("body", b""))
        return False


def _too_large(limit: int, *, close: bool) -> Problem:
    """`close`: the rest of the body was not waited for, so the connection cannot be used again."""
    headers = {"Connection": "close"} if close else {}
    return Problem("body-too-large", f"Expected a body of at most {limit} bytes.", headers=headers)


def _request_id(scope: Scope) -> str:
    """The caller's id where it is harmless in a log, else a new one."""
    given = header(scope, _REQUEST_ID_NAME)
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def respond(problem: Problem, scope: Scope) -> JSONResponse:
    """The HTTP answer for a problem, as application/problem+json; the request's state keeps the problem's name."""
    state = scope.setdefault("state", {})
    state["problem"], request_id = problem.kind.name, state.get("request_id", "")
    return JSONResponse(
        problem.document(instance=scope["path"], request_id=request_id),
        status_code=problem.kind.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )
