"""What a mistyped address answers to an image: that it is none, and no byte of the image is kept."""

import functools
import json
import socket
from pathlib import Path

import httpx
import pytest

from blastwatch.errors import ServiceError
from serving import app
from serving.client import Client
from serving.keys import PREDICT, READ, KeyFolder
from serving.limits import SMALL_BODY, Limits
from tests.in_thread import front

BODY = b"x" * (4 * SMALL_BODY)
UNKNOWN = ["/v1/predic", "/v1/predict/", "/predict", "/V1/predict", "/problems/a/b", "/v1/v1/predict"]
KNOWN = {"/": "GET, HEAD", "/v1/model": "GET, HEAD", "/docs": "GET, HEAD", "/problems/timeout": "GET, HEAD"}


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    home = tmp_path_factory.mktemp("unknown")
    key = KeyFolder(home / "api-keys").add("lab", may=(PREDICT, READ))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "Limits", functools.partial(Limits, passing_seconds=0.5))
        with front(served, home) as service:
            service.key = key
            yield service


def told(door, path, *, key, head, body=b"", method="POST"):
    """All that the service says to a request of which `body` is what it is sent, until it closes the connection."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *head, f"Authorization: Bearer {key}", "", ""]
    address = httpx.URL(door.url)
    with socket.create_connection((address.host, address.port), timeout=20) as line:
        line.sendall("\r\n".join(lines).encode() + body)
        return b"".join(iter(lambda: line.recv(4096), b"")).decode()


@pytest.mark.parametrize("path", UNKNOWN)
def test_an_image_for_an_unknown_address_is_told_that_it_is_none(door, path):
    refused = door.ask(path, door.key, files={"image": BODY})
    assert (refused.status_code, refused.json()["type"]) == (404, "/problems/not-found")
    assert refused.json()["detail"] == f"There is nothing at {path}."
    assert refused.headers["connection"] == "close"


@pytest.mark.parametrize("path", ["/v1/labels%0a", "/v1/model%0a", "/v1/explain%0a", "/v1/predict%0A", "/v1/x%0ay"])
def test_an_address_with_a_line_feed_is_none_and_leaves_its_line(door, path):
    """Else it were a known one to the routes and an unknown one to the door, which asks for less."""
    log = Path(door.settings.audit_log)
    for content in ({}, {"json": {"id": "x", "label": "all"}}):
        refused = door.ask(path, door.key, **content)
        assert (refused.status_code, refused.json()["type"]) == (404, "/problems/not-found")
        assert refused.headers["connection"] == "close"
        door.ask("/metrics")
        line = json.loads(log.read_text().splitlines()[-1])
        assert (line["key"], line["route"], line["status"]) == ("lab", "other", 404)


@pytest.mark.parametrize("path", KNOWN)
def test_an_image_for_an_address_that_takes_none_is_told_what_it_takes(door, path):
    refused = door.ask(path, door.key, files={"image": BODY})
    assert (refused.status_code, refused.json()["type"]) == (405, "/problems/method-not-allowed")
    assert refused.headers["allow"] == KNOWN[path] and KNOWN[path] in refused.json()["detail"]


@pytest.mark.parametrize("head", [f"Content-Length: {len(BODY)}", "Transfer-Encoding: chunked"])
def test_a_body_that_does_not_come_is_not_waited_for_long_and_the_connection_ends(door, head):
    """What is still to come would be taken for the next request."""
    for path, status in (("/v1/predic", "404"), ("/v1/model", "405")):
        answer = told(door, path, key=door.key, head=[head])
        assert answer.startswith(f"HTTP/1.1 {status} ") and "connection: close" in answer.lower()
        smuggled = told(door, path, key=door.key, head=[head], body=b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert smuggled.count("HTTP/1.1 ") == 1


@pytest.mark.parametrize("path", ["/v1/predic", "/v1/model", "/predict", "/v1/model%0a"])
@pytest.mark.parametrize("chunked", [False, True])
def test_whoever_reads_only_after_all_is_sent_gets_the_answer(door, path, chunked):
    """Many programs do, and lost it with the connection, which was reset while they sent."""
    image = b"x" * (16 << 20)  # more than a connection holds by itself
    head = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(image)}"
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(image), image) if chunked else image
    answer = told(door, path, key=door.key, head=[head], body=body)
    assert answer.startswith("HTTP/1.1 405 " if path == "/v1/model" else "HTTP/1.1 404 ")


def test_without_a_key_nobody_learns_which_addresses_there_are(door):
    assert door.ask("/v1/predic", files={"image": BODY}).status_code == 401


def test_a_request_without_a_body_leaves_the_connection_open(door):
    for path, method, status in (("/v1/predic", "GET", 404), ("/v1/predic", "POST", 404), ("/v1/predict", "GET", 405)):
        refused = door.ask(path, door.key, method=method)
        assert refused.status_code == status and refused.headers.get("connection") != "close"


@pytest.mark.parametrize("path", ["/v1/model/", "/v1/predict/", "/docs/", "/history/"])
def test_an_address_with_a_slash_too_many_leads_nowhere(door, path):
    """Else a caller would be sent, key and all, to wherever `Host` says, and by http:// behind a proxy with TLS."""
    refused = door.ask(path, door.key, method="GET", headers={"Host": "elsewhere.example"})
    assert (refused.status_code, refused.json()["type"]) == (404, "/problems/not-found")
    assert "location" not in refused.headers


def test_a_client_with_an_address_too_long_is_told_so(door):
    with Client(f"{door.url}/v1", api_key=door.key) as client, pytest.raises(ServiceError) as caught:
        client.predict(BODY)
    assert caught.value.status == 404 and "There is nothing at /v1/v1/predict." in str(caught.value)


def test_small_and_large_bodies_for_known_addresses_are_let_in_as_before(door):
    large = door.ask("/v1/labels", door.key, content=BODY, headers={"content-type": "application/json"})
    assert large.status_code == 403  # a key that may not label
    assert door.ask("/v1/predict", door.key, files={"image": BODY}).json()["type"] == "/problems/image-not-an-image"
