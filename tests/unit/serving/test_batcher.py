"""Concurrent cells meet in one batch; whoever would wait too long is turned away."""

import asyncio
import threading
import time

import numpy as np
import pytest

from blastwatch.engines import Outputs
from serving.batcher import ABREAST_CELLS, Batcher
from serving.problems import Overloaded


def cell(value):
    return np.full((3, 2, 2), value, np.float32)


class Engine:
    """Answers with the mean of each cell; the first batch waits for the gate."""

    def __init__(self, seconds=0.0, *, abreast=1):
        self.sizes, self.gate, self.seconds = [], threading.Event(), seconds
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

    def infer(self, cells):
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
    assert engine.sizes == [1, 4, 2]  # an idle engine starts at once
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
    assert engine.most == 2 and engine.sizes.count(1) >= 1  # the first one, alone
    assert sum(engine.beside) == 17 and max(engine.beside) == min(ABREAST_CELLS, max_batch_size)
    assert len(engine.sizes) == len(engine.beside) + 1
    batcher.close()


def test_an_overload_says_when_to_come_again():
    engine = Engine(seconds=0.02)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=2, longest_wait=0.1)

    async def ask(value, **named):
        with batcher.coming(**named):
            await asyncio.sleep(0)
        return await batcher.run([cell(value)], **named)

    async def run():
        await ask(0)  # now the batcher knows how long a cell takes
        tasks = [asyncio.create_task(ask(1)) for _ in range(40)]
        await asyncio.sleep(0)
        patient = asyncio.create_task(ask(2, patient=True))
        return await asyncio.gather(*tasks, return_exceptions=True), await patient

    results, patient = asyncio.run(run())
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert 0 < len(refused) < 40
    assert all(error.retry_after >= 1 for error in refused)
    assert refused[0].problem().headers == {"Retry-After": str(refused[0].retry_after)}
    assert patient[0][1][0] == 2
    batcher.close()


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


def test_images_that_are_still_read_count_as_waiting():
    engine = Engine(seconds=0.02)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=2, longest_wait=0.1)

    async def run():
        await batcher.run([cell(0)])
        with batcher.coming(6):
            with pytest.raises(Overloaded), batcher.coming():
                pass
            with batcher.coming(4, patient=True):  # later parts of a call that was let in
                pass
        with batcher.coming():  # nobody is left
            pass

    asyncio.run(run())
    batcher.close()
