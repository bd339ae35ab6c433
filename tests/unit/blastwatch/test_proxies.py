"""What stays on this machine goes to no proxy of the environment: cells, patients' keys and API keys least of all."""

import asyncio
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from blastwatch import cli
from blastwatch.addresses import past_proxies, unproxied
from blastwatch.model_store import check_reachable
from blastwatch.processes import Processes
from blastwatch.settings import load
from serving.async_client import AsyncClient
from serving.client import Client

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")

# What both clients look for in an answer of any address:
SAID = b'{"label": "all", "probability": 0.5, "decision": "all", "model": {}, "version": "1", "digest": "d"}'


@pytest.fixture
def asked(monkeypatch):
    """A service, and a proxy that the environment names: [(who was asked, for what)], and the service's `url`."""

    class Asked(list):
        url = ""

    found = Asked()

    def server(name):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                found.append((name, self.path))
                self.send_response(200)
                self.send_header("Content-Length", str(len(SAID)))
                self.end_headers()
                self.wfile.write(SAID)

            do_POST = do_GET  # noqa: N815  (the server's own names)

            def log_message(self, *_):
                pass

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    servers = [server("service"), server("proxy")]
    threads = [threading.Thread(target=one.serve_forever, args=(0.05,)) for one in servers]
    for one in threads:
        one.start()
    found.url, proxy = (f"http://127.0.0.1:{one.server_port}" for one in servers)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("http_proxy", proxy)
    yield found
    for one, thread in zip(servers, threads, strict=True):
        one.shutdown()
        one.server_close()
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_both_clients_ask_a_service_on_this_machine_itself(asked, host):
    url = asked.url.replace("127.0.0.1", host)
    with Client(url, api_key="bw_secret") as client:
        client.predict(b"cell", patient="4711")

    async def ask():
        async with AsyncClient(url, api_key="bw_secret") as client:
            await client.predict(b"cell", patient="4711")

    asyncio.run(ask())
    assert asked == [("service", "/v1/predict")] * 2


def test_a_service_elsewhere_is_asked_through_the_proxy(asked):
    with Client("http://cells.lab") as client:
        client.model()
    assert asked == [("proxy", "http://cells.lab/v1/model")]


def test_so_are_mlflow_and_the_children_of_this_machine(asked, tmp_path):
    check_reachable(load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": asked.url}))
    with Processes({}, tmp_path) as children:
        children.start("one", [sys.executable, "-c", "import time; time.sleep(60)"])
        children.wait_for("one", f"{asked.url}/readyz", timeout=20)
    assert asked == [("service", "/health"), ("service", "/readyz")]


def test_children_that_others_reach_are_asked_past_the_proxy_too(asked, tmp_path):
    """Where they are bound to every address, or to one of this machine in its network (BLASTWATCH_HOST)."""
    with Processes({}, tmp_path) as children:
        children.start("one", [sys.executable, "-c", "import time; time.sleep(60)"])
        children.wait_for("one", f"{asked.url.replace('127.0.0.1', '0.0.0.0')}/readyz", timeout=20)
    assert asked == [("service", "/readyz")]


def test_what_a_command_starts_and_calls_is_told_before_it_begins(asked, monkeypatch):
    """MLflow asks by requests, which goes by the environment alone."""
    monkeypatch.setenv("NO_PROXY", "registry.lab")
    monkeypatch.setenv("no_proxy", "registry.lab")
    monkeypatch.setattr(cli, "QUIET", {})
    monkeypatch.setattr(cli.gc, "set_threshold", lambda *_: None)
    monkeypatch.setattr(cli, "blastwatch", lambda **_: requests.get(f"{asked.url}/health", timeout=10))
    cli.main()
    assert asked == [("service", "/health")]
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "registry.lab,127.0.0.1,localhost,::1"


@pytest.mark.parametrize(("given", "made"), [
    ({}, "127.0.0.1,localhost,::1"),
    ({"NO_PROXY": "a.lab, localhost"}, "a.lab,localhost,127.0.0.1,::1"),
    ({"NO_PROXY": "a.lab", "no_proxy": "b.lab"}, "b.lab,127.0.0.1,localhost,::1"),  # as curl and requests read it
    ({"NO_PROXY": "*"}, "*"),
])  # fmt: skip
def test_what_goes_past_the_proxy_already_still_does(given, made):
    assert unproxied(given) == {"NO_PROXY": made, "no_proxy": made}


@pytest.mark.parametrize(("address", "mounts"), [
    ("http://127.0.0.1:3000", ["all://127.0.0.1"]), ("https://LOCALHOST/x", ["all://localhost"]),
    ("http://[::1]:3000", ["all://[::1]"]), ("http://127.8.8.8", ["all://127.8.8.8"]),
    ("http://cells.lab", []), ("http://localhost.lab", []), ("nothing", []), ("", []), ("http://[", []),
])  # fmt: skip
def test_only_the_loopback_is_excepted(address, mounts):
    assert list(past_proxies(address)) == mounts
