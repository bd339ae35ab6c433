"""How many connections that wait are taken in a turn of the event loop."""

import asyncio
import socket
from collections import Counter

import psutil
import pytest
import uvloop

from serving.accepting import IN_A_TURN, take_many

WAITING = 64


class Taken(asyncio.Protocol):
    """Notes in which turn each connection was taken."""

    def __init__(self, turns, turn):
        self.turns, self.turn = turns, turn

    def connection_made(self, transport):
        self.turns.append(self.turn[0])
        transport.close()


async def turns_of(listening, *, many):
    """The turn in which each of those who waited was taken; afterwards nobody listens."""
    loop, turns, turn = asyncio.get_running_loop(), [], [0]
    if many:
        take_many(loop)
    server = await loop.create_server(lambda: Taken(turns, turn), sock=listening, backlog=2 * WAITING)
    callers = []
    for _ in range(WAITING):  # the kernel connects them, while the loop does nothing
        callers.append(socket.create_connection(listening.getsockname(), timeout=5))
    while len(turns) < WAITING:
        turn[0] += 1
        await asyncio.sleep(0)
        assert turn[0] < 100 * WAITING
    address = listening.getsockname()
    server.close()
    await server.wait_closed()
    listening.close()
    for caller in callers:
        caller.close()
    await asyncio.sleep(0.05)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)
    return turns


@pytest.fixture
def listening():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        made.listen(2 * WAITING)
        yield made


def test_uvloop_takes_one_in_a_turn_by_itself(listening):
    assert max(Counter(uvloop.run(turns_of(listening, many=False))).values()) == 1


def test_many_are_taken_in_a_turn_and_no_socket_is_left(listening):
    before = psutil.Process().num_fds()
    turns = uvloop.run(turns_of(listening, many=True))
    assert len(turns) == WAITING
    assert max(Counter(turns).values()) == IN_A_TURN
    assert len(set(turns)) == WAITING // IN_A_TURN
    assert psutil.Process().num_fds() == before - 1  # the one that listened


def test_another_event_loop_is_left_as_it_is(listening):
    async def look():
        before = asyncio.get_running_loop().create_server
        take_many(asyncio.get_running_loop())
        return asyncio.get_running_loop().create_server == before

    assert asyncio.run(look())


def test_an_address_is_listened_on_as_ever():
    async def ask():
        loop = asyncio.get_running_loop()
        take_many(loop)
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname(), timeout=5):
            server.close()
        return True

    assert uvloop.run(ask())
