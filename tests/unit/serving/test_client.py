"""The client, against answers made up in the process."""

import httpx
import pytest

from blastwatch.errors import DataError, ServiceError, ServiceUnreachable
from serving.client import Client


@pytest.fixture
def naps(monkeypatch):
    slept = []
    monkeypatch.setattr("serving.client.time.sleep", slept.append)
    return slept


def client(*responses, attempts=4):
    left = list(responses)
    seen = []

    def answer(request):
        seen.append((request, request.read()))
        return left.pop(0)

    made = Client("http://service/", transport=httpx.MockTransport(answer), attempts=attempts)
    return made, seen


def problem(status, **headers):
    document = {"type": "/problems/x", "title": "The image is too small", "detail": "Got 3x3.", "request_id": "r1"}
    return httpx.Response(status, json=document, headers=headers)


def test_predict_sends_one_file_named_image(cell):
    talk, seen = client(httpx.Response(200, json={"label": "all"}))
    assert talk.predict(cell) == {"label": "all"}
    request, body = seen[0]
    assert str(request.url) == "http://service/v1/predict"
    assert b'name="image"; filename="cell.bmp"' in body
    assert cell.read_bytes() in body


def test_predict_batch_keeps_the_order():
    talk, seen = client(httpx.Response(200, json={"results": [1, 2]}))
    assert talk.predict_batch([b"first", b"second"]) == [1, 2]
    body = seen[0][1]
    assert body.index(b"first") < body.index(b"second")
    assert body.count(b'name="images"') == 2


def test_a_label_travels_as_json():
    talk, seen = client(httpx.Response(200, json={}))
    talk.add_label("abc", "all")
    assert seen[0][1] == b'{"id":"abc","label":"all"}'


def test_a_problem_is_raised_with_its_words(naps):
    talk, _ = client(problem(422))
    with pytest.raises(ServiceError, match=r"The image is too small\. Got 3x3\. \(HTTP 422, request r1\)") as caught:
        talk.predict(b"x")
    assert caught.value.status == 422
    assert naps == []


def test_an_overload_is_waited_out_as_the_service_asks(naps):
    talk, seen = client(problem(429, **{"Retry-After": "3"}), problem(503), httpx.Response(200, json={"label": "hem"}))
    assert talk.predict(b"x")["label"] == "hem"
    assert len(seen) == 3
    assert seen[0][1].count(b"x") == seen[2][1].count(b"x") or seen[2][1]
    assert 3 <= naps[0] <= 3.75
    assert 1 <= naps[1] <= 1.25


def test_after_the_last_attempt_the_overload_is_raised(naps):
    talk, _ = client(problem(429), problem(429), attempts=2)
    with pytest.raises(ServiceError):
        talk.predict(b"x")
    assert len(naps) == 1


def test_no_connection_names_the_address_and_the_command():
    def refuse(request):
        raise httpx.ConnectError("Connection refused", request=request)

    talk = Client("http://127.0.0.1:9", transport=httpx.MockTransport(refuse))
    with pytest.raises(ServiceUnreachable, match=r"127\.0\.0\.1:9 .*blastwatch serve"):
        talk.model()


@pytest.mark.parametrize("url", ["127.0.0.1:3000", "ftp://service", "http://[", ""])
def test_an_address_that_is_none(url):
    with pytest.raises(ServiceUnreachable), Client(url) as talk:
        talk.model()


def test_another_server_at_the_address():
    talk, _ = client(httpx.Response(200, text="<html>"), httpx.Response(502, text="<html>"))
    with pytest.raises(ServiceError, match="Is this the address of the prediction service"):
        talk.model()
    with pytest.raises(ServiceError, match="HTTP 502 without saying why"):
        talk.model()


def test_a_missing_file_is_named(tmp_path):
    talk, _ = client()
    with pytest.raises(DataError, match=r"none\.bmp cannot be read: No such file"):
        talk.predict(tmp_path / "none.bmp")
