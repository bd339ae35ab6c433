"""Messages between a worker and its shadow: a small JSON header and raw bytes, over a socket that both inherited.

4 bytes   length of the header, big-endian
header    JSON object; `bytes` is the length of what follows
bytes     the image file as the caller sent it, or nothing
"""

import json
import socket
import struct
from collections.abc import Callable
from typing import Any

LARGEST_HEADER, LARGEST_DATA = 64 << 10, 64 << 20  # bytes
_LENGTH = struct.Struct(">I")


class WireBroken(Exception):
    """The other side sent what is no message."""


def _nothing() -> None:
    pass


def send(
    wire: socket.socket, header: dict[str, Any], data: bytes = b"", *, on_wait: Callable[[], None] = _nothing
) -> None:
    """Send one message. Where the socket has a timeout, `on_wait` is called each time it runs out, and may raise."""
    text = json.dumps({**header, "bytes": len(data)}).encode()
    for part in (_LENGTH.pack(len(text)) + text, data):
        left = memoryview(part)
        while left:
            try:
                left = left[wire.send(left) :]
            except TimeoutError:
                on_wait()


def receive(wire: socket.socket, *, on_wait: Callable[[], None] = _nothing) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None where the other side has closed.

    Raises:
        WireBroken: what came is no message.
    """
    start = _exactly(wire, _LENGTH.size, on_wait)
    if start is None:
        return None
    length = _LENGTH.unpack(start)[0]
    if length > LARGEST_HEADER:
        raise WireBroken(f"Expected a header of at most {LARGEST_HEADER} bytes but {length} are announced")
    text = _exactly(wire, length, on_wait)
    try:
        header = json.loads(text or b"")
        size = header["bytes"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise WireBroken(f"Expected a JSON object with `bytes` but got {text!r:.200}") from error
    if type(size) is not int or not 0 <= size <= LARGEST_DATA:
        raise WireBroken(f"Expected `bytes` to be a number from 0 to {LARGEST_DATA} but got {size!r:.200}")
    data = _exactly(wire, size, on_wait)
    return None if data is None else (header, data)


def _exactly(wire: socket.socket, count: int, on_wait: Callable[[], None]) -> bytes | None:
    parts = bytearray(count)
    view, filled = memoryview(parts), 0
    while filled < count:
        try:
            got = wire.recv_into(view[filled:])
        except TimeoutError:
            on_wait()
            continue
        if got == 0:
            return None
        filled += got
    return bytes(parts)
