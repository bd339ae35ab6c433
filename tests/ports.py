"""Ports for the servers that tests start. Needs the standard library alone."""

import os
import socket
from collections.abc import Iterator

# Below those that Linux gives to outgoing connections (ip_local_port_range, from 32768): one of these could take a port
# between the moment it is found free and the moment the server listens.
FIRST, EACH, WORKERS = 20_000, 500, 20


def free_ports(worker: int) -> Iterator[int]:
    """Ports of the loopback address that nobody listens on, none of them twice.

    Args:
        worker: number of this process among those that test, from 0; each has `EACH` ports of its own.
    """
    for number in range(EACH):
        # Two runs of the tests on one machine begin at different ones.
        port = FIRST + worker % WORKERS * EACH + (os.getpid() + number) % EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:  # taken
                continue
        yield port
