"""What may wait for something else keeps nobody from an answer, and whatever a caller sends is an answer."""

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from blastwatch.explanation import Explainer
from blastwatch.inference import Outputs
from monitoring.capture import GATHER_SECONDS
from serving.drawing import MOST
from tests.in_thread import front
from tests.service_packages import write_cell

SLOW = 1.0  # seconds that a heat map takes here


class Quick:
    """An engine that answers at once."""

    name, abreast, on_cores = "openvino-f32", 1, True

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


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"id":"\\ud800","label":"all"}', "json-unreadable"),
        (b'{"id":"a","label":"\\udfff"}', "json-unreadable"),
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
    ("charset", "field", "problem"),
    [
        ("undefined", b"image", "form-unreadable"),
        ("utf-7", b"+2AA-", "unexpected-field"),
        ("unicode_escape", rb"\ud800", "unexpected-field"),
    ],
)
def test_a_form_in_a_strange_charset_is_refused(door, charset, field, problem):
    body = b'--B\r\nContent-Disposition: form-data; name="' + field + b'"; filename="a"\r\n\r\nx\r\n--B--\r\n'
    kind = f"multipart/form-data; boundary=B; charset={charset}"
    answer = door.ask("/v1/predict", content=body, headers={"Content-Type": kind})
    assert answer.json()["type"] == f"/problems/{problem}" and answer.status_code == 400
    assert door.count("blastwatch_requests_total", outcome="failed") == 0
