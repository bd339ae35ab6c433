"""Works that are measured against each other take turns, so that whatever else the machine does hits all of them."""

import time
from collections.abc import Callable, Sequence


def in_turns(works: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each work in each of so many rounds, after one that warms up; every other round goes backwards.

    Returns:
        A list a round, in the order of `works`.
    """
    found = []
    for turn in range(rounds + 1):
        seconds = dict.fromkeys(range(len(works)), 0.0)
        for number in seconds if turn % 2 else reversed(seconds):
            start = time.perf_counter()
            works[number]()
            seconds[number] = time.perf_counter() - start
        found.append(list(seconds.values()))
    return found[1:]
