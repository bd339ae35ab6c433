"""A request stays in the lane it took; a retired lane ends with its last request and lets its engine go."""

import asyncio
import gc
import threading
import weakref
from dataclasses import replace

import numpy as np
import pytest

from blastwatch.inference import Outputs
from serving.lane import Lane, Slot
from serving.live import LiveModel
from serving.predictor import Prepared
from serving.remembered import Remembered


class Engine:
    name, abreast, on_cores = "openvino-f32", 1, True

    def rest(self):
        pass

    def infer(self, crops):
        return Outputs(np.zeros((len(crops), 2), np.float32), np.zeros((len(crops), 512), np.float32))


class Counting(Engine):
    """Answers the mean of each cell, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def infer(self, crops):
        self.asked += [float(cell.mean()) for cell in crops]
        logits = np.stack([crops.mean(axis=(1, 2, 3)), np.zeros(len(crops))], axis=1)
        return Outputs(logits.astype(np.float32), np.zeros((len(crops), 512), np.float32))


def prepared(number):
    """An image of one value."""
    crop = np.full((4, 4, 3), number, np.uint8)
    return Prepared(crop=crop, pixel_sha256=f"{number:064d}", statistics={}, concerns=[])


def asked(settings, served, most, *calls):
    """What each call was answered, what the engine was asked, and the lookups."""
    engine, lookups = Counting(), []
    live = LiveModel(served=served, engine=engine)
    lane = Lane(live, replace(settings, answer_cache=most), on_lookup=lookups.append)

    async def talk():
        return [[row[0][0] for row in await lane.outputs([prepared(n) for n in numbers])] for numbers in calls]

    try:
        return asyncio.run(talk()), engine.asked, lookups
    finally:
        lane.close()


def test_nothing_is_remembered_by_default(settings, served):
    assert settings.answer_cache == 0
    answers, seen, lookups = asked(settings, served, 0, [1, 2], [2, 1])
    assert answers == [[1, 2], [2, 1]]
    assert seen == [1, 2, 2, 1]
    assert lookups == []


def test_a_remembered_image_is_answered_without_the_engine(settings, served):
    answers, seen, lookups = asked(settings, served, 2, [1, 2], [2, 1, 1], [3], [2], [1])
    assert answers == [[1, 2], [2, 1, 1], [3], [2], [1]]
    # 3 puts out 2, which was asked for before 1; 2 then puts out 1.
    assert seen == [1, 2, 3, 2, 1]
    assert lookups == ["miss"] * 2 + ["hit"] * 3 + ["miss"] * 3


def test_another_version_remembers_nothing_of_this_one(settings, served):
    for _ in range(2):
        assert asked(settings, served, 8, [5])[1] == [5]


@pytest.fixture
def lanes(settings, served):
    return lambda: Lane(LiveModel(served=served, engine=Engine()), settings)


def test_a_request_keeps_its_lane_to_the_end(lanes):
    first, second = lanes(), lanes()
    slot = Slot("champion", first)
    with slot.taken() as mine:
        assert slot.swap(second) is first
        assert mine is first
        assert not first.ended.is_set()
        with slot.taken() as other:
            assert other is second
    assert first.ended.is_set()
    assert not first.enter()
    second.close()


def test_a_lane_with_nothing_in_flight_ends_at_once(lanes):
    lane = lanes()
    lane.retire()
    assert lane.ended.is_set()


def test_the_engine_goes_with_its_lane_without_a_collection(lanes):
    slot = Slot("champion", lanes())
    gc.disable()
    try:
        with slot.taken() as lane:
            gone = weakref.ref(lane)
            slot.swap(lanes())
        del lane
        assert gone() is None
    finally:
        gc.enable()
    slot.lane.close()


def test_every_request_finds_an_open_lane_whatever_is_swapped(lanes):
    slot, stop, seen = Slot("champion", lanes()), threading.Event(), []

    def ask():
        while not stop.is_set():
            with slot.taken() as lane:
                if lane.ended.is_set():
                    seen.append(lane)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    old = [slot.swap(lanes()) for _ in range(200)]
    stop.set()
    for thread in threads:
        thread.join()
    assert not seen
    assert all(lane.ended.is_set() for lane in old)
    slot.lane.close()


def test_what_is_remembered_holds_no_batch_in_memory():
    kept = Remembered(2)
    logits, embeddings = np.zeros((32, 2), np.float32), np.zeros((32, 512), np.float32)
    kept.keep("a", (logits[3], embeddings[3]))
    assert all(row.base is None for row in kept.find("a"))
