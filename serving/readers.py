"""The threads of a worker that read images: few at a time, and one more beside each image that takes long.

Between their steps threads of one process take Python's lock from one another, and each change wakes a thread on
another core. Where an engine keeps the cores busy, two threads that read take a tenth more of them than one that reads
the same images (`tests.benchmarks.serving`). One alone would let a single slow image, a large TIFF say, hold up all
that come behind it.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, Generic, ParamSpec, TypeVar

from blastwatch.cores import cores

MOST_READERS = 4  # more threads of a process take Python's lock from one another (`tests.benchmarks.reading`)
SLOW_SECONDS = 0.05  # after which an image keeps no other waiting; a cell takes some 2 to 5 ms

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
_Call = tuple["_Done[Any]", Callable[[], Any]]


def reading_threads(processes: int = 1) -> int:
    """Threads that read images in each of so many processes: its share of the cores, 2 to `MOST_READERS`."""
    return max(2, min(MOST_READERS, cores() // processes))


def reading_at_a_time(processes: int = 1, *, on_cores: bool) -> int:
    """Images that each of so many processes reads at a time, those that take long not counted.

    Args:
        on_cores: whether the engine computes on the same cores; else reading is all that they do.
    """
    threads = reading_threads(processes)
    return max(1, threads // 2) if on_cores else threads


class Readers(Executor):
    """Runs calls in threads, in the order they came.

    Args:
        threads: that there are.
        at_a_time: calls that run at a time, at most `threads`; one that has run for `slow` is not counted.
        slow: seconds.
    """

    def __init__(self, threads: int, *, at_a_time: int, slow: float = SLOW_SECONDS) -> None:
        self._at_a_time = at_a_time
        self._slow = slow
        self._changed = threading.Condition()
        self._waiting: deque[_Call] = deque()  # this and the next three under `_changed`
        self._began: dict[int, float] = {}
        self._guarded = False
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, args=(number,), name=f"images-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, call: Callable[Arguments, Result], /, *arguments: Arguments.args, **named: Arguments.kwargs
    ) -> Future[Result]:
        """As `concurrent.futures.Executor.submit`. Raises `RuntimeError` after `shutdown`."""
        done: Future[Result] = Future()
        self._take(done, lambda: call(*arguments, **named))
        return done

    async def run(self, call: Callable[[], Result]) -> Result:
        """The result of a call, awaited in an event loop: as its `run_in_executor`, for a third of what that takes."""
        done: _Awaited[Result] = _Awaited(asyncio.get_running_loop())
        self._take(done, call)
        try:
            return await done.result
        finally:
            del done  # as in `_run`

    def _take(self, done: "_Done[Any]", call: Callable[[], Any]) -> None:
        with self._changed:
            if self._closed:
                raise RuntimeError("Expected a call before the end of the service but it has begun.")
            self._waiting.append((done, call))
            self._wake_another()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`."""
        with self._changed:
            self._closed = True
            if cancel_futures:
                while self._waiting:
                    self._waiting.popleft()[0].cancel()
            self._changed.notify_all()
        if wait:
            for thread in self._threads:
                thread.join()

    def _work(self, number: int) -> None:
        while (taken := self._next(number)) is not None:
            _run(*taken)
            del taken  # else a thread that waits would keep the last image
            with self._changed:
                del self._began[number]

    def _next(self, number: int) -> _Call | None:
        """Wait for a call that may begin now; None at the end."""
        with self._changed:
            while not self._may_begin():
                if self._closed and not self._waiting:
                    self._changed.notify_all()  # those who waited for the last call to become slow
                    return None
                self._wait()
            taken = self._waiting.popleft()
            self._began[number] = time.monotonic()
            if self._waiting:
                self._wake_another()
            return taken

    def _wake_another(self) -> None:
        """Whoever reads takes the next call itself: another thread is woken where it may begin at once, or to look
        after those that wait where nobody does."""
        if self._may_begin() or not self._guarded:
            self._changed.notify()

    def _may_begin(self) -> bool:
        return bool(self._waiting) and len(self._seconds_left()) < self._at_a_time

    def _seconds_left(self) -> list[float]:
        """Of each call that runs and is not slow: until it is."""
        slow = time.monotonic() - self._slow
        return [began - slow for began in self._began.values() if began > slow]

    def _wait(self) -> None:
        """Until something changes; where calls wait, one of the threads without any looks when the next is slow."""
        if not self._waiting or self._guarded:
            self._changed.wait()
            return
        self._guarded = True
        try:
            self._changed.wait(min(self._seconds_left(), default=0.0))
        finally:
            self._guarded = False


class _Awaited(Generic[Result]):
    """A future of an event loop, which another thread gives its result: what `_run` needs of one of `concurrent`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.result: asyncio.Future[Result] = loop.create_future()
        self._loop = loop

    def set_running_or_notify_cancel(self) -> bool:
        """Whether anybody waits for it still."""
        return not self.result.done()

    def set_result(self, result: Result) -> None:
        self._tell(self.result.set_result, result)

    def set_exception(self, error: BaseException) -> None:
        self._tell(self.result.set_exception, error)

    def cancel(self) -> None:
        self._tell(self.result.cancel)

    def _tell(self, call: Callable[..., object], *outcome: Any) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it whoever waited
            self._loop.call_soon_threadsafe(self._hand_on, call, *outcome)

    def _hand_on(self, call: Callable[..., object], *outcome: Any) -> None:
        if not self.result.done():
            call(*outcome)


_Done = Future[Result] | _Awaited[Result]


def _run(done: "_Done[Result]", call: Callable[[], Result]) -> None:
    if not done.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001  (whoever asked raises it)
        done.set_exception(error)
        # It keeps the error, whose traceback has this frame: a ring, which would hold a refused image until somebody
        # collects it.
        del done
    else:
        done.set_result(result)
