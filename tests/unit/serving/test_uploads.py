"""Forms as programs send them, cut short, without file names, or where no disk has room for them."""

import asyncio
import encodings
import http.client
import json
import shutil
import subprocess
import tempfile
import tracemalloc
import urllib.error
import urllib.request

import httpx
import pytest
import requests
from starlette.requests import Request

from serving.uploads import read_file
from tests.in_thread import front
from tests.service_packages import write_cell
from tests.unit.serving.test_aside import Quick, drawn

BATCH, ONE = "/v1/predict_batch", "/v1/predict"
HEADERS = {"Content-Type": "multipart/form-data; boundary=xx"}
END = b"--xx--\r\n"


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    home = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLASTWATCH_KEYLESS", "1")
        with front(served, home / "home", engine=Quick()) as opened:
            opened.cell = write_cell(home / "cell.bmp")
            yield opened


@pytest.fixture
def no_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))


def form(field, *images, name='; filename="c.png"', end=END):
    head = f'--xx\r\nContent-Disposition: form-data; name="{field}"{name}\r\n\r\n'.encode()
    return b"".join(head + image + b"\r\n" for image in images) + end


@pytest.mark.parametrize("cut", [0, 1, 3, 20])
@pytest.mark.parametrize(("path", "field", "count"), [(BATCH, "images", 3), (ONE, "image", 1)])
def test_a_form_that_ends_early_is_not_taken_for_a_shorter_one(door, path, field, count, cut):
    body = form(field, *(image for _, image in drawn(count)), end=b"")
    refused = door.ask(path, content=body[: len(body) - cut], headers=HEADERS)
    assert (refused.status_code, refused.json()["type"]) == (400, "/problems/form-unreadable")
    assert refused.json()["detail"].endswith("but it ends before its closing boundary.")


@pytest.mark.parametrize("end", [END, b"--xx--", END + b"an epilogue\r\n--xx\r\n"])
def test_a_form_may_end_in_any_way_that_the_standard_has(door, end):
    images = [image for _, image in drawn(3)]
    answer = door.ask(BATCH, content=form("images", *images, end=end), headers=HEADERS)
    assert (answer.status_code, len(answer.json()["results"])) == (200, 3)


@pytest.mark.parametrize("library", [httpx, requests])
def test_what_a_library_sends_is_answered(door, library):
    assert library.post(door.url + ONE, files={"image": door.cell.read_bytes()}, timeout=30).status_code == 200
    files = [("images", door.cell.read_bytes())] * 3
    assert len(library.post(door.url + BATCH, files=files, timeout=30).json()["results"]) == 3


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("more", [(), ("-H", "Transfer-Encoding: chunked")])
def test_what_curl_sends_is_answered(door, more):
    command = ["curl", "-s", "-F", f"image=@{door.cell}", *more, door.url + ONE]
    answer = subprocess.run(command, capture_output=True, timeout=30, check=True).stdout
    assert json.loads(answer)["model"]["version"] == "7"


@pytest.mark.parametrize("size", [5_000, 1_000_000])
def test_a_file_without_its_name_is_told_so_however_large(door, size):
    refused = door.ask(ONE, content=form("image", b"\x89" * size, name=""), headers=HEADERS)
    assert refused.json()["type"] == "/problems/not-a-file"
    assert refused.json()["detail"] == 'Expected a file in `image` but got a part without `filename="..."`.'


@pytest.mark.parametrize("more", [
    "; charset=utf-8", ";charset=UTF-8", '; charset="us-ascii"', "; charset=ISO-8859-1", "; x=y", "; charset=GBK",
    "; charset=windows-1251", "; charset=Shift_JIS", "; charset=", "; charset=utf-16",
])  # fmt: skip
def test_a_form_that_says_how_its_names_are_written_is_answered(door, more):
    kind = {"Content-Type": HEADERS["Content-Type"] + more}
    assert door.ask(ONE, content=form("image", door.cell.read_bytes()), headers=kind).status_code == 200


def test_a_charset_that_nobody_knows_is_not_kept(door):
    """Python keeps each name that it looks up, for ever."""
    before = set(encodings._cache)
    for number in range(20):
        kind = {"Content-Type": f"{HEADERS['Content-Type']}; charset=made-up-{number}"}
        assert door.ask(ONE, content=form("image", door.cell.read_bytes()), headers=kind).status_code == 200
    assert set(encodings._cache) == before


@pytest.mark.parametrize("boundary", [b"xx", b"a'()+_,-./:=?", b"a b", b'a"b', b"a\\", b'a\\";b', b"\xe4;", b"x" * 70])
def test_a_boundary_is_handed_on_as_it_is(boundary):
    quoted = boundary.replace(b"\\", b"\\\\").replace(b'"', b'\\"')
    kind = b'multipart/form-data; charset=x; boundary="' + quoted + b'"'
    data = form("image", b"cell").replace(b"--xx", b"--" + boundary)
    assert asyncio.run(one_file(data, 5, kind)) == b"cell"


WHOLE = form("image", b"x")
TWO = form("image", b"x", end=b"")


@pytest.mark.parametrize(
    ("path", "body", "headers", "problem", "detail"),
    [
        (ONE, WHOLE, {"Content-Type": "multipart/form-data"}, "form-unreadable", "with a boundary but got none."),
        (ONE, WHOLE.replace(b"xx", b""), {"Content-Type": "multipart/form-data; boundary="}, "form-unreadable",
         "with a boundary but got none."),
        (ONE, b"hello\r\n" + WHOLE, {}, "form-unreadable", "begins with its boundary, and whose lines end in CR LF."),
        (ONE, WHOLE.replace(b"\r\n", b"\n"), {}, "form-unreadable", "whose lines end in CR LF."),
        (ONE, WHOLE, {"Content-Encoding": "gzip"}, "media-type", "compressed body but got the content encoding gzip."),
        (ONE, WHOLE, {"Content-Encoding": "identity, BR"}, "media-type", "but got the content encoding br."),
        (ONE, WHOLE.replace(b"\r\n\r\n", b"\r\nX Y: 1\r\n\r\n"), {}, "form-unreadable",
         "that can be read but: Found invalid character 32 in header at 71."),
        (ONE, WHOLE, {"Content-Type": "multipart/form-data; boundary=" + "x" * 300}, "form-unreadable",
         "that can be read but: Boundary length 300 exceeds maximum of 256."),
        (ONE, TWO + form("other", b"x"), {}, "unexpected-field", "the field `image` but got `other`."),
        (ONE, form("other", b"x", end=b"") + form("image", b"x"), {}, "unexpected-field", "but got `other`."),
        (ONE, TWO + WHOLE, {}, "too-many-files", "Expected one file under `image` but got more."),
        (BATCH, form("images", *[b"x"] * 257), {}, "too-many-files",
         "Expected at most 256 files under `images` but got more."),
    ],
)  # fmt: skip
def test_a_form_that_is_none_is_told_what_is_wrong(door, path, body, headers, problem, detail):
    refused = door.ask(path, content=body, headers=HEADERS | headers)
    assert refused.json()["type"] == f"/problems/{problem}"
    assert refused.json()["detail"].endswith(detail)


@pytest.mark.parametrize("word", ["identity", "UTF-8", "binary", "8bit", "identity, identity"])
def test_no_compression_is_a_content_encoding_too(door, word):
    plain = HEADERS | {"Content-Encoding": word}
    assert door.ask(ONE, content=form("image", door.cell.read_bytes()), headers=plain).status_code == 200


def test_who_reads_only_after_sending_is_told_that_it_was_too_much(door):
    """And may go on with the same connection."""
    line = http.client.HTTPConnection("127.0.0.1", int(door.url.rsplit(":", 1)[1]), timeout=30)
    for body, status in ((bytes(40 << 20), 413), (form("image", door.cell.read_bytes()), 200)) * 2:
        line.request("POST", ONE, body, HEADERS)
        answer = line.getresponse()
        assert answer.status == status and answer.read()
    line.close()


@pytest.mark.parametrize("chunked", [False, True])
def test_who_says_that_it_is_the_last_request_is_told_too(door, chunked):
    """As urllib says of each."""
    body = form("image", bytes(40 << 20))
    if chunked:
        body = iter([body[at : at + (1 << 20)] for at in range(0, len(body), 1 << 20)])
    asked = urllib.request.Request(door.url + ONE, body, HEADERS)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(asked, timeout=30)
    assert caught.value.code == 413 and b"body-too-large" in caught.value.read()


@pytest.mark.usefixtures("no_folder")
def test_one_image_needs_no_room_on_a_disk(door):
    large = door.cell.read_bytes() + bytes(3 << 20)  # what follows the pixels of a BMP is passed over
    assert door.predict(cell=large).status_code == 200


@pytest.mark.usefixtures("no_folder")
def test_a_batch_without_room_on_a_disk_is_to_come_later(door, caplog):
    before = door.count("blastwatch_requests_total", route=BATCH, outcome="failed")
    small = door.cell.read_bytes()
    later = door.ask(BATCH, files=[("images", small), ("images", small + bytes(3 << 20))])
    assert (later.status_code, later.json()["type"]) == (503, "/problems/no-room")
    assert int(later.headers["Retry-After"]) >= 1 and "gone" not in later.text
    assert "cannot be kept in the temporary folder" in caplog.text
    assert door.count("blastwatch_requests_total", route=BATCH, outcome="failed") == before + 1
    assert len(door.ask(BATCH, files=[("images", small)] * 3).json()["results"]) == 3


async def one_file(body, size, kind=b"multipart/form-data; boundary=xx"):
    """What `read_file` makes of a form whose body comes in pieces of this size."""
    left = iter(range(0, len(body), size))

    async def receive():
        at = next(left)
        return {"type": "http.request", "body": body[at : at + size], "more_body": at + size < len(body)}

    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", kind)]}
    return await read_file(Request(scope, receive), "image")


@pytest.mark.parametrize("size", [1, 7, 5000, 1 << 20])
def test_one_file_is_the_same_however_its_body_is_cut(size):
    data = bytes(range(256)) * 20 + b"\r\n--x" * 200 + b"\r" * 5000
    assert asyncio.run(one_file(form("image", data), size)) == data


def test_a_file_that_comes_by_two_bytes_takes_no_more_than_others():
    body = form("image", b"ab" * 5_000)
    tracemalloc.start()
    try:
        assert len(asyncio.run(one_file(body, 2))) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 10 * len(body)
    finally:
        tracemalloc.stop()
