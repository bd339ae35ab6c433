"""An engine that fails batch after batch is told from one that failed once, and gets a chance to come back."""

import asyncio

import numpy as np
import pytest

from blastwatch.inference import Outputs
from serving import engine_health
from serving.batcher import Batcher
from serving.engine_health import DEAD_SECONDS, FAILED, REST_SECONDS, EngineHealth


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 1000.0

        def monotonic(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(engine_health, "time", made)
    return made


def told(health):
    return health.ready, health.alive


def test_a_batch_that_failed_says_nothing_of_the_engine(clock):
    health = EngineHealth()
    for _ in range(5):
        for _ in range(FAILED - 1):
            health.failed()
        assert told(health) == (True, True)
        clock.now += DEAD_SECONDS
        health.answered()


def test_after_several_it_is_not_ready_for_a_while_and_then_tried_again(clock, caplog):
    health = EngineHealth()
    for _ in range(FAILED):
        health.failed()
    assert told(health) == (False, True) and "not ready" in caplog.text
    clock.now += REST_SECONDS
    assert told(health) == (True, True)
    health.failed()
    assert told(health) == (False, True)
    health.answered()
    assert told(health) == (True, True)


def test_once_it_has_failed_for_long_it_is_dead_until_it_answers(clock):
    health = EngineHealth()
    for _ in range(FAILED):
        health.failed()
    clock.now += 10 * DEAD_SECONDS
    assert health.alive  # nobody came since: nothing is known
    health.failed()
    assert told(health) == (False, False)
    clock.now += REST_SECONDS
    assert told(health) == (True, False)
    health.answered()
    assert told(health) == (True, True)


def test_a_batcher_tells_it_of_each_batch():
    class Engine:
        abreast, on_cores, lost = 1, True, True

        def infer(self, cells):
            if self.lost:
                raise RuntimeError("CUDA error: unspecified launch failure")
            return Outputs(
                logits=np.zeros((len(cells), 2), np.float32), embeddings=np.zeros((len(cells), 1), np.float32)
            )

        infer_beside = infer

    engine = Engine()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=5)

    async def run():
        cell = np.zeros((2, 2, 3), np.uint8)
        for _ in range(FAILED):
            assert batcher.health.ready
            with pytest.raises(RuntimeError, match="launch failure"):
                await batcher.run([cell])
        assert not batcher.health.ready
        engine.lost = False
        await batcher.run([cell])

    asyncio.run(run())
    assert batcher.health.ready
    batcher.close()
