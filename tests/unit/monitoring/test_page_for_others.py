"""What the monitor gives to other machines, where it is bound to an address that they reach."""

import asyncio
import socket
from types import SimpleNamespace

import httpx
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.browsers import SECURITY_HEADERS
from blastwatch.errors import BlastwatchError
from blastwatch.settings import load
from monitoring import watch as module
from monitoring.metrics import MonitorMetrics
from monitoring.page import FILES, TO_OTHERS, PageServer, build_app
from monitoring.status import Status
from tests.drift_status import Told
from tests.running import get

KEPT = ["/", *FILES, "/drift.json", "/cells/a.png", "/reports/drift-x.html", "/nothing", "/metrics/", "//metrics"]


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    status = Status(load({"BLASTWATCH_HOME": str(tmp_path_factory.mktemp("home"))}), Told())
    return build_app(MonitorMetrics(CollectorRegistry()).registry, status)


def asked(app, peer, paths, *, at="127.0.0.1", **headers):
    """The answers to who asks from an address at one of this machine, by the connection."""

    async def accepted(scope, receive, send):
        await app(scope | {"server": (at, 3001)}, receive, send)

    async def ask():
        transport = httpx.ASGITransport(app=accepted, client=(peer, 40000))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:3001", headers=headers) as client:
            return [await client.get(path) for path in paths]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    "peer", ["10.0.0.7", "fd00::7", "fe80::7%eth0", "::ffff:10.0.0.7", "localhost.evil", "", "127.0.0.6", "127.0.0.11"]
)
def test_others_get_counts_and_probes_alone_whatever_their_headers_say(app, peer):
    """A `Host` of the loopback, as the pages need, anybody can send."""
    for headers in ({}, {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1"}, {"Host": "blastwatch-monitor"}):
        for answer in asked(app, peer, KEPT, **headers):
            assert (answer.status_code, answer.text[:43]) == (403, "Other machines get /metrics and /livez of t")
            assert {name: answer.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert [answer.status_code for answer in asked(app, peer, sorted(TO_OTHERS), **headers)] == [200, 200]


@pytest.mark.parametrize("at", ["10.0.0.5", "fd00::5", "::ffff:10.0.0.5"])
def test_what_came_to_an_address_of_others_is_not_this_machines(app, at):
    """As a sidecar hands over what others sent, or who forwards a port of it."""
    for peer in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        answers = asked(app, peer, ["/drift.json", "/drift", *sorted(TO_OTHERS)], at=at)
        assert [answer.status_code for answer in answers] == [403, 403, 200, 200]


def test_the_address_is_that_of_the_connection_and_not_of_the_socket(app, free_port):
    """Both ends of a connection that was accepted at every address."""
    seen = []

    async def watched(scope, receive, send):
        seen.append((scope["client"][0], scope["server"][0]))
        await app(scope, receive, send)

    server = PageServer(watched, port := free_port(), "0.0.0.0")
    try:
        for source, name in (("127.0.0.1", "127.0.0.1"), ("127.0.0.6", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")):
            with httpx.Client(transport=httpx.HTTPTransport(local_address=source), timeout=10) as client:
                status = client.get(f"http://{name}:{port}/drift").status_code
            assert status == (403 if source == "127.0.0.6" else 200)
    finally:
        server.close()
    assert seen == [("127.0.0.1", "127.0.0.1"), ("127.0.0.6", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")]


@pytest.mark.parametrize("peer", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
def test_this_machine_gets_the_page_and_still_none_that_another_site_sent(app, peer):
    assert [answer.status_code for answer in asked(app, peer, ["/drift", "/drift.json"])] == [200, 200]
    rebound = asked(app, peer, ["/drift.json", "/metrics"], Host="evil.example")
    assert [answer.status_code for answer in rebound] == [403, 200]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2", "0.0.0.0", "::", "::1"])
def test_the_loopback_is_listened_on_beside_any_address(app, free_port, host, monkeypatch):
    """The pages of this machine, `blastwatch up` and Prometheus beside it go on as they did."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own, set for something else
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    server = PageServer(app, port := free_port(), host)
    try:
        for name in {"127.0.0.1", host} - {"0.0.0.0", "::", "::1"} | ({"[::1]"} if ":" in host else set()):
            assert get(f"http://{name}:{port}/livez", timeout=10).text == "alive\n", name
        # No header changes who asks, neither to let in nor to keep out.
        page = get(f"http://127.0.0.1:{port}/drift", headers={"X-Forwarded-For": "10.0.0.7"}, timeout=10)
        assert page.status_code == 200
    finally:
        server.close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_an_address_that_is_none_of_this_machine_is_named_with_its_setting(app, free_port):
    with pytest.raises(
        BlastwatchError, match=r"of 192\.0\.2\.7 cannot be bound .* set BLASTWATCH_MONITOR_HOST or BLAS"
    ):
        PageServer(app, free_port(), "192.0.2.7")


def test_the_port_of_the_loopback_that_is_taken_leaves_nothing_bound(app, free_port):
    with socket.create_server(("127.0.0.1", port := free_port())):
        with pytest.raises(BlastwatchError, match=r"of 127\.0\.0\.1 cannot be bound .* set BLASTWATCH_MONITOR_PORT"):
            PageServer(app, port, "127.0.0.2")
        socket.create_server(("127.0.0.2", port)).close()


def test_the_monitor_binds_what_the_setting_says(tmp_path, monkeypatch):
    bound = []

    class Refused(Exception):
        pass

    def refuse(_app, port, host):
        bound.append((port, host))
        raise Refused

    monkeypatch.setattr("monitoring.page.PageServer", refuse)
    monkeypatch.setattr(module, "_on_signals", lambda _stop: {})
    home = {"BLASTWATCH_HOME": str(tmp_path)}
    for variables in ({}, {"BLASTWATCH_MONITOR_HOST": "0.0.0.0"}):
        with pytest.raises(Refused):
            module.watch(load(home | variables))
    assert bound == [(3001, "127.0.0.1"), (3001, "0.0.0.0")]


@pytest.mark.parametrize(("host", "said"), [("127.0.0.1", False), ("127.0.0.2", False), ("0.0.0.0", True)])
def test_other_machines_are_named_where_they_are_given_something(tmp_path, monkeypatch, capsys, host, said):
    monkeypatch.setattr("monitoring.page.PageServer", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(module, "_on_signals", lambda _stop: {})
    monkeypatch.setattr(module, "_loop", lambda *_: None)
    module.watch(load({"BLASTWATCH_HOME": str(tmp_path), "BLASTWATCH_MONITOR_HOST": host}))
    assert (f"Other machines get the gauges alone: port 3001 of {host}" in capsys.readouterr().err) == said


def _has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
