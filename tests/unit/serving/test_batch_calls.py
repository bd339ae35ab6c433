"""A call with many images is one call to its end: one patient's, and answered by one version."""

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest

from monitoring.pseudonyms import Pseudonyms
from serving.canary import PATIENT_HEADER
from serving.cell_routes import _answers
from serving.live import LiveModel
from serving.problems import Problem
from tests.in_thread import front
from tests.service_packages import write_cell
from tests.unit.serving.test_aside import Quick, drawn

CELLS, PART = 5, 2


class Telling(Quick):
    """Calls `on_batch` with each batch before it answers."""

    def __init__(self):
        self.on_batch = lambda crops: None

    def infer(self, crops):
        self.on_batch(crops)
        return super().infer(crops)

    infer_beside = infer_inputs = infer


@pytest.fixture
def engine():
    return Telling()


@pytest.fixture
def door(served, tmp_path, monkeypatch, engine):
    """A service that computes a call in parts, and the records that it hands to its capture."""
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")
    with front(served, tmp_path / "home", engine=engine, BLASTWATCH_MAX_BATCH_SIZE=str(PART)) as opened:
        opened.records = []
        monkeypatch.setattr(opened.service.capture, "submit", opened.records.append)
        yield opened


@pytest.fixture
def images(tmp_path):
    """The parts of a call with as many cells, no two alike."""
    cells = [write_cell(tmp_path / f"{number}.bmp", number).read_bytes() for number in range(CELLS)]
    return [("images", (f"{number}.bmp", cell)) for number, cell in enumerate(cells)]


def ask(door, images, headers=()):
    answer = door.ask("/v1/predict_batch", files=images, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def test_every_cell_of_a_call_is_stored_with_its_patient(door, images):
    results = ask(door, images, {PATIENT_HEADER: "Ada 1815"})
    assert [record.id for record in door.records] == [result["id"] for result in results]
    assert {record.patient for record in door.records} == {Pseudonyms(door.settings.patient_salt)("Ada 1815")}
    door.records.clear()
    ask(door, images)
    assert [record.patient for record in door.records] == [""] * CELLS


def test_one_version_answers_all_parts_of_a_call_whatever_is_swapped_meanwhile(door, images, engine, served):
    other = replace(served, entry=replace(served.entry, version="8"))
    first, sizes = door.service.lane, []

    def swap(crops):
        if not sizes:
            door.service.slot.swap(door.service.open_lane(LiveModel(served=other, engine=Quick())))
        sizes.append(len(crops))

    engine.on_batch = swap
    assert [result["model"]["version"] for result in ask(door, images)] == ["7"] * CELLS
    assert sum(sizes) == CELLS and len(sizes) > 1
    assert first.ended.is_set()
    assert [result["model"]["version"] for result in ask(door, images)] == ["8"] * CELLS


def test_a_large_call_to_a_slow_engine_leaves_room_for_single_cells(served, tmp_path, monkeypatch, engine, images):
    """Else each is turned away until the whole batch is answered, and again where the next begins."""
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")
    engine.on_batch = lambda crops: time.sleep(0.01 * len(crops))
    with front(served, tmp_path / "home", engine=engine, BLASTWATCH_MAX_LATENCY_MS="400") as door:
        ((_, (_, cell)), *_) = images
        assert door.predict(cell=cell).status_code == 200  # from now on it is known how slow the engine is
        call = threading.Thread(target=ask, args=(door, drawn(80)))
        call.start()
        beside = []
        while call.is_alive():
            beside.append(door.predict(cell=cell).status_code)
            time.sleep(0.02)
        call.join()
    assert len(beside) > 3 and beside.count(200) > 0.7 * len(beside), beside  # one may come to a busy machine


class Image:
    """Stands for the bytes of a file; bytes themselves cannot be watched."""


def test_refused_images_of_a_batch_are_let_go_with_their_answers():
    """And not when Python's garbage collector comes: they are no longer counted as held by then."""
    seen = []

    async def read():
        image = Image()
        seen.append(weakref.ref(image))
        return image

    async def prepare(_lane, _data):
        raise Problem("image-truncated", "It is cut off.")

    async def outputs(_cells, *, patient):
        return []

    service = SimpleNamespace(prepare=prepare)
    lane = SimpleNamespace(part=lambda: 2, coming=lambda *_, **__: contextlib.nullcontext(), outputs=outputs)
    request = SimpleNamespace(state=SimpleNamespace(place=None, request_id="a"), url=SimpleNamespace(path="/"))
    gc.collect()
    gc.disable()
    try:
        files = [SimpleNamespace(read=read) for _ in range(6)]
        answers = asyncio.run(_answers(service, lane, request, files, 0.0, ""))
        assert [one["type"] for one in answers] == ["/problems/image-truncated"] * 6
        assert len(seen) == 6 and not any(image() for image in seen)
    finally:
        gc.enable()
