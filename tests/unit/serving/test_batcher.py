"""Concurrent cells meet in one batch; whoever would wait too long is turned away."""

import asyncio
import os
import threading
import time
from collections import Counter

import numpy as np
import pytest

from blastwatch.inference import Outputs
from serving import batcher as batcher_module
from serving.apart import ENGINE_NICE
from serving.batcher import ABREAST_CELLS, Batcher, batch_sizes


def cell(value):
    return np.full((2, 2, 3), value, np.uint8)


class Engine:
    """Answers with the mean of each cell; the first batch waits for the gate."""

    def __init__(self, seconds=0.0, *, abreast=1, on_cores=True):
        self.sizes, self.gate, self.seconds, self.on_cores = [], threading.Event(), seconds, on_cores
        self.nice, self.rests = 0, 0
        self.abreast, self.beside, self.most, self.now, self.lock = abreast, [], 0, 0, threading.Lock()

    def infer_beside(self, cells):
        with self.lock:
            self.beside.append(len(cells))
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.01)
        try:
            return self.infer(cells)
        finally:
            with self.lock:
                self.now -= 1

    def rest(self):
        self.rests += 1

    def infer(self, cells):
        self.nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        if not self.sizes:
            assert self.gate.wait(5)
        self.sizes.append(len(cells))
        time.sleep(self.seconds * len(cells))
        means = cells.mean(axis=(1, 2, 3))
        return Outputs(logits=np.stack([means, -means], axis=1), embeddings=means[:, None])


def test_who_comes_while_the_engine_is_busy_joins_the_next_batch():
    engine = Engine()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=5)

    async def run():
        tasks = [asyncio.create_task(batcher.run([cell(value)])) for value in range(7)]
        await asyncio.sleep(0.05)
        engine.gate.set()
        return await asyncio.gather(*tasks)

    rows = asyncio.run(run())
    assert [row[0][0][0] for row in rows] == list(range(7))  # each got its own answer
    # An idle engine starts at once, with whoever is there by then.
    assert sum(engine.sizes) == 7 and max(engine.sizes) <= 4 and len(engine.sizes) <= 3
    batcher.close()


def test_a_cell_that_is_alone_has_the_whole_engine():
    engine = Engine(abreast=2)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=32, longest_wait=5)

    async def run():
        for value in range(3):
            await batcher.run([cell(value)])

    asyncio.run(run())
    assert (engine.sizes, engine.beside) == ([1, 1, 1], [])
    batcher.close()


@pytest.mark.parametrize("max_batch_size", [3, 32])
def test_batches_abreast_share_those_who_wait(max_batch_size):
    engine = Engine(abreast=2)
    batcher = Batcher(engine, max_batch_size=max_batch_size, longest_wait=5)

    async def run():
        tasks = [asyncio.create_task(batcher.run([cell(value)])) for value in range(1 + 17)]
        await asyncio.sleep(0.05)
        engine.gate.set()
        return await asyncio.gather(*tasks)

    rows = asyncio.run(run())
    assert [row[0][0][0] for row in rows] == list(range(18))
    assert engine.most == 2 and sum(engine.sizes) == 18
    alone = sum(engine.sizes) - sum(engine.beside)  # the first one, where the engine began with it before others came
    assert alone in (0, 1) and max(engine.beside) == min(ABREAST_CELLS, max_batch_size)
    batcher.close()


def test_a_part_takes_its_share_and_leaves_the_rest_to_the_next():
    engine = Engine(abreast=2)
    batcher = Batcher(engine, max_batch_size=32, longest_wait=5)

    async def run():
        tasks = [asyncio.create_task(batcher.run([cell(0)]))]
        await asyncio.sleep(0.05)  # it has all of the engine
        tasks += [asyncio.create_task(batcher.run([cell(value)])) for value in (1, 2)]
        await asyncio.sleep(0.05)
        engine.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    batcher.close()
    assert engine.beside == [1, 1]


@pytest.mark.parametrize("abreast", [1, 2])
def test_a_failing_engine_fails_the_callers_and_the_next_call_is_answered(abreast):
    class Failing(Engine):
        def infer(self, cells):
            self.sizes.append(len(cells))
            if len(self.sizes) == 1:
                raise RuntimeError("no memory")
            width = len(cells)
            return Outputs(logits=np.zeros((width, 2), np.float32), embeddings=np.zeros((width, 1), np.float32))

    batcher = Batcher(Failing(abreast=abreast), max_batch_size=4, longest_wait=5)

    async def run():
        with pytest.raises(RuntimeError, match="no memory"):
            await batcher.run([cell(0), cell(1)])
        return await batcher.run([cell(2)])

    assert len(asyncio.run(run())) == 1
    batcher.close()


@pytest.mark.parametrize("abreast", [1, 2])
def test_memory_that_is_short_for_a_batch_fails_its_callers_and_no_thread(monkeypatch, abreast):
    engine = Engine(abreast=abreast)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=5)

    def short(_cells):
        raise MemoryError("no room for a batch")

    async def run():
        with monkeypatch.context() as patch, pytest.raises(MemoryError, match="no room"):
            patch.setattr(batcher_module.np, "stack", short)
            await asyncio.wait_for(batcher.run([cell(0), cell(1)]), 20)
        return await asyncio.wait_for(batcher.run([cell(2)]), 20)

    assert asyncio.run(run())[0][0][0] == 2
    assert all(thread.is_alive() for thread in batcher._threads)
    batcher.close()


def test_a_caller_who_went_away_costs_no_inference():
    engine = Engine()
    batcher = Batcher(engine, max_batch_size=1, longest_wait=5)

    async def run():
        first, gone = (asyncio.create_task(batcher.run([cell(value)])) for value in (0, 1))
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.sleep(0)
        engine.gate.set()
        await first
        await batcher.run([cell(2)])

    asyncio.run(run())
    assert engine.sizes == [1, 1]
    batcher.close()


def test_what_waits_for_the_engine_is_told_until_it_is_taken():
    engine, changes, waiting = Engine(), [], []
    batcher = Batcher(engine, max_batch_size=2, longest_wait=5, on_queue=changes.append)

    async def run():
        tasks = [asyncio.create_task(batcher.run([cell(value)])) for value in range(5)]
        await asyncio.sleep(0.05)
        waiting.append(sum(changes))
        tasks[3].cancel()
        engine.gate.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
    batcher.close()
    assert waiting == [5 - engine.sizes[0]]
    assert sum(changes) == 0


def test_who_waits_at_the_end_is_answered():
    engine = Engine()
    batcher = Batcher(engine, max_batch_size=1, longest_wait=5)

    async def run():
        tasks = [asyncio.create_task(batcher.run([cell(value)])) for value in range(3)]
        await asyncio.sleep(0.05)
        batcher.close(wait=False)
        engine.gate.set()
        return await asyncio.gather(*tasks)

    assert len(asyncio.run(run())) == 3
    batcher.close()


@pytest.mark.parametrize("abreast", [1, 2])
def test_the_engine_computes_while_the_event_loop_is_held_up(abreast):
    """As it is by many callers: the threads of the engine ask nobody for their next batch."""
    engine = Engine(abreast=abreast)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=2, longest_wait=5)

    async def run():
        tasks = [asyncio.create_task(batcher.run([cell(value)])) for value in range(12)]
        await asyncio.sleep(0)
        end = time.monotonic() + 5
        while sum(engine.sizes) < 12 and time.monotonic() < end:
            time.sleep(0.01)
        assert sum(engine.sizes) == 12
        return await asyncio.gather(*tasks)

    assert [row[0][0][0] for row in asyncio.run(run())] == list(range(12))
    batcher.close()


@pytest.mark.parametrize(("seconds", "before", "after"), [(0.05, 8, (3, 10)), (0.6, 8, (1, 1)), (0.0, 8, (32, 32))])
def test_a_part_of_a_large_call_takes_a_quarter_of_the_longest_wait(seconds, before, after):
    engine = Engine(seconds, abreast=2)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=32, longest_wait=2)
    assert batcher.part() == before  # what the engine computes at a time

    async def run():
        await batcher.run([cell(0)])

    asyncio.run(run())
    assert after[0] <= batcher.part() <= after[1]
    assert batcher.part() * seconds <= 0.6  # of the 1 s from where on others are turned away
    batcher.close()


@pytest.mark.parametrize("on_cores", [True, False])
def test_an_engine_on_the_cores_gives_way_to_the_event_loop_and_one_that_feeds_a_gpu_does_not(on_cores):
    engine = Engine(on_cores=on_cores)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=1, longest_wait=5)

    async def run():
        await batcher.run([cell(0)])

    asyncio.run(run())
    batcher.close()
    mine = os.getpriority(os.PRIO_PROCESS, os.getpid())
    assert engine.nice == (min(mine + ENGINE_NICE, 19) if on_cores else mine)


def test_memory_is_given_back_once_after_each_rush(monkeypatch):
    trims = []
    monkeypatch.setattr(batcher_module, "IDLE_SECONDS", 0.1)
    monkeypatch.setattr(batcher_module, "trim", lambda: trims.append(time.monotonic()))
    engine = Engine(abreast=2)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=5)

    def rush():
        async def run():
            await asyncio.gather(*(batcher.run([cell(value)]) for value in range(6)))

        asyncio.run(run())

    for rushes in (1, 2):
        rush()
        ended = time.monotonic()
        before = len(trims)
        time.sleep(0.5)
        assert engine.rests == len(trims) == before + 1 == rushes  # neither thread does it again
        assert trims[-1] - ended > 0.05
    batcher.close()


@pytest.mark.parametrize(("engine", "alone", "beside"), [
    (Engine(), 16, 16), (Engine(abreast=2), 1, ABREAST_CELLS), (Engine(abreast=2, on_cores=False), 1, 16),
])  # fmt: skip
def test_an_engine_never_gets_more_cells_than_its_golden_cells_were_checked_with(engine, alone, beside):
    sizes = batch_sizes(engine, 16)
    assert (sizes.alone, sizes.beside) == (alone, beside)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=16, longest_wait=5)

    async def run():
        await asyncio.gather(*(batcher.run([cell(value)]) for value in range(40)))

    asyncio.run(run())
    whole = Counter(engine.sizes) - Counter(engine.beside)  # what was inferred beside others is in both
    assert max(whole, default=0) <= alone and max(engine.beside, default=0) <= beside
    batcher.close()
