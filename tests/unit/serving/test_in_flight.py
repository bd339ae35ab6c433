"""The bodies of all calls together have a bound, and whoever ends, however it ends, leaves its room to others."""

import asyncio
import socket
from contextlib import ExitStack

import pytest

from serving import app
from serving.in_flight import InFlight
from serving.limits import Limits, respond
from serving.problems import Problem
from tests.in_thread import front
from tests.running import until
from tests.unit.serving.test_aside import Quick, drawn

PATH, OTHER = "/v1/predict_batch", "/v1/labels"


class Caller:
    """A request to an application that reads its body and then waits to be told to answer.

    Args:
        limits: what it is sent through.
        declared: bytes that its head announces; None: it announces none.
    """

    def __init__(self, limits, *, declared=None, path=PATH):
        length = (b"transfer-encoding", b"chunked") if declared is None else (b"content-length", b"%d" % declared)
        scope = {"type": "http", "path": path, "headers": [length], "method": "POST"}
        self.messages, self.sent = asyncio.Queue(), []
        self.task = asyncio.create_task(limits(scope, self.messages.get, self._send))

    async def _send(self, message):
        self.sent.append(message)

    async def send(self, size, *, more=True):
        await self.messages.put({"type": "http.request", "body": bytes(size), "more_body": more})
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def status(self):
        await asyncio.wait_for(self.task, 5)
        return self.sent[0]["status"]

    def headers(self):
        return {name.decode().lower(): value.decode() for name, value in self.sent[0]["headers"]}


async def reading(scope, receive, send):
    try:
        while (await receive()).get("more_body"):
            pass
        await receive()  # the answer waits for one message more
        await send({"type": "http.response.start", "status": 200, "headers": []})
    except Problem as problem:
        await respond(problem, scope)(scope, receive, send)


def bounded(*, app=reading, seconds=5.0, limit=1000):
    return Limits(app, body_limits={PATH: 800}, in_flight=InFlight({PATH: limit}), seconds=seconds)


def test_a_body_that_finds_no_room_is_turned_away_before_it_is_read():
    async def run():
        limits = bounded()
        first = Caller(limits, declared=700)
        await first.send(700, more=False)
        second = Caller(limits, declared=301)
        assert await second.status() == 429
        assert int(second.headers()["retry-after"]) >= 1 and "connection" not in second.headers()
        third = Caller(limits, declared=300)
        await third.send(300, more=False)
        for caller in (first, third):
            await caller.send(0, more=False)
            assert await caller.status() == 200
        last = Caller(limits, declared=800)  # all of it was given back
        await last.send(800, more=False)
        await last.send(0)
        assert await last.status() == 200

    asyncio.run(run())


def test_bodies_count_as_they_come_and_the_one_beyond_the_bound_leaves():
    async def run():
        limits = bounded()
        silent = [Caller(limits, declared=800) for _ in range(9)]  # these announce, and send nothing
        first, second = Caller(limits), Caller(limits, declared=600)
        await asyncio.sleep(0)
        await first.send(500)
        await second.send(500)
        await first.send(1)
        assert await first.status() == 429
        assert first.headers()["connection"] == "close"  # how much of it is still to come is not known
        await second.send(100, more=False)
        await second.send(0)
        assert await second.status() == 200
        for caller in silent:
            caller.task.cancel()

    asyncio.run(run())


def test_a_path_without_a_bound_is_answered_while_there_is_no_room():
    async def run():
        limits = bounded()
        first = Caller(limits, declared=800)
        await first.send(800)
        await Caller(limits, declared=0).send(0)
        other = Caller(limits, declared=500, path=OTHER)
        await other.send(500, more=False)
        await other.send(0)
        assert await other.status() == 200
        first.task.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["late", "gone", "broken", "too large"])
def test_room_is_given_back_however_a_request_ends(how):
    async def ending(scope, receive, send):
        await reading(scope, receive, send)
        raise LookupError("its own")

    async def run():
        limits = bounded(app=ending if how == "broken" else reading, seconds=0.05 if how == "late" else 5)
        for _ in range(3):
            caller = Caller(limits)
            await caller.send(800, more=how != "broken")
            if how == "gone":
                caller.task.cancel()
            elif how != "late":
                await caller.send(1, more=False)
            await asyncio.wait([caller.task], timeout=5)
            error = None if caller.task.cancelled() else caller.task.exception()
            assert isinstance(error, LookupError) == (how == "broken")
            assert not caller.sent or caller.sent[0]["status"] != 429

    asyncio.run(run())


def test_batches_on_their_way_are_bounded_and_keep_no_single_cell_out(served, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")
    monkeypatch.setattr(app, "BATCH_BODY_IMAGES", 2)
    take, came = InFlight.take, []

    def noted(count, path, size):
        take(count, path, size)
        came.append(size)

    monkeypatch.setattr(InFlight, "take", noted)
    [(_, cell)] = drawn(1)
    largest = 20_000
    body = 2 * largest
    lines = [f"POST {PATH} HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=B"]
    head = "\r\n".join([*lines, f"Content-Length: {body}", "", ""]).encode()
    part = b'--B\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
    with (
        front(served, tmp_path / "home", engine=Quick(), BLASTWATCH_MAX_IMAGE_BYTES=str(largest)) as door,
        ExitStack() as held,
    ):
        before = door.count("blastwatch_requests_total", route=PATH, outcome="overloaded")
        port = int(door.url.rsplit(":", 1)[1])
        for _ in range(app.BATCHES_IN_FLIGHT):
            line = held.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            line.sendall(head + part + bytes(body - len(part) - 1))

        def ask():
            return door.ask(PATH, files=[("images", cell)])

        # Before, or bytes of a question would turn one of them away.
        until(lambda: sum(came) == app.BATCHES_IN_FLIGHT * (body - 1), 30)
        turned_away = ask()
        assert turned_away.status_code == 429
        assert turned_away.json()["type"] == "/problems/overloaded" and int(turned_away.headers["Retry-After"]) >= 1
        assert door.count("blastwatch_requests_total", route=PATH, outcome="overloaded") == before + 1
        assert door.predict(cell=cell).status_code == 200
        held.close()
        until(lambda: ask().status_code == 200, 30)
