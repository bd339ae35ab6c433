"""Connections that wait are taken many in a turn of the event loop.

libuv, on which uvloop rests, takes one connection from a listening socket in each turn. A turn is long when many
callers have something to say, so when hundreds come at once the last of them would wait for seconds, before anything
here knows of them and could tell them that there are too many.
"""

import asyncio
import socket
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

from starlette.types import ASGIApp

IN_A_TURN = 8
"""Connections of one listening socket. More would keep those waiting in that turn who have a connection already."""


class Server(Protocol):
    """What uvicorn asks of a server that listens."""

    def close(self) -> None: ...

    async def wait_closed(self) -> None: ...


class Watchers:
    """Several servers of one socket, closed together."""

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers

    def close(self) -> None:
        for server in self._servers:
            server.close()

    async def wait_closed(self) -> None:
        for server in self._servers:
            await server.wait_closed()


def take_many(loop: asyncio.AbstractEventLoop, app: ASGIApp | None = None) -> None:
    """From now on let every server that this loop opens on a given socket watch it `IN_A_TURN` times, through
    duplicates of the socket, and bound what a connection of uvicorn may send (`serving.heads`). Other event loops than
    uvloop take all who wait, and are left as they are.

    Args:
        app: where requests to /v1/ go straight (`serving.straight`); None: nowhere else than all others.
    """
    if type(loop).__module__ != "uvloop":
        return
    create_server = loop.create_server

    async def create_watchers(
        protocol: Callable[[], asyncio.BaseProtocol], *address: Any, sock: socket.socket | None = None, **more: Any
    ) -> Server:
        if sock is None:
            return await create_server(protocol, *address, **more)
        protocol = _bounded(protocol, app)
        watched = [sock, *(sock.dup() for _ in range(IN_A_TURN - 1))]
        return Watchers([await create_server(protocol, *address, sock=each, **more) for each in watched])

    loop.create_server = create_watchers  # type: ignore[method-assign,assignment]


def _bounded(
    protocol: Callable[[], asyncio.BaseProtocol], app: ASGIApp | None
) -> Callable[[], asyncio.BaseProtocol]:  # fmt: skip
    if find_spec("httptools") is None:  # then uvicorn parses with h11, which has bounds of its own
        return protocol
    from serving.heads import bounded

    return bounded(protocol, app)
