"""What both clients do about a connection that breaks before the answer, with a proxy between and without."""

import asyncio
import threading

import httpx
import pytest

from blastwatch.errors import ServiceError, ServiceUnreachable
from serving.async_client import AsyncClient
from serving.calls import BROKEN, unanswered
from serving.client import Client
from tests.unit.serving.test_client import said


class Workers:
    """Answer by turns: an error is raised, a number is the answer, and a response is one."""

    def __init__(self, *turns):
        self.turns, self.lock = list(turns), threading.Lock()

    def __call__(self, request):
        with self.lock:
            turn = self.turns.pop(0)
        if isinstance(turn, type):
            raise turn("the worker is gone", request=request)
        if isinstance(turn, httpx.Response):
            return turn
        return said(number=turn)

    async def answer(self, request):
        await request.aread()
        return self(request)


@pytest.fixture(autouse=True)
def naps(monkeypatch):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("serving.client.time.sleep", slept.append)
    monkeypatch.setattr("serving.async_client.asyncio.sleep", sleep)
    return slept


async def asked(workers, **arguments):
    async with AsyncClient("http://service", transport=httpx.MockTransport(workers.answer), **arguments) as client:
        return await client.predict(b"cell")


@pytest.mark.parametrize("kind", BROKEN)
def test_another_worker_answers_for_one_that_was_killed(kind, naps):
    client = Client("http://service", transport=httpx.MockTransport(Workers(kind, kind, 7)))
    assert client.predict(b"cell")["number"] == 7
    assert 0.5 <= naps[0] <= naps[1] <= 1.25
    assert asyncio.run(asked(Workers(kind, kind, 8)))["number"] == 8
    assert len(naps) == 4


def test_a_proxy_that_found_the_connection_broken_is_asked_again(naps):
    def bad():
        return httpx.Response(502, text="Bad Gateway")

    client = Client("http://service", transport=httpx.MockTransport(Workers(bad(), bad(), 7)))
    assert client.predict(b"cell")["number"] == 7
    assert asyncio.run(asked(Workers(bad(), 8)))["number"] == 8
    assert len(naps) == 3
    client = Client("http://service", transport=httpx.MockTransport(Workers(bad(), bad(), 7)), attempts=2)
    with pytest.raises(ServiceError, match="HTTP 502"):
        client.predict(b"cell")


def test_what_took_a_proxy_too_long_is_not_computed_twice(naps):
    client = Client("http://service", transport=httpx.MockTransport(Workers(httpx.Response(504), 7)))
    with pytest.raises(ServiceError, match="HTTP 504"):
        client.predict(b"cell")
    assert naps == []


@pytest.mark.parametrize("broken", BROKEN)
def test_after_the_last_attempt_the_error_is_one_of_this_call(naps, broken):
    """As behind a proxy, which gives a 502: the service was there, and may answer the next one."""
    client = Client("http://service", transport=httpx.MockTransport(Workers(broken, broken, 7)), attempts=2)
    with pytest.raises(ServiceError, match="ended the connection before its answer .the worker is gone") as told:
        client.predict(b"cell")
    assert told.value.status == 502
    with pytest.raises(ServiceError, match="ended the connection before its answer .the worker is gone") as told:
        asyncio.run(asked(Workers(broken, broken, 7), attempts=2))
    assert told.value.status == 502
    assert len(naps) == 2


def test_many_go_on_after_an_image_that_always_ends_the_connection():
    turns = [0, httpx.ReadError, httpx.ReadError, 2]
    client = Client("http://service", transport=httpx.MockTransport(Workers(*turns)), attempts=2)

    async def asked_many():
        transport = httpx.MockTransport(Workers(*turns).answer)
        async with AsyncClient("http://service", transport=transport, attempts=2) as other:
            return [answer async for answer in other.predict_many([b"a", b"b", b"c"], at_once=1)]

    for answers in (list(client.predict_many([b"a", b"b", b"c"], at_once=1)), asyncio.run(asked_many())):
        first, error, last = answers
        assert (first["number"], last["number"]) == (0, 2)
        assert isinstance(error, ServiceError) and error.status == 502


@pytest.mark.parametrize(("at_once", "most"), [(1, 16), (12, 24)])
@pytest.mark.parametrize("gone", [lambda: httpx.ReadError, lambda: httpx.Response(502)])
def test_a_service_that_is_gone_behind_what_takes_connections_ends_many(gone, at_once, most):
    """An image that cannot be read was not sent, and so is none of the row."""
    images = [b"x"] * (most - 1) + ["/nonexistent/cell.png"] + [b"x"] * most * 4
    ends = f"No prediction service answers at http://service: {most} images in a row got no answer, .* The last: "

    async def asked_too():
        workers = Workers(*(gone() for _ in images))
        async with AsyncClient("http://service", transport=httpx.MockTransport(workers.answer), attempts=1) as client:
            async for answer in client.predict_many(images, at_once=at_once):
                found.append(answer)

    found: list[object] = []
    client = Client("http://service", transport=httpx.MockTransport(Workers(*(gone() for _ in images))), attempts=1)
    with pytest.raises(ServiceUnreachable, match=ends):
        found.extend(client.predict_many(images, at_once=at_once))
    assert len(found) == most
    found.clear()
    with pytest.raises(ServiceUnreachable, match=ends):
        asyncio.run(asked_too())
    assert len(found) == most


def test_one_answer_between_begins_the_row_anew():
    turns = [httpx.ReadError] * 15 + [7] + [httpx.ReadError] * 15
    client = Client("http://service", transport=httpx.MockTransport(Workers(*turns)), attempts=1)
    answers = list(client.predict_many([b"x"] * 31, at_once=1))
    assert len(answers) == 31 and answers[15]["number"] == 7


def test_an_error_without_words_is_told_by_its_kind():
    """As asyncio's are, where a connection was reset."""
    assert "before its answer (ReadError)" in str(unanswered("http://service", httpx.ReadError(""), 1))
    assert "at http://service (ConnectError)" in str(unanswered("http://service", httpx.ConnectError(""), 1))


def test_no_connection_is_told_at_once(naps):
    client = Client("http://service", transport=httpx.MockTransport(Workers(httpx.ConnectError, 7)))
    with pytest.raises(ServiceUnreachable):
        client.predict(b"cell")
    with pytest.raises(ServiceUnreachable):
        asyncio.run(asked(Workers(httpx.ConnectError, 7)))
    assert naps == []


def test_many_go_on_where_a_worker_is_killed():
    turns = [0, httpx.ReadError, 1, 2]
    client = Client("http://service", transport=httpx.MockTransport(Workers(*turns)))
    answers = client.predict_many([b"a", b"b", b"c"], at_once=1)
    assert [answer["number"] for answer in answers] == [0, 1, 2]
