"""Benchmarks that hold works against each other let them take turns, every other round the other way round."""

import time

from tests.benchmarks.turns import in_turns


def test_each_work_is_done_once_a_round_and_once_before(monkeypatch):
    done = []
    monkeypatch.setattr(time, "perf_counter", lambda: float(sum(done)))
    assert in_turns([lambda: done.append(5), lambda: done.append(1)], 3) == [[5, 1]] * 3
    assert done == [1, 5, 5, 1, 1, 5, 5, 1]
