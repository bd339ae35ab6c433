"""Work in a thread of its own that ends with it."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def apart(call: Callable[[], Result], *, nice: int = 0) -> Result:
    """Run work in a thread of its own, wait for it, and give its result or raise its error.

    Args:
        nice: added to the thread's niceness; a priority given away does not come back, the thread does not live on.
    """
    box: list[Result] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            if nice:
                mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())  # on Linux each thread has one
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), mine + nice)
            box.append(call())
        except BaseException as error:  # noqa: BLE001  (raised again below, in the thread that waits)
            failed.append(error)

    thread = threading.Thread(target=run, name="apart")
    thread.start()
    thread.join()
    if failed:
        raise failed.pop()
    return box[0]
