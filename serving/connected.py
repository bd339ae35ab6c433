"""Work for a caller, ended when the caller goes away, so that nobody waits behind answers that nobody reads."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

Result = TypeVar("Result")


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of the work, which is cancelled where the connection ends before it.

    The work is done in the caller's own task, and one beside it watches the connection: each task costs turns of the
    loop.

    Args:
        request: its body was read.

    Raises:
        ClientDisconnect: the caller is gone.
    """
    own = asyncio.current_task()
    assert own is not None
    others = own.cancelling()  # cancellations that are somebody else's, a deadline's for instance
    left = ended = False

    def leave(_gone: "asyncio.Task[None]") -> None:
        nonlocal left
        if not ended:
            left = True
            own.cancel()

    gone = asyncio.create_task(_disconnected(request))
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if left and own.uncancel() <= others:
            raise ClientDisconnect from None
        raise
    finally:
        ended = True  # a `leave` that waits for its turn already is not taken back by removing it
        gone.cancel()
        await asyncio.wait((gone,))


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
