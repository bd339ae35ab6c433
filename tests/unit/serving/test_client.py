"""Both clients, against answers made up in the process."""

import asyncio
import os
import threading

import httpx
import pytest

from blastwatch.errors import DataError, ServiceError, ServiceUnreachable
from serving.async_client import AsyncClient
from serving.calls import TIMEOUT
from serving.client import Client
from serving.limits import REQUEST_SECONDS

SAID = {"label": "all", "probability": 0.5, "decision": "refer", "model": {"version": "1"}}
PNG = b"\x89PNG\r\n\x1a\n and more"
FACTS = {"version": "1", "digest": "d"}
KEPT = {"id": "abc", "label": "hem"}


def said(**more):
    return httpx.Response(200, json=SAID | more)


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
    talk, seen = client(said())
    assert talk.predict(cell) == SAID
    request, body = seen[0]
    assert str(request.url) == "http://service/v1/predict"
    assert b'name="image"; filename="cell.bmp"' in body
    assert cell.read_bytes() in body


def test_predict_batch_keeps_the_order():
    talk, seen = client(httpx.Response(200, json={"results": [SAID, KEPT]}))
    assert talk.predict_batch([b"first", b"second"]) == [SAID, KEPT]
    body = seen[0][1]
    assert body.index(b"first") < body.index(b"second")
    assert body.count(b'name="images"') == 2


def test_a_label_travels_as_json():
    talk, seen = client(httpx.Response(200, json=KEPT))
    talk.add_label("abc", "all")
    assert seen[0][1] == b'{"id":"abc","label":"all"}'


def test_a_problem_is_raised_with_its_words(naps):
    talk, _ = client(problem(422))
    with pytest.raises(ServiceError, match=r"The image is too small\. Got 3x3\. \(HTTP 422, request r1\)") as caught:
        talk.predict(b"x")
    assert caught.value.status == 422
    assert naps == []


def test_an_overload_is_waited_out_as_the_service_asks(naps):
    talk, seen = client(problem(429, **{"Retry-After": "3"}), problem(503), said(label="hem"))
    assert talk.predict(b"x")["label"] == "hem"
    assert len(seen) == 3
    assert seen[0][1].count(b"x") == seen[2][1].count(b"x") or seen[2][1]
    assert 3 <= naps[0] <= 3.75
    assert 1 <= naps[1] <= 1.25


def test_after_the_last_attempt_the_failure_is_raised(naps):
    talk, _ = client(problem(503), problem(503), attempts=2)
    with pytest.raises(ServiceError):
        talk.predict(b"x")
    assert len(naps) == 1


def kept_waiting(kind, seconds):
    document = {"type": f"/problems/{kind}", "title": "Not now", "detail": "Wait."}
    return httpx.Response(429, json=document, headers={"Retry-After": str(seconds)})


def rate_limited(seconds):
    return kept_waiting("rate-limited", seconds)


@pytest.mark.parametrize(("seconds", "waits"), [(1, 120), (30, 4)])
def test_an_overload_takes_time_but_no_attempt(naps, seconds, waits):
    """Others' batches last longer than the few seconds that the service names to each who asks."""
    done = said(label="hem")
    talk, _ = client(*[kept_waiting("overloaded", seconds)] * waits, done, attempts=1)
    assert talk.predict(b"x")["label"] == "hem"
    assert len(naps) == waits and seconds <= min(naps) <= max(naps) <= 1.25 * seconds
    talk, _ = client(*[kept_waiting("overloaded", seconds)] * 1000)
    with pytest.raises(ServiceError, match="Not now"):
        talk.predict(b"x")
    assert len(naps) == 2 * waits


def test_a_callers_turn_is_waited_for_whole_and_takes_no_attempt(naps):
    """Else callers side by side, of whom one gets in at a time, lose their images; a batch's debt may be long."""
    done = said(label="hem")
    talk, seen = client(rate_limited(64), *[rate_limited(1)] * 6, done, attempts=1)
    assert talk.predict(b"x")["label"] == "hem"
    assert len(seen) == 8
    assert 64 <= naps[0] <= 80 and all(1 <= nap <= 1.25 for nap in naps[1:])


@pytest.mark.parametrize(("seconds", "waits"), [(901, 0), (400, 2), (0, 900)])
def test_nobody_waits_for_ever(naps, seconds, waits):
    talk, _ = client(*[rate_limited(seconds)] * 1000)
    with pytest.raises(ServiceError, match="Not now"):
        talk.predict(b"x")
    assert len(naps) == waits


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
    talk, _ = client(httpx.Response(200, text="<html>"), httpx.Response(502, text="<html>"), attempts=1)
    with pytest.raises(ServiceError, match="Is this the address of the prediction service"):
        talk.model()
    with pytest.raises(ServiceError, match="HTTP 502 without saying why"):
        talk.model()


def test_a_missing_file_is_named(tmp_path):
    talk, _ = client()
    with pytest.raises(DataError, match=r"none\.bmp cannot be read: No such file"):
        talk.predict(tmp_path / "none.bmp")


def numbered(request):
    """Answers the number that was sent; refuses 3, and breaks the order in which answers come."""
    number = int(request.read().split(b"<")[1].split(b">")[0])
    return problem(422) if number == 3 else said(number=number)


def shown(answers):
    return [answer.status if isinstance(answer, ServiceError) else answer["number"] for answer in answers]


def test_many_are_answered_in_order_and_a_refusal_stands_for_its_image(tmp_path):
    busy, most, lock = 0, 0, threading.Lock()

    def answer(request):
        nonlocal busy, most
        with lock:
            busy += 1
            most = max(most, busy)
        if b"<0>" in request.read():
            threading.Event().wait(0.05)  # the first answer comes last
        found = numbered(request)
        with lock:
            busy -= 1
        return found

    talk = Client("http://service", transport=httpx.MockTransport(answer))
    assert shown(talk.predict_many((b"<%d>" % number for number in range(9)), at_once=3)) == [
        0, 1, 2, 422, 4, 5, 6, 7, 8,
    ]  # fmt: skip
    assert most <= 3
    (missing,) = talk.predict_many([tmp_path / "none.bmp"])
    assert isinstance(missing, DataError)


def test_many_images_are_read_as_they_are_asked_for():
    taken = []

    def images():
        for number in range(100, 200):
            taken.append(number)
            yield b"<%d>" % number

    talk = Client("http://service", transport=httpx.MockTransport(numbered))
    answers = talk.predict_many(images(), at_once=2)
    assert next(answers)["number"] == 100
    assert len(taken) == 4
    answers.close()


def test_the_asynchronous_client_says_the_same(monkeypatch, cell):
    slept, left = [], [problem(429, **{"Retry-After": "2"}), said()]

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr("serving.async_client.asyncio.sleep", sleep)
    requests = []

    async def answer(request):
        requests.append(str(request.url))
        await request.aread()
        return left.pop(0)

    async def talk():
        async with AsyncClient("http://service/", transport=httpx.MockTransport(answer)) as client:
            assert await client.predict(cell) == SAID
            left.extend([httpx.Response(200, json={"results": [SAID, KEPT]}), httpx.Response(200, content=PNG)])
            assert await client.predict_batch([b"a", b"b"]) == [SAID, KEPT]
            assert await client.explain(b"a") == PNG
            left.extend([httpx.Response(200, json=FACTS), httpx.Response(200, json=KEPT), problem(404)])
            assert (await client.model())["version"] == "1"
            await client.add_label("abc", "hem")
            with pytest.raises(ServiceError, match="HTTP 404"):
                await client.model()

    asyncio.run(talk())
    assert requests[0] == "http://service/v1/predict"
    assert 2 <= slept[0] <= 2.5


def test_the_asynchronous_client_asks_many():
    async def answer(request):
        await request.aread()
        return numbered(request)

    async def talk():
        async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
            found = client.predict_many((b"<%d>" % number for number in range(6)), at_once=2)
            return [row async for row in found]

    assert shown(asyncio.run(talk())) == [0, 1, 2, 422, 4, 5]


def test_the_asynchronous_client_and_bad_addresses():
    def refuse(request):
        raise httpx.ConnectError("Connection refused", request=request)

    async def talk():
        async with AsyncClient("http://127.0.0.1:9", transport=httpx.MockTransport(refuse)) as client:
            await client.model()

    with pytest.raises(ServiceUnreachable, match="blastwatch serve"):
        asyncio.run(talk())
    with pytest.raises(ServiceUnreachable, match="Expected an address"):
        AsyncClient("http://service:port")
    with pytest.raises(ValueError, match="attempts"):
        AsyncClient("http://service", attempts=0)
    with pytest.raises(ValueError, match="at_once"):
        next(Client("http://service").predict_many([], at_once=0))


def test_a_file_whose_name_is_not_in_utf8_is_sent(tmp_path):
    path = tmp_path / os.fsdecode(b"m\xfcller.bmp")
    path.write_bytes(b"pixels")
    talk, seen = client(said(label="hem"))
    assert talk.predict(path)["label"] == "hem"
    assert b'filename="m?ller.bmp"' in seen[0][1] and b"pixels" in seen[0][1]


def test_patient_and_caller_travel_as_headers():
    results = httpx.Response(200, json={"results": [SAID]})
    talk, seen = client(said(), results, httpx.Response(200, content=PNG), said(), said(), said())
    talk.predict(b"x", patient="M\u00fcller 4711", caller="ward 3")
    talk.predict_batch([b"x"], patient="4711", caller="ward 3")
    talk.explain(b"x", caller="ward 3")
    list(talk.predict_many([b"x", b"y"], patient="4711", caller="ward 3"))
    talk.predict(b"x")
    told = [
        (headers.get(b"blastwatch-patient"), headers.get(b"blastwatch-caller"))
        for headers in ({name.lower(): value for name, value in request.headers.raw} for request, _ in seen)
    ]
    utf8 = "M\u00fcller 4711".encode()
    assert told == [
        (utf8, b"ward 3"),
        (b"4711", b"ward 3"),
        (None, b"ward 3"),
        *[(b"4711", b"ward 3")] * 2,
        (None, None),
    ]


def test_the_asynchronous_client_names_them_too():
    told = []

    async def answer(request):
        told.append([request.headers.get(f"Blastwatch-{what}") for what in ("Patient", "Caller")])
        if request.url.path == "/v1/explain":
            return httpx.Response(200, content=PNG)
        return said(results=[SAID])

    async def talk():
        async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
            await client.predict(b"x", patient="4711", caller="ward 3")
            await client.predict_batch([b"x"], patient="4711", caller="ward 3")
            await client.explain(b"x", caller="ward 3")
            [_ async for _ in client.predict_many([b"x"], patient="4711", caller="ward 3")]
            for call in (client.predict, client.predict_batch):
                with pytest.raises(ValueError, match="Expected `patient` to be one line"):
                    await call([b"x"], patient="4711\n")
            with pytest.raises(ValueError, match="Expected `caller`"):
                await client.explain(b"x", caller="\n")
            with pytest.raises(ValueError, match="Expected `patient`"):
                await anext(client.predict_many([b"x"], patient="\n"))

    asyncio.run(talk())
    assert told == [["4711", "ward 3"], ["4711", "ward 3"], [None, "ward 3"], ["4711", "ward 3"]]


@pytest.mark.parametrize("key", ["a\nb", "4711 ", " ", "a\0", "\t", "\ud800", "\u00fc" * 513, "a" * 1025])
def test_what_no_header_carries_is_not_sent(key):
    talk, seen = client()
    for call in (talk.predict, talk.predict_batch, lambda *given, **more: next(talk.predict_many(*given, **more))):
        for argument in ("patient", "caller"):
            with pytest.raises(ValueError, match=f"Expected `{argument}` to be one line of printable text") as caught:
                call([b"x"], **{argument: key})
            assert key not in str(caught.value) or key == " "
    with pytest.raises(ValueError, match="Expected `caller`"):
        talk.explain(b"x", caller=key)
    assert seen == []


def test_the_longest_key_is_sent():
    talk, seen = client(said())
    talk.predict(b"x", patient="\u00fc" * 512)
    assert len(dict(seen[0][0].headers.raw)[b"Blastwatch-Patient"]) == 1024


@pytest.mark.parametrize("kind", [httpx.ReadTimeout, httpx.WriteTimeout])
def test_an_image_that_takes_too_long_does_not_stop_the_others(kind):
    def answer(request):
        if b"<1>" in request.read():
            raise kind("timed out", request=request)
        return numbered(request)

    talk = Client("http://service", transport=httpx.MockTransport(answer), timeout=7)
    answers = list(talk.predict_many([b"<0>", b"<1>", b"<2>"]))
    assert shown(answers) == [0, 504, 2]
    assert "http://service did not answer within 7 s" in str(answers[1])

    async def asked():
        async with AsyncClient("http://service", transport=httpx.MockTransport(answer), timeout=7) as client:
            return [row async for row in client.predict_many([b"<0>", b"<1>", b"<2>"])]

    assert shown(asyncio.run(asked())) == [0, 504, 2]


@pytest.mark.parametrize("kind", [httpx.ConnectTimeout, httpx.PoolTimeout])
def test_no_connection_in_time_is_no_service(kind):
    def answer(request):
        raise kind("timed out", request=request)

    talk = Client("http://service", transport=httpx.MockTransport(answer))
    with pytest.raises(ServiceUnreachable, match="No prediction service answers"):
        list(talk.predict_many([b"x"]))


def test_the_client_waits_for_the_services_own_word_on_time():
    found = []

    def answer(request):
        found.append(request.extensions["timeout"])
        return httpx.Response(200, json=FACTS)

    async def asked():
        async with AsyncClient("http://service", transport=httpx.MockTransport(answer)) as client:
            await client.model()

    Client("http://service", transport=httpx.MockTransport(answer)).model()
    asyncio.run(asked())
    for timeout in found:
        assert timeout["read"] == timeout["write"] == TIMEOUT > REQUEST_SECONDS + 10  # BentoML's own is 10 later
        assert timeout["connect"] <= 60
    assert len(found) == 2
