"""Work ends with its answer, or with its caller."""

import asyncio

import pytest
from starlette.requests import ClientDisconnect, Request

from serving.connected import while_connected


class Caller:
    """The other end of a request whose body was read."""

    def __init__(self):
        self.left = asyncio.Event()
        self.request = Request({"type": "http", "headers": []}, self._receive)

    async def _receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}


def test_the_result_comes_back_and_nothing_is_left_running():
    async def run():
        caller = Caller()

        async def work():
            await asyncio.sleep(0.01)
            return 7

        assert await while_connected(caller.request, work()) == 7
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())


def test_an_error_comes_back_as_itself():
    async def run():
        async def work():
            raise LookupError("its own")

        with pytest.raises(LookupError, match="its own"):
            await while_connected(Caller().request, work())

    asyncio.run(run())


def test_work_for_somebody_who_left_is_cancelled():
    seen = []

    async def run():
        caller = Caller()

        async def work():
            try:
                caller.left.set()
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                seen.append("cancelled")
                raise

        with pytest.raises(ClientDisconnect):
            await while_connected(caller.request, work())
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert seen == ["cancelled"]


def test_a_deadline_of_the_request_reaches_the_work():
    seen = []

    async def run():
        async def work():
            try:
                await asyncio.sleep(5)
            finally:
                seen.append("ended")

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await while_connected(Caller().request, work())

    asyncio.run(run())
    assert seen == ["ended"]
