"""What both clients say to arguments of another kind than they take, before anything is sent."""

import asyncio
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from blastwatch.errors import DataError, ServiceError, ServiceUnreachable, UsageError
from serving.async_client import AsyncClient
from serving.calls import MOST_BYTES, file_part
from serving.client import Client
from tests.unit.serving.test_client import client


@pytest.mark.parametrize("key", [4711, None, b"4711"])
def test_a_key_that_is_no_text_is_refused_by_its_argument(key):
    talk, seen = client()
    kind = type(key).__name__
    for argument in ("patient", "caller"):
        with pytest.raises(TypeError, match=f"Expected `{argument}` to be a str but got {kind}") as caught:
            talk.predict(b"x", **{argument: key})
        assert "4711" not in str(caught.value)
    assert seen == []


@pytest.mark.parametrize(("image", "kind"), [
    (Image.new("RGB", (2, 2)), "PIL.Image.Image"), (np.zeros((2, 2)), "numpy.ndarray"), (None, "NoneType"),
    (io.BytesIO(b"x"), "_io.BytesIO"),
])  # fmt: skip
def test_what_is_no_image_file_is_refused_with_what_to_send(image, kind):
    talk, seen = client()
    words = f"Expected `image` to be the bytes of an image file or its path but got {kind}"
    for call in (talk.predict, talk.explain, lambda one: talk.predict_batch([one])):
        with pytest.raises(TypeError, match=words):
            call(image)
    with pytest.raises(TypeError, match=words):
        list(talk.predict_many([image]))
    assert seen == []


@pytest.mark.parametrize("images", ["cell.bmp", b"BM", Path("cell.bmp"), io.BytesIO(b"BM"), None])
def test_one_image_in_place_of_several_is_refused(images):
    """Else each letter would be the path of an image."""
    talk, seen = client()
    words = "Expected `images` to be several images, such as a list of them, but got .*predict"
    for call in (talk.predict_batch, lambda given: list(talk.predict_many(given))):
        with pytest.raises(TypeError, match=words):
            call(images)

    async def asked():
        async with AsyncClient("http://service") as other:
            with pytest.raises(TypeError, match=words):
                await other.predict_batch(images)
            with pytest.raises(TypeError, match=words):
                await anext(other.predict_many(images))

    asyncio.run(asked())
    assert seen == []


def test_what_has_no_end_or_is_no_image_by_its_size_is_not_read(tmp_path):
    talk, seen = client()
    with (tmp_path / "slide.bmp").open("wb") as slide:
        slide.truncate(MOST_BYTES + 1)
    (tmp_path / "zero.bmp").symlink_to("/dev/zero")
    for call in (talk.predict, talk.explain, lambda path: talk.predict_batch([path])):
        with pytest.raises(DataError, match=rf"at most {MOST_BYTES} bytes in .*slide\.bmp but it is larger"):
            call(tmp_path / "slide.bmp")
        with pytest.raises(DataError, match=r"zero\.bmp is a device"):
            call(tmp_path / "zero.bmp")
    assert seen == []


def test_what_comes_out_of_a_pipe_is_an_image_too(tmp_path, monkeypatch):
    """As of `blastwatch predict <(program)`."""
    os.mkfifo(tmp_path / "pipe")

    def sent(content):
        with ThreadPoolExecutor(1) as pool:
            pool.submit((tmp_path / "pipe").write_bytes, content)
            return file_part(tmp_path / "pipe")[1]

    assert sent(b"x" * (1 << 20) + b"yz") == b"x" * (1 << 20) + b"yz"
    monkeypatch.setattr("serving.calls.MOST_BYTES", 3)
    with pytest.raises(DataError, match="at most 3 bytes"):
        sent(b"four")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_account_in_the_address_takes_no_keys_place(kind):
    with pytest.raises(UsageError, match="without an account beside an API key .* http://service: ") as told:
        kind("http://ward:s3cret@service", api_key="bw_key")
    assert "s3cret" not in str(told.value) and "bw_key" not in str(told.value)
    kind("http://ward:s3cret@service")


def test_a_problem_that_repeats_its_title_is_told_once():
    said = {"title": "The image is damaged", "detail": "The image is damaged: half a file.", "request_id": "r1"}
    talk, _ = client(httpx.Response(422, json=said))
    with pytest.raises(ServiceError) as caught:
        talk.predict(b"x")
    assert str(caught.value) == "The image is damaged: half a file. (HTTP 422, request r1)"


def test_a_problem_is_told_with_what_one_can_do():
    said = {"title": "The image is damaged", "detail": "Half a file.", "advice": "Send the whole.", "request_id": "r1"}
    talk, _ = client(httpx.Response(422, json=said))
    with pytest.raises(ServiceError) as caught:
        talk.predict(b"x")
    assert str(caught.value) == "The image is damaged. Half a file. Send the whole. (HTTP 422, request r1)"


@pytest.mark.parametrize("url", ["127.0.0.1:3777", "localhost:3777", "//127.0.0.1:3777"])
def test_an_address_without_a_scheme_is_told_from_a_service_that_is_away(url):
    words = f"Expected an address that begins with http:// or https://.* but got '{url}'"
    with pytest.raises(ServiceUnreachable, match=words), Client(url) as talk:
        talk.predict(b"x")

    async def asked():
        async with AsyncClient(url) as other:
            await other.predict(b"x")

    with pytest.raises(ServiceUnreachable, match=words):
        asyncio.run(asked())
