"""The outermost layer: counted bytes, request ids, deadline, headers."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from blastwatch.browsers import SECURITY_HEADERS
from serving.limits import SMALL_BODY, Limits, respond
from serving.problems import MEDIA_TYPE, Problem, no_address, no_method


def call(method="POST", path="/v1/predict", *, seconds=5.0, passing=5.0, pause=0.0, seen=None, problem=None, **content):
    async def answer(request):
        await asyncio.sleep(pause)
        return PlainTextResponse(str(len(await request.body())))

    async def on_problem(request, error):
        return respond(error, request.scope)

    app = Starlette(
        routes=[Route("/{path:path}", answer, methods=["GET", "POST"])], exception_handlers={Problem: on_problem}
    )
    rows = [] if seen is None else seen

    def observe(scope, status, seconds):
        rows.append((scope["path"], status, seconds))

    def admit(_scope):
        if problem is not None:
            raise problem

    limits = Limits(
        app, body_limits={"/v1/predict": 1000}, seconds=seconds, passing_seconds=passing, observe=observe, admit=admit
    )  # fmt: skip

    async def run():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(limits), base_url="http://service") as client:
            return await client.request(method, path, **content)

    return asyncio.run(run())


async def chunks(count, size):
    for _ in range(count):
        yield b"x" * size


def test_a_body_within_the_limit_passes():
    response = call(content=b"x" * 1000)
    assert (response.status_code, response.text) == (200, "1000")
    assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS


def test_a_declared_body_over_the_limit_is_refused():
    response = call(content=b"x" * 1001)
    assert response.status_code == 413
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.json()["detail"] == "Expected a body of at most 1000 bytes."
    assert "connection" not in response.headers


@pytest.mark.parametrize(
    ("told", "closed"), [("67108864", False), ("67108865", True), ("9" * 30, True), ("1e9", True), ("-5", True)]
)
def test_a_body_that_may_never_end_closes_the_connection(told, closed):
    response = call(headers={"content-length": told}, content=b"")
    assert (response.status_code, response.headers.get("connection")) == (413, "close" if closed else None)


def test_a_body_without_a_length_is_counted():
    assert call(content=chunks(10, 100)).text == "1000"
    response = call(content=chunks(11, 100))
    assert response.status_code == 413
    assert response.json()["type"] == "/problems/body-too-large"
    assert "connection" not in response.headers


def body(size, pieces, *, pause=0.0, taken):
    """Pieces that note what of them was asked for."""

    async def come():
        for _ in range(pieces):
            await asyncio.sleep(pause)
            taken.append(size)
            yield b"x" * size

    return come()


@pytest.mark.parametrize("length", [{"content-length": "40000000"}, {}], ids=["told", "chunked"])
def test_the_rest_of_what_is_too_large_comes_before_the_answer(length):
    """Whoever reads nothing before all is sent would lose the answer with the connection."""
    taken = []
    response = call(headers=length, content=body(1_000_000, 40, taken=taken))
    assert (response.status_code, sum(taken)) == (413, 40_000_000)
    assert "connection" not in response.headers


def test_no_more_than_64_mib_of_a_body_without_an_end_are_waited_for():
    taken = []
    response = call(content=body(1 << 20, 1000, taken=taken))
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    assert 64 <= len(taken) <= 66


@pytest.mark.parametrize("length", [{"content-length": "40000000"}, {}], ids=["told", "chunked"])
def test_a_rest_that_does_not_come_is_not_waited_for_long(length):
    taken = []
    response = call(passing=0.05, headers=length, content=body(600, 1000, pause=0.02, taken=taken))
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    assert len(taken) < 20


def test_whoever_asks_whether_to_send_so_much_is_told_not_to():
    taken = []
    length = {"content-length": "40000000", "expect": "100-continue"}
    response = call(headers=length, content=body(1_000_000, 40, taken=taken))
    assert (response.status_code, response.headers["connection"], taken) == (413, "close", [])


NOBODYS = {404: no_address("/v1/predic"), 405: no_method("POST", "GET")}


@pytest.mark.parametrize("length", [{"content-length": "40000000"}, {}], ids=["told", "chunked"])
@pytest.mark.parametrize("status", NOBODYS)
def test_a_body_for_no_address_comes_before_the_answer(status, length):
    taken = []
    response = call(problem=NOBODYS[status], headers=length, content=body(1_000_000, 40, taken=taken))
    assert (response.status_code, sum(taken)) == (status, 40_000_000)
    taken.clear()
    slow = body(600, 1000, pause=0.02, taken=taken)
    response = call(passing=0.05, problem=NOBODYS[status], headers=length, content=slow)
    assert response.status_code == status and len(taken) < 20


@pytest.mark.parametrize("head", [{"content-length": "67108865"}, {"content-length": "9", "expect": "100-continue"}])
def test_a_body_for_no_address_is_not_waited_for_where_it_is_huge_or_asked_about(head):
    taken = []
    response = call(problem=NOBODYS[404], headers=head, content=body(1000, 9, taken=taken))
    assert (response.status_code, taken) == (404, [])


def test_of_whom_the_door_keeps_out_nothing_is_waited_for():
    taken = []
    refused = Problem("key-missing", "Expected a key.")
    response = call(problem=refused, headers={"content-length": "9000"}, content=body(1000, 9, taken=taken))
    assert (response.status_code, taken) == (401, [])


def test_where_no_image_may_come_a_large_body_is_not_waited_for():
    taken = []
    told = {"content-length": str(4 * SMALL_BODY + 1)}
    response = call(path="/v1/labels", headers=told, content=body(1000, 263, taken=taken))
    assert (response.status_code, response.headers["connection"], taken) == (413, "close", [])
    response = call(path="/v1/labels", content=body(SMALL_BODY, 5, taken=taken))
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    assert len(taken) <= 5


def test_every_other_path_takes_small_bodies_only():
    assert call(path="/v1/labels", content=b"x" * SMALL_BODY).status_code == 200
    assert call(path="/v1/labels", content=b"x" * (SMALL_BODY + 1)).status_code == 413


def test_a_length_that_is_no_number_is_refused():
    assert call(headers={"content-length": "-5"}, content=b"").status_code == 413


def test_a_harmless_request_id_is_kept_and_another_replaced():
    assert call(headers={"X-Request-Id": "lab-42"}).headers["X-Request-Id"] == "lab-42"
    replaced = call(headers={"X-Request-Id": "a b"}).headers["X-Request-Id"]
    assert len(replaced) == 32
    problem = call(headers={"X-Request-Id": "lab-42"}, content=b"x" * 1001).json()
    assert problem["request_id"] == "lab-42"


def test_a_late_answer_is_a_problem_and_is_counted():
    seen = []
    response = call(seconds=0.05, pause=2, seen=seen)
    assert response.status_code == 504
    assert response.json()["title"] == "The answer took too long"
    assert [(path, status) for path, status, _ in seen] == [("/v1/predict", 504)]


def test_a_deadline_within_an_answer_ends_it_and_begins_no_second_one():
    sent = []

    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(5)

    async def send(message):
        sent.append(message["type"])

    async def receive():
        return {"type": "http.request"}

    limits = Limits(app, body_limits={}, seconds=0.05)
    with pytest.raises(TimeoutError):
        asyncio.run(limits({"type": "http", "path": "/", "headers": [], "method": "GET"}, receive, send))
    assert sent == ["http.response.start"]
