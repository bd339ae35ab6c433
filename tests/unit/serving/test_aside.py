"""What may wait for something else keeps nobody from an answer, and whatever a caller sends is an answer."""

import io
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from blastwatch.explanation import Explainer
from blastwatch.inference import Outputs
from monitoring.capture import GATHER_SECONDS
from monitoring.store import StoreUnavailable, open_store
from monitoring.waiting import open_waiting
from serving import about_routes
from serving.drawing import MOST
from serving.worker import ASIDE_THREADS
from tests.cohorts import record
from tests.in_thread import front
from tests.running import until
from tests.service_packages import write_cell

SLOW = 1.0  # seconds that a heat map takes here


class Quick:
    """An engine that answers at once."""

    name, abreast, on_cores = "openvino-f32", 1, True

    def rest(self):
        pass

    def infer(self, crops):
        return Outputs(logits=np.zeros((len(crops), 2), np.float32), embeddings=np.ones((len(crops), 512), np.float32))

    infer_beside = infer_inputs = infer


@pytest.fixture
def door(served, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")
    cell = write_cell(tmp_path / "cell.bmp").read_bytes()
    with front(served, tmp_path / "home", engine=Quick()) as opened:
        opened.cell = cell
        yield opened


def drawn(count):
    """Files of a batch, each another image: so much red has its place in the batch."""
    files = []
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (32, 32), (number, 90, 90)).save(file, "PNG")
        files.append(("images", file.getvalue()))
    return files


def answered_within(door, seconds):
    began = time.monotonic()
    assert door.predict(cell=door.cell).status_code == 200
    return time.monotonic() - began < seconds


def test_heat_maps_stop_no_prediction_and_many_are_turned_away(door, monkeypatch):
    drawing = threading.Lock()

    def draw(_self, _data, *, max_pixels):
        with drawing:
            time.sleep(SLOW)
        return b"png", "hem"

    monkeypatch.setattr(Explainer, "explain", draw)
    with ThreadPoolExecutor(MOST + 4) as callers:
        asked = [
            callers.submit(door.ask, "/v1/explain", files={"image": door.cell}, timeout=60) for _ in range(MOST + 4)
        ]
        time.sleep(SLOW / 4)
        assert all(answered_within(door, SLOW / 2) for _ in range(3))
        answers = [one.result() for one in asked]
    assert sorted(answer.status_code for answer in answers) == [200] * MOST + [429] * 4
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers if answer.status_code == 429)
    assert door.ask("/v1/explain", files={"image": door.cell}).status_code == 200


def test_labels_that_wait_for_the_database_stop_no_prediction(door):
    identity = door.predict(cell=door.cell).json()["id"]
    time.sleep(3 * GATHER_SECONDS)
    held = sqlite3.connect(door.settings.home / "predictions.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(3) as callers:
        told = {"id": identity, "label": "all"}
        asked = [callers.submit(door.ask, "/v1/labels", json=told, timeout=60) for _ in range(3)]
        time.sleep(0.3)
        assert all(answered_within(door, 1) for _ in range(3))
        held.execute("ROLLBACK")
        assert [one.result().status_code for one in asked] == [200] * 3
    held.close()


def test_labels_that_wait_for_the_database_hide_no_metrics(door, monkeypatch):
    waiting, away = threading.Semaphore(0), threading.Event()

    def store_label(_identity, _label):
        waiting.release()
        assert away.wait(60)
        raise StoreUnavailable("no connection")

    monkeypatch.setattr(door.service, "store_label", store_label)
    with ThreadPoolExecutor(2 * ASIDE_THREADS) as callers:
        told = {"id": "x", "label": "all"}
        asked = [callers.submit(door.ask, "/v1/labels", json=told, timeout=90) for _ in range(2 * ASIDE_THREADS)]
        try:
            assert all(waiting.acquire(timeout=30) for _ in range(ASIDE_THREADS))
            assert door.http.get("/metrics", timeout=20).status_code == 200
        finally:
            away.set()
        assert [one.result().status_code for one in asked] == [503] * 2 * ASIDE_THREADS


def test_a_label_of_a_prediction_that_waits_for_the_database_is_to_come_later(door, monkeypatch):
    monkeypatch.setattr(about_routes, "GATHER_SECONDS", 0.01)
    waiting = open_waiting(door.settings)
    assert waiting.keep([record("0af3")])

    def told(id_):
        return door.ask("/v1/labels", json={"id": id_, "label": "hem"})

    later = [told("0af3"), told("0AF3")]
    assert [answer.json()["type"] for answer in later] == 2 * ["/problems/store-unavailable"]
    assert all(answer.status_code == 503 and answer.headers["Retry-After"] == "5" for answer in later)
    assert told("0af4").json()["type"] == "/problems/prediction-unknown"
    with open_store(door.settings.predictions_url) as store:
        assert waiting.hand_over(store).stored == 1
        assert [told("0AF3").status_code, told("0af3").status_code] == [200, 200]
        assert store.labelled()["truth"].tolist() == ["hem"]
    waiting.close()


def test_a_label_that_is_told_again_is_counted_once(door):
    identity = door.predict(cell=door.cell).json()["id"]
    until(lambda: door.service.capture.counts().stored == 1, 30)
    for label in ("hem", "hem", "hem", "all", "all"):
        assert door.ask("/v1/labels", json={"id": identity, "label": label}).status_code == 200
    assert [door.count("blastwatch_labels_total", label=label) for label in ("hem", "all")] == [1, 1]


def test_two_first_labels_leave_one_store_open(door, monkeypatch):
    both, opened = threading.Barrier(2), []

    class Opened:
        def __init__(self, _url):
            both.wait(30)
            self.labels, self.closed = [], False
            opened.append(self)

        def add_labels(self, rows):
            assert not self.closed
            self.labels += rows
            return len(rows)

        def close(self):
            self.closed = True

    monkeypatch.setattr("serving.worker.open_store", Opened)
    with ThreadPoolExecutor(2) as callers:
        for one in [callers.submit(door.service.store_label, name, "all") for name in "ab"]:
            one.result()
    [store] = [one for one in opened if not one.closed]
    assert len(opened) == 2 and sorted(row[0] for row in store.labels) == ["a", "b"]


@pytest.mark.parametrize(("part", "wrong"), [("logits", np.nan), ("logits", np.inf), ("embeddings", np.nan)])
def test_a_cell_without_numbers_is_no_prediction_and_spoils_no_other(
    served, tmp_path, monkeypatch, caplog, part, wrong
):
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")
    offered, images = [], drawn(3)

    class Overflowing(Quick):
        ill = True

        def infer(self, crops):
            outputs = Quick.infer(self, crops)
            for index, crop in enumerate(crops):
                if self.ill and crop[..., 0].max() == 1:  # the second image
                    getattr(outputs, part)[index] = wrong
            return outputs

    engine = Overflowing()
    contest = SimpleNamespace(canary=lambda _: None, answered=lambda *a: offered.append(a), close=lambda: None)
    with front(served, tmp_path / "home", engine=engine, BLASTWATCH_ANSWER_CACHE="9") as door:
        door.service.contest = contest
        first, second, third = door.ask("/v1/predict_batch", files=images).json()["results"]
        alone = door.predict(cell=images[1][1])
        assert "label" in first and "label" in third
        assert second["type"] == alone.json()["type"] == "/problems/internal"
        assert (second["status"], alone.status_code) == (500, 500)
        for problem in (second, alone.json()):
            assert f"Request {problem['request_id']}: version 7 gives outputs" in caplog.text
        assert door.count("blastwatch_predictions_total") == len(offered) == 2
        until(lambda: door.service.capture.counts().stored == 2, 30)
        engine.ill = False
        assert door.predict(cell=images[1][1]).status_code == 200  # it was not remembered
        until(lambda: door.service.capture.counts().stored == 3, 30)


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"id":"\\ud800","label":"all"}', "json-unreadable"),
        (b'{"id":"a","label":"\\udfff"}', "json-unreadable"),
        (b'{"id":"a\\u0000b","label":"all"}', "json-unreadable"),  # PostgreSQL would not look for it
        (b'{"id":"a","label":"' + b"x" * 50_000 + b'"}', "label-refused"),
        (b'{"id":"' + b"x" * 50_000 + b'","label":"all"}', "prediction-unknown"),
    ],
)
def test_a_label_of_strange_characters_is_refused_in_few_words(door, body, problem):
    answer = door.ask("/v1/labels", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["type"] == f"/problems/{problem}" and answer.status_code < 500
    assert len(answer.content) < 1000
    assert door.count("blastwatch_requests_total", outcome="failed") == 0


@pytest.mark.parametrize(
    ("charset", "field", "problem", "status"),
    [
        ("undefined", b"image", "image-not-an-image", 415),  # its one file is none
        ("utf-7", b"+2AA-", "unexpected-field", 400),
        ("unicode_escape", rb"\ud800", "unexpected-field", 400),
        ("x" * 60_000, b"image", "image-not-an-image", 415),
        ("utf-8", b"\xff", "unexpected-field", 400),
    ],
)
def test_a_form_is_read_alike_whatever_charset_it_tells(door, charset, field, problem, status):
    body = b'--B\r\nContent-Disposition: form-data; name="' + field + b'"; filename="a"\r\n\r\nx\r\n--B--\r\n'
    kind = f"multipart/form-data; boundary=B; charset={charset}"
    answer = door.ask("/v1/predict", content=body, headers={"Content-Type": kind})
    assert answer.json()["type"] == f"/problems/{problem}" and answer.status_code == status
    assert len(answer.content) < 1000
    assert door.count("blastwatch_requests_total", outcome="failed") == 0


def test_a_slow_upload_is_answered_by_an_idle_service(served, tmp_path, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = head + write_cell(tmp_path / "cell.bmp").read_bytes() + b"\r\n--B--\r\n"
    lines = ["POST /v1/predict HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=B"]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    with (
        front(served, tmp_path / "home", engine=Quick(), BLASTWATCH_MAX_LATENCY_MS="5000") as door,
        socket.create_connection(("127.0.0.1", int(door.url.rsplit(":", 1)[1])), 30) as line,
    ):
        line.sendall("\r\n".join(lines).encode() + body[:1000])
        time.sleep(5.2)  # longer than a cell may wait
        line.sendall(body[1000:])
        assert line.recv(12) == b"HTTP/1.1 200"


def test_a_batch_does_not_turn_itself_away(served, tmp_path, monkeypatch):
    """Its last cells wait for its first ones, for longer than a cell may wait for those of others."""
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")

    class Slow(Quick):
        abreast = 2

        def infer_beside(self, crops):
            time.sleep(0.1)
            return self.infer(crops)

    with front(served, tmp_path / "home", engine=Slow(), BLASTWATCH_MAX_LATENCY_MS="200") as door:
        answer = door.ask("/v1/predict_batch", files=drawn(32))
    assert answer.status_code == 200
    assert ["label" in result for result in answer.json()["results"]] == [True] * 32


def test_the_capture_is_flushed_before_threads_that_wait_for_its_database(door):
    """They may wait for as long as the process may still live."""
    released, ending = threading.Event(), threading.Thread(target=door.service.close)
    for _ in range(ASIDE_THREADS):
        door.service._aside.submit(released.wait, 20)
    assert door.predict(cell=door.cell).status_code == 200
    try:
        ending.start()
        until(lambda: not door.service.capture._thread.is_alive(), 10)
        assert ending.is_alive() and door.service.capture.counts().stored == 1
    finally:
        released.set()
        ending.join(20)
