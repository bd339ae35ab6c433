"""Ports for servers of tests: no two processes that test get one, and no connection takes it first."""

import socket
from pathlib import Path

import pytest

from tests.ports import EACH, FIRST, WORKERS, free_ports

RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_no_two_workers_share_a_port_and_none_comes_twice():
    given = [port for worker in range(3) for port in free_ports(worker)]
    assert len(given) == len(set(given)) > 2 * EACH
    assert all(FIRST <= port < FIRST + 3 * EACH for port in given)


def test_one_that_is_taken_is_passed_over():
    taken = next(free_ports(WORKERS - 1))
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        assert taken not in list(free_ports(WORKERS - 1))


@pytest.mark.skipif(not RANGE.exists(), reason="this system does not say which ports it gives to connections")
def test_connections_take_none_of_them():
    first, _ = map(int, RANGE.read_text().split())
    if first < 32_768:
        pytest.skip("this machine gives connections other ports than Linux does by default")
    assert first >= FIRST + WORKERS * EACH
