"""The info gauge names what serves and nothing else, also over several processes."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import ServiceMetrics

ROOT = Path(__file__).parents[3]

WORKER = """
import sys
from types import SimpleNamespace
from prometheus_client import CollectorRegistry
from serving.metrics import ServiceMetrics

def lane(version):
    package = SimpleNamespace(digest="d" + version, info=SimpleNamespace(synthetic=True))
    return SimpleNamespace(version=version, engine_name="openvino-f32", served=SimpleNamespace(package=package))

metrics = ServiceMetrics(CollectorRegistry())
metrics.tell_model(lane("1"))
for line in sys.stdin:
    if line.startswith("swap"):
        metrics.tell_model(lane("2"), lane("1"))
        metrics.tell_swap(0.5)
        metrics.tell_following("champion", 1000.0, "golden")
    print("done", flush=True)
"""


def lane(version):
    package = SimpleNamespace(digest="d" + version, info=SimpleNamespace(synthetic=True))
    return SimpleNamespace(version=version, engine_name="openvino-f32", served=SimpleNamespace(package=package))


def exported(metrics, environment):
    text = metrics.export(environment).decode()
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def versions(seen):
    return {value for key in seen if key[0] == "blastwatch_model_info" for value in key if value in ("1", "2")}


def test_what_is_counted_begins_with_nothing():
    """Prometheus sees no increase in a series that begins with 1."""
    text = ServiceMetrics(CollectorRegistry()).export({}).decode()
    for series in ('swaps_total{outcome="swapped"}', 'swaps_total{outcome="refused"}', 'labels_total{label="all"}'):
        assert f"{series} 0.0" in text


def test_after_a_swap_the_old_version_is_not_exported():
    metrics = ServiceMetrics(CollectorRegistry())
    metrics.tell_model(lane("1"))
    assert versions(exported(metrics, {})) == {"1"}
    metrics.tell_model(lane("2"), lane("1"))
    assert versions(exported(metrics, {})) == {"2"}
    metrics.tell_model(lane("1"), lane("2"))
    assert versions(exported(metrics, {})) == {"1"}


@pytest.fixture
def workers(tmp_path):
    """Two processes that share a folder of metrics, as two workers of the service do."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    yield started
    for worker in started:
        worker.kill()
        worker.communicate()


def tell(worker, word):
    worker.stdin.write(word + "\n")
    worker.stdin.flush()
    assert worker.stdout.readline() == "done\n"


def test_two_workers_that_swap_one_after_the_other(workers, tmp_path):
    metrics, environment = ServiceMetrics(CollectorRegistry()), {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    for worker in workers:
        tell(worker, "hello")
    assert versions(exported(metrics, environment)) == {"1"}
    tell(workers[0], "swap")
    assert versions(exported(metrics, environment)) == {"1", "2"}  # both do serve
    tell(workers[1], "swap")
    seen = exported(metrics, environment)
    assert versions(seen) == {"2"}
    assert seen["blastwatch_model_swaps_total", "swapped"] == 2
    assert seen["blastwatch_follow_refused", "champion", "golden"] == 1
    assert seen["blastwatch_registry_reached_timestamp_seconds",] == 1000


def test_a_worker_that_was_killed_is_forgotten(workers, tmp_path):
    metrics, environment = ServiceMetrics(CollectorRegistry()), {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    tell(workers[0], "hello")
    tell(workers[1], "swap")
    workers[0].kill()
    workers[0].wait()
    assert versions(exported(metrics, environment)) == {"2"}
