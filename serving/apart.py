"""Work in threads of its own, with less of a busy core than the event loop gets.

An answer takes the event loop a few milliseconds, the engine tens of them. Where both want the same core, the loop must
have it at once: a service with too many callers would else be late with saying no. Only those threads step back that
compute without holding Python's lock: one that holds it while others have its core would hold up the loop as well.
"""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

ENGINE_NICE = 10
"""Of the threads that infer on the cores, and of those that the engine's library starts: a tenth of the weight of the
others. With 4 and 7 the loop could not take connections as fast as ten times too many callers made them."""

LOADING_NICE = ENGINE_NICE + 2
"""Of a version that is fetched, verified or loaded while another one answers: after those, yet not starved by them."""


def step_back(nice: int) -> None:
    """Let the calling thread be nicer than the process's first one by so much, or as nice as it is where that is more.

    On Linux each thread has its own niceness, and those that it starts inherit it. What was given away stays away.
    """
    wanted = os.getpriority(os.PRIO_PROCESS, os.getpid()) + nice
    mine = threading.get_native_id()
    if wanted > os.getpriority(os.PRIO_PROCESS, mine):
        os.setpriority(os.PRIO_PROCESS, mine, wanted)


def apart(call: Callable[[], Result], *, nice: int = 0) -> Result:
    """Run work in a thread of its own, wait for it, and give its result or raise its error.

    Args:
        nice: see `step_back`.
    """
    box: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            step_back(nice)
            box.append(call())
        except BaseException as error:  # noqa: BLE001  (raised again below, in the thread that waits)
            failed.append(error)

    thread = threading.Thread(target=run, name="apart")
    thread.start()
    thread.join()
    if failed:
        raise failed.pop()
    return box[0]
