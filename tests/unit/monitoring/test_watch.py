"""What the monitor says of itself where there is nothing to watch yet, and of a version that is new to it."""

import threading
import time
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from blastwatch.errors import DataError
from blastwatch.registry import AliasNotSet
from monitoring.metrics import MonitorMetrics
from monitoring.performance import STATES
from monitoring.watch import Monitor, _loop


class Blind:
    """A monitor whose looks raise one error after another; the last one stops the loop."""

    def __init__(self, stop, *errors):
        self.stop, self.errors, self.status = stop, list(errors), self

    def fail(self, line):
        self.said = line

    def look(self):
        error = self.errors.pop(0)
        if not self.errors:
            self.stop.set()
        raise error


def looked(*errors, before=0.0):
    """When the monitor last looked, as its gauge says after these looks."""
    metrics, stop = MonitorMetrics(CollectorRegistry()), threading.Event()
    _loop(Blind(stop, *errors), metrics, 0.01, stop)
    return metrics.registry.get_sample_value("blastwatch_drift_last_look_timestamp_seconds") - before


def test_without_a_champion_nobody_is_called_and_a_look_that_fails_is_none():
    """`BlastwatchMonitorStale` pages once this lies ten minutes back: not right after a start, and not for as long as
    a new installation has no version that serves."""
    began = time.time()
    assert 0 <= looked(DataError("away"), before=began) < 5
    waited = looked(*[AliasNotSet("nobody")] * 20, before=began)
    assert waited >= 0.19
    assert looked(*[DataError("away")] * 20, before=time.time()) < 0.05
    assert looked(*[OSError(28, "No space left on device")] * 3, before=began) < 5  # and the monitor goes on


def test_nothing_that_was_said_of_the_version_before_is_said_of_the_next():
    metrics = MonitorMetrics(CollectorRegistry())
    metrics.watch_model("4", "a" * 64)
    metrics.performance_fell.labels("realised").set(1)
    metrics.estimate_state.labels("untrusted").set(1)
    metrics.detected.set(1)
    metrics.watch_model("5", "b" * 64)
    value = metrics.registry.get_sample_value
    assert value("blastwatch_drift_model_info", {"version": "5", "digest": "b" * 64}) == 1
    assert [value("blastwatch_performance_fell", {"kind": kind}) for kind in ("estimated", "realised")] == [0, 0]
    assert [value("blastwatch_estimate_state", {"state": state}) for state in STATES] == [0] * len(STATES)
    assert value("blastwatch_drift_detected") == 0


def test_another_version_has_patients_of_its_own(settings):
    said = ["4"]

    def fetched():
        return SimpleNamespace(
            entry=SimpleNamespace(version=said[-1]), package=SimpleNamespace(digest=said[-1] * 64)
        )  # fmt: skip

    monitor = Monitor(settings, MonitorMetrics(CollectorRegistry()), fetch=fetched)
    monitor._watched()
    monitor._patients, monitor._newest = "of version 4", "a"
    monitor._watched()
    assert monitor._patients == "of version 4"
    said.append("5")
    monitor._watched()
    assert (monitor._patients, monitor._newest) == (None, None)
    monitor.close()
