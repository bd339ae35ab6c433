"""Who is let in before the engine, and how long anybody waits: places, expected waits, and who is turned away."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from serving import batcher as batcher_module
from serving.batcher import Batcher
from serving.problems import Overloaded
from tests.unit.serving.test_batcher import Engine, cell


def short_of_time():
    """A batch takes 20 ms, and nobody waits longer than 0.1 s."""
    engine = Engine(seconds=0.02)
    engine.gate.set()
    return Batcher(engine, max_batch_size=2, longest_wait=0.1)


def test_later_parts_of_a_batch_call_wait_as_long_as_it_takes():
    engine = Engine()
    batcher = Batcher(engine, max_batch_size=1, longest_wait=0.05)

    async def run():
        first = asyncio.create_task(batcher.run([cell(0)]))
        await asyncio.sleep(0.02)
        later = asyncio.create_task(batcher.run([cell(1)], patient=True))
        await asyncio.sleep(0.1)
        engine.gate.set()
        await asyncio.gather(first, later)

    asyncio.run(run())
    batcher.close()


def test_a_place_whose_body_never_comes_is_kept_from_nobody_for_long():
    batcher = short_of_time()

    async def run():
        await batcher.run([cell(0)])
        with pytest.raises(Overloaded):
            while True:
                batcher.reserve()
        with pytest.raises(Overloaded), batcher.coming():
            pass
        await asyncio.sleep(0.11)
        with batcher.coming():
            pass

    asyncio.run(run())
    batcher.close()


def test_cells_abreast_take_their_share_of_the_time_that_is_expected():
    engine = Engine(seconds=0.02, abreast=2)
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=32, longest_wait=1)

    async def run():
        await asyncio.gather(*(batcher.run([cell(value)]) for value in range(16)))
        return batcher._seconds_a_cell

    assert asyncio.run(run()) < 0.02
    batcher.close()


def test_an_overload_says_when_to_come_again():
    batcher = short_of_time()

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


def test_images_that_are_still_read_count_as_waiting():
    batcher = short_of_time()

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


def test_a_request_has_its_place_while_its_body_is_read():
    batcher = short_of_time()

    async def run():
        await batcher.run([cell(0)])
        places = []
        with pytest.raises(Overloaded):
            while len(places) < 20:
                places.append(batcher.reserve())
        assert 1 < len(places) < 20
        with batcher.coming(place=places[0]), pytest.raises(Overloaded):  # it was let in, and needs no other room
            batcher.reserve()
        batcher.reserve().leave()  # the next one finds the room that it left
        await asyncio.sleep(0.11)
        with batcher.coming(4):  # bodies that take longer keep nobody out
            pass

    asyncio.run(run())
    batcher.close()


def test_the_wait_counts_from_when_the_request_was_let_in():
    engine = Engine()
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=5)

    async def run():
        await batcher.run([cell(1)], since=time.monotonic() - 4)
        with pytest.raises(Overloaded):
            await batcher.run([cell(1)], since=time.monotonic() - 6)

    asyncio.run(run())
    batcher.close()


def test_of_the_wait_a_body_takes_half_at_most(monkeypatch):
    """On an idle service a slow line is no reason to turn anybody away; under overload its time goes on counting."""
    engine, clock = Engine(), SimpleNamespace(now=100.0)
    monkeypatch.setattr(batcher_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    batcher = Batcher(engine, max_batch_size=4, longest_wait=8)

    async def run(body, waited):
        place = batcher.reserve()
        clock.now += body
        with batcher.coming(place=place):
            pass
        clock.now += waited
        return await batcher.run([cell(1)], since=place.since)

    async def runs():
        engine.gate.set()
        await run(1000, 3.9)
        await run(3, 4.9)
        for body, waited in ((1000, 4.1), (3, 5.1)):
            with pytest.raises(Overloaded):
                await run(body, waited)

    asyncio.run(runs())
    batcher.close()


def test_who_comes_to_a_lagging_event_loop_is_let_in_only_where_nobody_waits():
    engine = Engine()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=1)

    async def run():
        task = asyncio.create_task(batcher.run([cell(1)]))
        await asyncio.sleep(0.05)
        engine.gate.set()
        time.sleep(0.6)  # the answer is there, and the loop does not come to it
        await task
        with batcher.coming(), pytest.raises(Overloaded):
            batcher.check_room()
        await batcher.run([cell(1)])  # handed on at once
        with batcher.coming():
            batcher.check_room()

    asyncio.run(run())
    batcher.close()


def test_a_lag_that_is_over_keeps_one_caller_out_and_no_more():
    """No outcome comes to tell so: others hold places whose bodies are still on the way."""
    engine = Engine()
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=4)

    async def run():
        task = asyncio.create_task(batcher.run([cell(1)]))
        await asyncio.sleep(0)
        time.sleep(1.2)
        await task
        batcher.reserve()
        with pytest.raises(Overloaded):
            batcher.reserve()
        await asyncio.sleep(0.01)
        batcher.reserve()
        with batcher.coming():
            pass

    asyncio.run(run())
    batcher.close()


def test_a_turn_that_turns_many_away_is_measured_from_the_first_of_them():
    """Else its lag would be what passed since the last, and the next turn would let everybody in."""
    engine = Engine()
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=1)

    async def caller():
        try:
            batcher.reserve()
        except Overloaded:
            time.sleep(0.03)  # what it takes to say so
            return "out"
        return "in"

    async def run():
        task = asyncio.create_task(batcher.run([cell(1)]))
        await asyncio.sleep(0)
        time.sleep(0.6)
        await task
        batcher.reserve()
        for _ in range(2):
            assert set(await asyncio.gather(*(caller() for _ in range(15)))) == {"out"}
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            batcher.reserve()
        await asyncio.sleep(0.01)
        batcher.reserve()

    asyncio.run(run())
    batcher.close()


def test_a_lag_that_goes_on_keeps_everybody_out():
    engine = Engine()
    engine.gate.set()
    batcher = Batcher(engine, max_batch_size=4, longest_wait=1)

    async def run():
        task = asyncio.create_task(batcher.run([cell(1)]))
        await asyncio.sleep(0)
        time.sleep(0.6)
        await task
        batcher.reserve()
        for _ in range(3):
            with pytest.raises(Overloaded):
                batcher.reserve()
            time.sleep(0.3)  # this turn takes long too
            await asyncio.sleep(0)

    asyncio.run(run())
    batcher.close()
