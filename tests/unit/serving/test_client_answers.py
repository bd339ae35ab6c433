"""What both clients make of answers that no prediction service gives, and how long they wait for one."""

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from click.testing import CliRunner

from blastwatch.errors import BlastwatchError, ServiceError, ServiceUnreachable
from serving.async_client import AsyncClient
from serving.calls import CONNECTIONS
from serving.client import Client
from serving.commands import predict
from tests.unit.serving.test_client import SAID

WHOLE = {
    "decision": "all", "label": "all", "probability": 0.5, "reasons": [], "model": {"version": "1", "synthetic": True},
}  # fmt: skip


@pytest.fixture
def server():
    """Gives the address of a server that does with each request what it is told to, by its handler."""
    servers = []

    def serve(do):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                do(self)

            do_GET = do_POST  # noqa: N815  (the server's own names)

            def log_message(self, *_):
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        made.daemon_threads = True
        thread = threading.Thread(target=made.serve_forever, args=(0.02,))
        thread.start()
        servers.append((made, thread))
        return f"http://127.0.0.1:{made.server_port}"

    yield serve
    for made, thread in servers:
        made.shutdown()
        made.server_close()
        thread.join()


def both(url, call, **arguments):
    """The errors that the two clients raise for one call of them, or what they give."""

    def plain():
        with Client(url, **arguments) as client:
            return call(client)

    async def asked():
        async with AsyncClient(url, **arguments) as client:
            return await call(client)

    found = []
    for ask in (plain, lambda: asyncio.run(asked())):
        try:
            found.append(ask())
        except BlastwatchError as error:
            found.append(error)
    return found


def answering(body, status=200, **headers):
    def do(handler):
        handler.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        handler.wfile.write(body)

    return do


CALLS = {
    "predict": lambda client: client.predict(b"x"),
    "model": lambda client: client.model(),
    "label": lambda client: client.add_label("a", "all"),
    "batch": lambda client: client.predict_batch([b"x"]),
    "explain": lambda client: client.explain(b"x"),
}


@pytest.mark.parametrize("call", sorted({*CALLS} - {"explain"}))
@pytest.mark.parametrize(
    ("body", "came"), [(b"[]", "list"), (b"null", "NoneType"), (b'"ok"', "str"), (b"<p>", "nothing")]
)
def test_an_answer_that_is_no_object_is_of_another_server(server, call, body, came):
    for error in both(server(answering(body)), CALLS[call]):
        assert isinstance(error, ServiceError) and error.status == 200
        assert f"but got {came} from http://127.0.0.1" in str(error)
        assert "Is this the address of the prediction service?" in str(error)


def test_a_batch_without_results_is_of_another_server(server):
    for error in both(server(answering(b"{}")), CALLS["batch"]):
        assert isinstance(error, ServiceError) and "a list of results but got NoneType" in str(error)


@pytest.mark.parametrize(
    ("call", "body", "expected"),
    [
        ("predict", b"{}", "an answer with label, probability, decision, model but got none"),
        ("predict", b'{"label": 1, "probability": 1, "model": 1}', "an answer with decision but got none"),
        ("model", b'{"version": "1"}', "an answer with digest but got none"),
        ("label", b'{"ok": true}', "an answer with id, label but got none"),
        ("batch", b'{"results": []}', "1 results, each an object, but got 0"),
        ("batch", b'{"results": [{}, {}]}', "1 results, each an object, but got 2"),
        ("batch", b'{"results": [1]}', "1 results, each an object, but got int among them"),
        ("explain", b"<html>", "a PNG but got text/html"),
    ],
)
def test_an_answer_without_what_every_service_gives_is_of_another_server(server, call, body, expected):
    url = server(answering(body, **{"Content-Type": "text/html"}))
    for error in both(url, CALLS[call]):
        assert isinstance(error, ServiceError) and error.status == 200
        assert str(error).startswith(f"Expected {expected}") and "Is this the address" in str(error)


def test_for_no_cell_nothing_is_asked():
    assert both("http://127.0.0.1:1", lambda client: client.predict_batch([])) == [[], []]


def test_an_answer_that_cannot_be_unpacked_is_told(server):
    for error in both(server(answering(b"abc", **{"Content-Encoding": "gzip"})), CALLS["predict"]):
        assert isinstance(error, ServiceError) and error.status == 502
        assert "can be unpacked" in str(error) and "Is this the address" in str(error)


def test_an_address_that_leads_on_is_told_with_the_other_one(server):
    url = server(answering(b"", 308, Location="https://pat:s3cret@cells.lab/v1/predict"))
    for error in both(url, CALLS["predict"]):
        assert isinstance(error, ServiceError) and error.status == 308
        assert "leads on to https://cells.lab/v1/predict (HTTP 308), which is not followed" in str(error)


@pytest.mark.parametrize("location", ["http://cells:port/", "http://[", "/v1/x"])
def test_an_address_that_leads_on_to_none_is_sent_once(server, location):
    """httpx takes an address that it cannot read for a broken connection, which is tried again."""
    asked = []

    def do(handler):
        asked.append(handler.path)
        answering(b"", 308, Location=location)(handler)

    for error in both(server(do), CALLS["model"]):
        assert isinstance(error, ServiceError) and error.status == 308
        assert f"leads on to {location} (HTTP 308)" in str(error)
    assert asked == ["/v1/model"] * 2


@pytest.mark.parametrize("member", [*WHOLE, "model.version", "model.synthetic"])
def test_the_command_refuses_an_answer_without_what_it_tells(server, cell, member):
    """And prints no half of it: another service may answer with objects, too."""
    answer = {name: dict(value) if isinstance(value, dict) else value for name, value in WHOLE.items()}
    outer, _, inner = member.partition(".")
    if inner:
        del answer[outer][inner]
    else:
        answer[outer] = None
    url = server(answering(json.dumps(answer).encode()))
    for more in ([], ["--json"]):
        result = CliRunner().invoke(predict, [str(cell), "--url", url, *more], standalone_mode=False)
        assert str(result.exception) == "1 of 1 images got no answer."
        assert f"Expected {member}" in result.output and "Is this the address" in result.output
    whole = server(answering(json.dumps(WHOLE).encode()))
    assert CliRunner().invoke(predict, [str(cell), "--url", whole]).exit_code == 0


def test_an_answer_that_never_ends_is_given_up(server):
    """Each of its pieces comes in time."""
    stop = threading.Event()

    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "10000")
        handler.end_headers()
        while not stop.wait(0.02):
            handler.wfile.write(b" ")

    url, started = server(trickle), time.monotonic()
    try:
        for error in both(url, CALLS["predict"], timeout=0.2):
            assert isinstance(error, ServiceError) and error.status == 504
            assert "did not answer within 0.2 s" in str(error)
        assert time.monotonic() - started < 5
    finally:
        stop.set()


@pytest.mark.parametrize("piece", ["x-{}: a\r\n", "HTTP/1.1 102 Processing\r\n\r\n"])
def test_a_head_that_never_ends_is_given_up(server, piece):
    """Each of its pieces comes in time."""
    stop = threading.Event()

    def trickle(handler):
        if piece.startswith("x"):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(250):
            if stop.wait(0.02):
                return
            handler.wfile.write(piece.format(number).encode())

    url, started = server(trickle), time.monotonic()
    try:
        for error in both(url, CALLS["model"], timeout=0.2):
            assert isinstance(error, ServiceError) and error.status == 504
            assert "did not answer within 0.2 s" in str(error)
        assert time.monotonic() - started < 4
    finally:
        stop.set()


def test_a_connection_that_answered_before_is_given_up_in_time_as_well(server):
    ports, stop = [], threading.Event()

    def do(handler):
        ports.append(handler.client_address[1])
        if len(ports) < 3:
            answering(json.dumps(SAID | {"version": "1", "digest": "d"}).encode())(handler)
            return
        for _ in range(250):
            if stop.wait(0.02):
                return
            handler.wfile.write(b"H")

    started = time.monotonic()
    with Client(server(do), timeout=0.6) as client:
        for _ in range(2):
            client.model()
            time.sleep(0.4)  # of no answer
        try:
            with pytest.raises(ServiceError, match=r"did not answer within 0\.6 s"):
                client.model()
            assert len(ports) == 3 and len({*ports}) == 1 and time.monotonic() - started < 4
        finally:
            stop.set()


def test_the_head_of_an_answer_and_its_body_have_as_long_each(server):
    said = {"version": "1", "digest": "d"}

    def do(handler):
        time.sleep(0.7)
        body = json.dumps(said).encode()
        answering(body[:1], **{"Content-Length": len(body)})(handler)
        time.sleep(0.7)
        handler.wfile.write(body[1:])

    assert both(server(do), CALLS["model"], timeout=1.0) == [said, said]


def test_a_slow_upload_is_no_late_answer(server):
    """The time of the answer begins once all is sent."""

    def slow():
        for _ in range(7):
            time.sleep(0.1)
            yield b"x"

    async def slow_asynchronous():
        for piece in slow():
            yield piece

    def call(content):
        return "POST", "/v1/predict", {"content": content, "headers": {"Content-Length": "7"}}

    async def asked():
        async with AsyncClient(url, timeout=0.6) as client:
            return await client._ask(*call(slow_asynchronous()))

    url = server(answering(json.dumps(SAID).encode()))
    with Client(url, timeout=0.6) as client:
        answers = [client._ask(*call(slow())) for _ in range(2)]  # the second one on the connection of the first
    assert [answer.json() for answer in (*answers, asyncio.run(asked()))] == [SAID] * 3


def test_what_waits_for_a_connection_is_no_service_that_is_away():
    """Calls beyond what one client keeps open wait as long as it takes, whatever the time that an answer may take."""
    busy, most = 0, 0

    class Slow(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            nonlocal busy, most
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0.01)
            busy -= 1
            return httpx.Response(200, json=SAID)

    async def asked():
        async with AsyncClient("http://service", transport=Slow()) as client:
            return await asyncio.gather(*[client.predict(b"x") for _ in range(3 * CONNECTIONS)])

    assert asyncio.run(asked()) == [SAID] * 3 * CONNECTIONS and most == CONNECTIONS
    for client in (Client("http://127.0.0.1"), AsyncClient("http://127.0.0.1")):
        assert client._http.timeout.pool is None


@pytest.mark.parametrize("url", ["http://pat:s3cret@127.0.0.1:9", "ftp://pat:s3cret@host", "pat:s3cret@host:9"])
def test_no_message_has_the_password_of_an_address(url):
    for error in both(url, CALLS["model"]):
        assert isinstance(error, BlastwatchError)
        assert "s3cret" not in str(error) and "pat" not in str(error)


@pytest.mark.parametrize(
    "url", ["//pat:s3cret@host", "http:/pat:s3cret@host", "pat:s3cret@host:9", "//host", "http://"]
)
def test_what_names_no_host_to_call_is_no_address(url):
    """With a key beside it, too, which is no account that it could stand against."""
    for kind in (Client, AsyncClient):
        with pytest.raises(ServiceUnreachable, match="Expected an address that begins with http://") as told:
            kind(url, api_key="k")
        assert "s3cret" not in str(told.value) and "pat" not in str(told.value)


@pytest.mark.parametrize("answer", [httpx.Response(404), httpx.Response(200, text="<html>"), httpx.ReadTimeout("late")])
def test_nor_has_what_is_said_of_an_answer(answer):
    def give(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = Client("http://pat:s3cret@service", transport=httpx.MockTransport(give))
    with pytest.raises(ServiceError) as told:
        client.model()
    assert "s3cret" not in str(told.value) and "http://service" in str(told.value)
