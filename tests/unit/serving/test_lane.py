"""A request stays in the lane it took; a retired lane ends with its last request and lets its engine go."""

import gc
import threading
import weakref

import numpy as np
import pytest

from blastwatch.engines import Outputs
from serving.lane import Lane, Slot
from serving.live import LiveModel


class Engine:
    name = "openvino-f32"

    def infer(self, inputs):
        return Outputs(np.zeros((len(inputs), 2), np.float32), np.zeros((len(inputs), 512), np.float32))


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
