"""What is no message ends a child, and nothing else."""

import json
import socket
import struct

import pytest

from serving.shadow_wire import LARGEST_DATA, LARGEST_HEADER, WireBroken, receive, send


@pytest.fixture
def wires():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def raw(text):
    return struct.pack(">I", len(text)) + text


def test_a_message_comes_as_it_was_sent(wires):
    ours, theirs = wires
    send(theirs, {"label": "all"}, b"image")
    theirs.close()
    assert receive(ours) == ({"label": "all", "bytes": 5}, b"image")
    assert receive(ours) is None


@pytest.mark.parametrize(
    "size", [-1, LARGEST_DATA + 1, 1 << 62, 10**400, 1.5, float("inf"), float("nan"), True, "1", None]
)
def test_a_length_that_nothing_can_have_is_no_message(wires, size):
    ours, theirs = wires
    theirs.sendall(raw(json.dumps({"bytes": size}).encode()))
    theirs.close()  # so that nobody waits for what never comes
    with pytest.raises(WireBroken, match=f"from 0 to {LARGEST_DATA} but got"):
        receive(ours)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * LARGEST_HEADER, b'{"bytes": 1' + b"0" * 5000 + b"}"]
)
def test_a_header_that_is_no_object_with_a_length_is_no_message(wires, text):
    ours, theirs = wires
    theirs.sendall(raw(text))
    with pytest.raises(WireBroken, match="a JSON object with `bytes`"):
        receive(ours)
