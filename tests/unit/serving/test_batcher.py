"""Concurrent cells meet in one batch; whoever would wait too long is turned away."""

import asyncio
import threading
import time

import numpy as np
import pytest

from blastwatch.engines import Outputs
from serving.batcher import Batcher
from serving.problems import Overloaded


def cell(value):
    return np.full((3, 2, 2), value, np.float32)


class Engine:
    """Answers with the mean of each cell; the first batch waits for the gate."""

    def __init__(self, seconds=0.0):
        self.sizes, self.gate, self.seconds = [], threading.Event(), seconds

    def infer(self, cells):
        if not self.sizes:
            assert self.gate.wait(5)
        self.sizes.append(len(cells))
        time.sleep(self.seconds * len(cells))
        means = cells.mean(axis=(1, 2, 3))
        return Outputs(logits=np.stack([means, -means], axis=1), embeddings=means[:, None])


def test_who_comes_while_the_engine_is_busy_joins_the_next_batch():
    engine = Engine()
    batcher = Batcher(engine.infer, max_batch_size=4, longest_wait=5)

    async def run():
        tasks = [asyncio.create_task(batcher.run([cell(value)])) for value in range(7)]
        await asyncio.sleep(0.05)
        engine.gate.set()
        return await asyncio.gather(*tasks)

    rows = asyncio.run(run())
    assert [row[0][0][0] for row in rows] == list(range(7))  # each got its own answer
    assert engine.sizes == [4, 3]
    batcher.close()


def test_an_overload_says_when_to_come_again():
    engine = Engine(seconds=0.02)
    engine.gate.set()
    batcher = Batcher(engine.infer, max_batch_size=2, longest_wait=0.1)

    async def run():
        await batcher.run([cell(0)])  # now the batcher knows how long a cell takes
        tasks = [asyncio.create_task(batcher.run([cell(1)])) for _ in range(40)]
        await asyncio.sleep(0)
        patient = asyncio.create_task(batcher.run([cell(2)], patient=True))
        return await asyncio.gather(*tasks, return_exceptions=True), await patient

    results, patient = asyncio.run(run())
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert 0 < len(refused) < 40
    assert all(error.retry_after >= 1 for error in refused)
    assert refused[0].problem().headers == {"Retry-After": str(refused[0].retry_after)}
    assert patient[0][1][0] == 2
    batcher.close()


def test_a_failing_engine_fails_the_callers_and_the_next_call_is_answered():
    calls = []

    def infer(cells):
        calls.append(len(cells))
        if len(calls) == 1:
            raise RuntimeError("no memory")
        return Outputs(logits=np.zeros((len(cells), 2), np.float32), embeddings=np.zeros((len(cells), 1), np.float32))

    batcher = Batcher(infer, max_batch_size=4, longest_wait=5)

    async def run():
        with pytest.raises(RuntimeError, match="no memory"):
            await batcher.run([cell(0), cell(1)])
        return await batcher.run([cell(2)])

    assert len(asyncio.run(run())) == 1
    batcher.close()


def test_a_caller_who_went_away_costs_no_inference():
    engine = Engine()
    batcher = Batcher(engine.infer, max_batch_size=1, longest_wait=5)

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
