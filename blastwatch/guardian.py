"""Ends the children of a process that could not do it itself: `python guardian.py SECONDS`, by `blastwatch.processes`.

Its standard input has a line for each child, `+ID` when it starts and `-ID` when it was stopped, each the leader of a
group. When that input ends, the parent has: the groups that are left are asked to stop, and killed after these seconds.
So it holds on every system, and for the children of children, unlike the signal that Linux sends a child at its
parent's end. It needs Python's own library alone, so that it takes little while it waits.
"""

import os
import signal
import sys
import time
from collections.abc import Iterable

LOOK_SECONDS = 0.1


def left(lines: Iterable[str]) -> list[int]:
    """The groups that were started and not stopped, the last one first."""
    groups: list[int] = []
    for line in lines:
        group = int(line[1:])
        if line[0] == "+":
            groups.append(group)
        else:
            groups.remove(group)
    return groups[::-1]


def end(groups: list[int], seconds: float) -> None:
    """Ask groups to stop, and kill what is left of them after some seconds."""
    for group in groups:
        _send(group, signal.SIGTERM)
    last = time.monotonic() + seconds
    while time.monotonic() < last and any(_send(group, 0) for group in groups):
        time.sleep(LOOK_SECONDS)
    for group in groups:
        _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    """Whether there was anybody to send it to."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter on macOS, of those that nobody has waited for
        return False
    return True


if __name__ == "__main__":
    for heard in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):  # of who ends all processes at once, the parent too
        signal.signal(heard, signal.SIG_IGN)
    end(left(sys.stdin), float(sys.argv[1]))
