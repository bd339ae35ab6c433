"""Heat maps, one at a time: each takes the cores for a while, and many of them must keep nobody from an answer."""

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from serving.problems import Overloaded

MOST = 4  # heat maps that are drawn or wait
_FORGET = 0.8  # weight of the past in the running mean of seconds a map

Result = TypeVar("Result")


class Drawing:
    """The thread that draws, and who has a place before it. Use `place` from one event loop."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="drawing")
        self._asked = 0
        self._seconds = 0.0

    @contextmanager
    def place(self) -> Iterator[None]:
        """Room for one. Raises `Overloaded` where there is none."""
        if self._asked >= MOST:
            raise Overloaded(retry_after=max(1, math.ceil(self._asked * self._seconds)), waiting=self._asked)
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    def timed(self, draw: Callable[[], Result]) -> Result:
        """Draw, in the thread."""
        began = time.monotonic()
        try:
            return draw()
        finally:
            latest = time.monotonic() - began
            self._seconds = latest if self._seconds == 0 else _FORGET * self._seconds + (1 - _FORGET) * latest
