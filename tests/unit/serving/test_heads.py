"""What one connection may send before the application hears of it: bounded, and no less than callers need."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from types import SimpleNamespace

import pytest
import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.routing import Mount
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.accepting import take_many
from serving.heads import MOST_HEAD, MOST_WAITING, BoundedProtocol, bounded
from serving.straight import PastBentoML
from tests.running import until as wait_until

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
MUCH = 40 * MOST_HEAD
LINE = b"a: b\r\n"


async def application(scope, receive, send):
    """Answers with the bytes of the body, once it is whole and the test lets it."""
    if scope["path"] == "/slow":
        await asyncio.to_thread(DONE.wait, 10)
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = f"[{size}]".encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


DONE = threading.Event()


@pytest.fixture(scope="module")
def door():
    """The application behind uvicorn, on a socket that it is given as by BentoML; `tasks` that answer."""
    server = uvicorn.Server(uvicorn.Config(application, log_config=None, lifespan="off"))
    listening = socket.create_server(("127.0.0.1", 0), backlog=64)

    async def serve():
        take_many(asyncio.get_running_loop())
        await server.serve([listening])

    thread = threading.Thread(target=uvloop.run, args=[serve()])
    thread.start()
    try:
        yield SimpleNamespace(address=listening.getsockname(), tasks=server.server_state.tasks)
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


@contextmanager
def connected(door):
    with socket.create_connection(door.address, timeout=10) as line:
        yield line


def said(line, *, until=b"\0"):
    """What comes until these bytes, or until the other side is done."""
    heard = b""
    while until not in heard:
        try:
            part = line.recv(1 << 16)
        except ConnectionError:  # closed while more was sent than was read
            break
        if not part:
            break
        heard += part
    return heard


def sent(line, unit, most=MUCH):
    """How many bytes the other side takes before it closes the connection."""
    count = 0
    try:
        while count < most:
            line.sendall(unit)
            count += len(unit)
            time.sleep(0.001)
    except ConnectionError:
        return count
    return most


@pytest.mark.parametrize(
    ("begin", "unit"),
    [
        (GET, LINE * 1000),
        (GET + b"a: ", b"b" * 6000),
        (b"GET /", b"b" * 6000),
        (b"GET / HTTP/1.1\r\n", b"a" * 6000),
        (CHUNKED + b"1\r\nx\r\n0\r\n", LINE * 1000),
        (CHUNKED + b"1;", b"x" * 6000),
    ],
    ids=["headers", "value", "address", "name", "trailers", "chunk extension"],
)
def test_a_head_that_does_not_end_is_refused(door, begin, unit):
    with connected(door) as line:
        line.sendall(begin)
        assert sent(line, unit) < MUCH
    with connected(door) as line:
        line.sendall(begin)
        time.sleep(0.05)
        line.sendall(unit * (MOST_HEAD // len(unit) + 1))
        assert said(line).startswith(b"HTTP/1.1 400 ")


def test_a_large_head_and_a_large_body_are_taken(door):
    with connected(door) as line:
        line.sendall(GET + b"a: " + b"b" * (MOST_HEAD - 1000) + b"\r\n\r\n")
        assert said(line, until=b"[0]").startswith(b"HTTP/1.1 200 ")
        line.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % MUCH + b"x" * MUCH)
        assert said(line, until=b"[%d]" % MUCH).startswith(b"HTTP/1.1 200 ")
        line.sendall(CHUNKED + b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n")
        assert said(line, until=b"[50000]").startswith(b"HTTP/1.1 200 ")


def test_requests_that_wait_for_an_earlier_one_are_few(door, caplog):
    DONE.clear()
    one = GET.replace(b"/ ", b"/slow ", 1) + b"\r\n"
    with connected(door) as line:
        line.sendall(one * (1 + MOST_WAITING))
        DONE.set()
        heard = b""
        while heard.count(b"[0]") < 1 + MOST_WAITING:
            heard += line.recv(1 << 16)
        assert heard.count(b"HTTP/1.1 200 ") == 1 + MOST_WAITING
    DONE.clear()
    with connected(door) as line:
        line.sendall(one * (2 + MOST_WAITING))
        assert said(line).startswith(b"HTTP/1.1 400 ")
        DONE.set()
    wait_until(lambda: not door.tasks)
    assert [record.levelname for record in caplog.records if record.name.startswith("uvicorn")] == ["WARNING"]


def test_who_asks_for_a_websocket_has_sent_a_request_like_any_other(door):
    """Else it went past the door, and what followed was swallowed, however much."""
    asking = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    asking += b"AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    with connected(door) as line:
        line.sendall(GET + asking + b"\r\n")
        answer = said(line)
        assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"[0]") and b"connection: close" in answer
    with connected(door) as line:
        line.sendall(GET.replace(b"GET", b"POST") + asking + b"Content-Length: 999999999\r\n\r\n")
        assert sent(line, b"\x82\xff" + b"x" * 60_000) < MUCH
    wait_until(lambda: not door.tasks)


@pytest.mark.parametrize("protocol_name", [b"websocket", b"h2c"])
def test_the_body_of_who_asks_for_another_protocol_is_no_further_request(door, protocol_name):
    """A proxy takes it for the body, and whoever wrote it would ask in the proxy's name."""
    hidden = GET.replace(b"/ ", b"/hidden ", 1) + b"\r\n"
    head = GET.replace(b"GET", b"POST").replace(b"/ ", b"/slow ", 1) + b"Connection: Upgrade\r\nUpgrade: "
    head += protocol_name + b"\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    for path in (b"/slow", b"/"):  # its body comes before the answer, or about then
        DONE.clear()
        with connected(door) as line:
            line.sendall(head.replace(b"/slow", path))
            time.sleep(0.05)
            with suppress(ConnectionError):
                line.sendall(hidden)
            DONE.set()
            assert said(line).count(b"HTTP/1.1 ") == 1
    wait_until(lambda: not door.tasks)


def test_a_protocol_that_is_none_of_uvicorn_is_left_as_it_is():
    assert bounded(asyncio.Protocol) is asyncio.Protocol


def test_requests_to_v1_go_to_the_application_that_is_given():
    """As BentoML starts it: uvicorn's own protocol before an application that mounts another one."""
    config = uvicorn.Config(Starlette(routes=[Mount("", app=application)]), log_config=None, lifespan="off")
    config.load()
    loop = asyncio.new_event_loop()
    state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[])
    try:
        made = bounded(partial(HttpToolsProtocol, config, state, {}, loop), application)(_loop=loop)
    finally:
        loop.close()
    assert isinstance(made, BoundedProtocol) and made.app is config.loaded_app
    assert isinstance(config.loaded_app.app, PastBentoML)


@pytest.fixture
def protocol():
    """One that has read the head of a request with a body."""
    config = uvicorn.Config(application, log_config=None, lifespan="off")
    config.load()
    loop = asyncio.new_event_loop()
    state = SimpleNamespace(connections=set(), tasks=set(), default_headers=[], total_requests=0)
    made = BoundedProtocol(config, state, {}, _loop=loop)
    made.cycle = SimpleNamespace(body=bytearray(), response_complete=False, message_event=asyncio.Event())
    made.parser = SimpleNamespace(should_upgrade=lambda: False)
    made.flow = SimpleNamespace(pause_reading=lambda: None)
    yield made
    loop.close()


def test_a_piece_of_a_body_is_handed_on_as_it_is_and_thousands_are_gathered(protocol):
    piece, cycle = b"x" * (1 << 18), protocol.cycle
    protocol.on_body(piece)
    assert bytes(cycle.body) is piece  # so uvicorn hands it on
    cycle.body = bytearray()  # as it does then
    for _ in range(3):
        protocol.on_body(b"x")
    gathered = cycle.body
    protocol.on_body(b"y")
    assert cycle.body is gathered and gathered == b"xxxy"
