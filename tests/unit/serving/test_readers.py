"""Few images are read at a time, and none waits behind one that takes long."""

import asyncio
import gc
import threading
import time
import weakref
from asyncio import wrap_future
from concurrent.futures import wait
from contextlib import suppress
from functools import partial

import pytest

from serving.readers import MOST_READERS, Readers, reading_at_a_time, reading_threads


@pytest.fixture
def open_readers():
    opened = []

    def make(threads, **settings):
        opened.append(Readers(threads, **settings))
        return opened[-1]

    yield make
    for readers in opened:
        readers.shutdown(wait=True, cancel_futures=True)


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "beside_an_engine"),
    [
        (1, 1, 2, 1),
        (2, 1, 2, 1),
        (3, 1, 3, 1),
        (4, 1, 4, 2),
        (4, 4, 2, 1),
        (16, 1, MOST_READERS, 2),
        (16, 2, MOST_READERS, 2),
        (16, 8, 2, 1),
    ],
)
def test_threads_are_a_share_of_the_cores(monkeypatch, cores, workers, threads, beside_an_engine):
    monkeypatch.setattr("serving.readers.cores", lambda: cores)
    assert reading_threads(workers) == threads
    assert reading_at_a_time(workers, on_cores=True) == beside_an_engine
    assert reading_at_a_time(workers, on_cores=False) == threads


def test_results_and_errors_go_to_who_asked(open_readers):
    readers = open_readers(2, at_a_time=1)
    assert [readers.submit(pow, 2, exponent).result(10) for exponent in range(20)] == [2**e for e in range(20)]
    with pytest.raises(ZeroDivisionError):
        readers.submit(divmod, 1, 0).result(10)


def test_results_and_errors_go_to_who_awaits_them(open_readers):
    readers = open_readers(2, at_a_time=1)

    async def ask():
        assert await readers.run(lambda: 2**10) == 1024
        with pytest.raises(ZeroDivisionError):
            await readers.run(lambda: divmod(1, 0))
        assert await asyncio.gather(*(readers.run(lambda n=n: n) for n in range(20))) == list(range(20))

    asyncio.run(ask())


def test_who_left_or_whose_loop_has_ended_is_not_read_for(open_readers):
    readers, begun, go, read = open_readers(1, at_a_time=1, slow=60.0), threading.Event(), threading.Event(), []

    def hold():
        begun.set()
        go.wait(10)

    async def leave():
        holding = asyncio.create_task(readers.run(hold))
        await asyncio.to_thread(begun.wait, 10)
        waiting = asyncio.create_task(readers.run(lambda: read.append("left")))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        holding.cancel()

    asyncio.run(leave())
    go.set()  # its result has no loop to go to
    assert readers.submit(lambda: read.append("stayed")).result(10) is None
    assert read == ["stayed"]


def test_at_the_end_nobody_waits_in_vain(open_readers):
    readers, go = open_readers(1, at_a_time=1, slow=60.0), threading.Event()

    async def end():
        holding = asyncio.create_task(readers.run(lambda: go.wait(10)))
        waiting = asyncio.create_task(readers.run(lambda: None))
        await asyncio.sleep(0.01)
        readers.shutdown(wait=False, cancel_futures=True)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        go.set()
        assert await holding
        with pytest.raises(RuntimeError, match="Expected a call before the end"):
            await readers.run(lambda: None)

    asyncio.run(end())


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_so_many_run_at_a_time_in_the_order_they_came(open_readers, at_a_time):
    readers, lock = open_readers(4, at_a_time=at_a_time, slow=60.0), threading.Lock()
    running, most, order = 0, 0, []

    def read(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
            order.append(number)
        time.sleep(0.002)
        with lock:
            running -= 1

    wait([readers.submit(read, number) for number in range(50)], timeout=30)
    assert most == at_a_time
    assert order == list(range(50)) if at_a_time == 1 else sorted(order) == list(range(50))


def test_what_is_slow_holds_up_nobody(open_readers):
    readers, gate = open_readers(3, at_a_time=1, slow=0.02), threading.Event()
    stuck = [readers.submit(gate.wait, 30) for _ in range(2)]
    begun = time.monotonic()
    assert [readers.submit(str, number).result(10) for number in range(5)] == list("01234")
    assert time.monotonic() - begun >= 0.02  # each of the two had its time first
    assert not any(future.done() for future in stuck)
    gate.set()
    assert all(future.result(10) for future in stuck)


def test_a_call_that_waits_behind_a_fast_one_comes_when_that_one_is_slow(open_readers):
    """Nothing else happens meanwhile that could wake a thread."""
    readers, gate = open_readers(2, at_a_time=1, slow=0.02), threading.Event()
    first = readers.submit(gate.wait, 30)
    assert readers.submit(str, 1).result(10) == "1"
    gate.set()
    assert first.result(10)


def test_after_a_rush_one_call_begins_at_once(open_readers):
    """A thread may still look after calls that waited; another one takes the next."""
    readers = open_readers(3, at_a_time=1, slow=30.0)
    for _ in range(20):
        wait([readers.submit(time.sleep, 0.001) for _ in range(5)], timeout=10)
        assert readers.submit(str, 1).result(5) == "1"


def test_a_cancelled_call_is_left_out(open_readers):
    readers, gate = open_readers(2, at_a_time=1, slow=30.0), threading.Event()
    first, second, third = readers.submit(gate.wait, 30), readers.submit(str, 2), readers.submit(str, 3)
    assert second.cancel()
    gate.set()
    assert first.result(10)
    assert third.result(10) == "3"


def test_an_idle_thread_keeps_no_image(open_readers):
    class Image:
        pass

    readers, image = open_readers(2, at_a_time=1), Image()
    seen = weakref.ref(image)
    readers.submit(id, image).result(10)
    del image
    end = time.monotonic() + 5
    while seen() is not None and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert seen() is None


@pytest.mark.parametrize("way", ["run", "submit"])
def test_an_image_that_was_refused_is_kept_by_nothing_once_its_error_went(open_readers, way):
    """Also where nobody collects rings of objects, and where the error has one that it came of."""

    class Image:
        pass

    def read(_image):
        try:
            raise LookupError("within")
        except LookupError as error:
            raise ValueError("refused") from error

    readers, refused = open_readers(1, at_a_time=1), []

    async def ask():
        image = Image()
        refused.append(weakref.ref(image))
        with suppress(ValueError):
            await (readers.run(partial(read, image)) if way == "run" else wrap_future(readers.submit(read, image)))

    async def ask_several():
        for _ in range(5):
            await ask()
        await readers.run(int)  # the thread that read the last one has let go of it

    was = gc.isenabled()
    gc.disable()
    try:
        asyncio.run(ask_several())
        assert [image() for image in refused] == [None] * 5
    finally:
        if was:
            gc.enable()


@pytest.mark.parametrize("cancel", [True, False])
def test_the_end_waits_for_what_runs_and_takes_no_more(cancel):
    before = set(threading.enumerate())
    readers, gate = Readers(3, at_a_time=1, slow=30.0), threading.Event()
    futures = [readers.submit(gate.wait, 30), *(readers.submit(str, number) for number in range(5))]
    while not futures[0].running():
        time.sleep(0.001)
    threading.Timer(0.05, gate.set).start()
    readers.shutdown(wait=True, cancel_futures=cancel)
    assert futures[0].result(0)
    assert [future.cancelled() for future in futures[1:]] == [cancel] * 5
    assert not {thread for thread in threading.enumerate() if thread.name.startswith("images-")} - before
    with pytest.raises(RuntimeError, match="Expected a call before the end"):
        readers.submit(str, 1)
