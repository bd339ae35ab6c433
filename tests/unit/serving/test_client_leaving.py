"""Who stops asking, or closes a client, waits for nobody else's turn and leaves nothing behind."""

import asyncio
import threading
import time

import httpx
import pytest

from blastwatch.errors import ServiceUnreachable
from serving.async_client import AsyncClient
from serving.client import Client
from tests.unit.serving.test_client import rate_limited, said

LONG = 240  # seconds until a caller's turn: a test that waits for it fails
FOUR = [b"<0>", b"<1>", b"<2>", b"<3>"]


def only_the_first(waiting):
    """Answers the image <0>; all others have to wait their turn, and `waiting` is called for each."""

    def answer(request):
        if b"<0>" in request.read():
            return said(number=0)
        waiting()
        return rate_limited(LONG)

    return httpx.MockTransport(answer)


def threads_of_calls():
    return [thread for thread in threading.enumerate() if thread.name.startswith("calls")]


def test_who_leaves_the_loop_does_not_wait_for_others_turns():
    limited = threading.Semaphore(0)
    talk = Client("http://service", transport=only_the_first(limited.release))
    started = time.monotonic()
    for answer in talk.predict_many(FOUR, at_once=2):
        assert answer["number"] == 0
        assert limited.acquire(timeout=60)  # one at least waits its turn now
        break
    assert time.monotonic() - started < LONG / 2
    assert threads_of_calls() == []


def test_a_client_that_is_closed_sends_nothing_again():
    """Answers that nobody asked for to the end may have a name still, and a script end only with its threads."""
    limited = threading.Semaphore(0)
    started = time.monotonic()
    with Client("http://service", transport=only_the_first(limited.release)) as talk:
        answers = talk.predict_many(FOUR, at_once=2)
        next(answers)
        assert all(limited.acquire(timeout=60) for _ in range(2))  # both threads
    assert "Not sent again" in str(next(answers))
    assert time.monotonic() - started < LONG / 2
    answers.close()
    assert threads_of_calls() == []


def test_a_service_that_is_gone_ends_what_waits():
    limited = threading.Semaphore(0)

    def answer(request):
        if b"<0>" in request.read():
            assert limited.acquire(timeout=60)
            raise httpx.ConnectError("Connection refused", request=request)
        limited.release()
        return rate_limited(LONG)

    talk = Client("http://service", transport=httpx.MockTransport(answer))
    started = time.monotonic()
    with pytest.raises(ServiceUnreachable):
        list(talk.predict_many(FOUR, at_once=2))
    assert time.monotonic() - started < LONG / 2
    assert threads_of_calls() == []


def test_who_leaves_the_asynchronous_loop_leaves_no_task():
    async def talk():
        limited = asyncio.Event()
        async with AsyncClient("http://service", transport=only_the_first(limited.set)) as client:
            async for answer in client.predict_many(FOUR, at_once=4):
                assert answer["number"] == 0
                await asyncio.wait_for(limited.wait(), 60)
                break
            others = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), LONG / 2)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(talk())
