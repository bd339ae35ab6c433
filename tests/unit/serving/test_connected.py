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


def test_a_deadline_that_comes_as_the_caller_leaves_is_a_deadline():
    """The caller's leaving cancels the task first, the deadline once more before the task has heard of it."""
    cancelled = []

    async def run():
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        async def receive():
            # The callback of the one who left comes in the next turn, and these two behind it, before the task does.
            loop.call_soon(loop.call_soon, lambda: cancelled.append(task.cancelling()))
            loop.call_soon(deadline.reschedule, 0)
            return {"type": "http.disconnect"}

        async def work():
            try:
                await asyncio.sleep(5)
            finally:
                cancelled.append(task.cancelling())

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as deadline:
                await while_connected(Request({"type": "http", "headers": []}, receive), work())
        assert task.cancelling() == 0

    asyncio.run(run())
    assert cancelled == [1, 2]


def test_who_leaves_in_the_turn_in_which_the_answer_comes_has_it():
    """Nothing is cancelled then: a request that were would be an error of the service."""

    async def run():
        caller, answer = Caller(), asyncio.get_running_loop().create_future()

        async def work():
            return await answer

        task = asyncio.create_task(while_connected(caller.request, work()))
        await asyncio.sleep(0.01)
        caller.left.set()
        answer.set_result(42)
        assert await task == 42
        assert task.cancelling() == 0

    asyncio.run(run())


def test_a_task_goes_on_after_its_caller_left():
    async def run():
        caller = Caller()
        caller.left.set()
        with pytest.raises(ClientDisconnect):
            await while_connected(caller.request, asyncio.sleep(5))
        assert asyncio.current_task().cancelling() == 0
        await asyncio.sleep(0)  # an answer is still made and counted

    asyncio.run(run())
