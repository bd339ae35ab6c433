"""Memory and use of GPUs in the export, of a driver that is not here; `tests.benchmarks.gpu_serving` has one."""

import pynvml
import pytest
from prometheus_client import CollectorRegistry

from serving import gpus
from serving.metrics import ServiceMetrics
from tests.fake_driver import FakeDriver


@pytest.fixture(autouse=True)
def fresh():
    gpus.open_gpus.cache_clear()
    yield
    gpus.open_gpus.cache_clear()


def exported(driver):
    registry = CollectorRegistry()
    registry.register(gpus.Gpus(driver))
    return lambda name, number: registry.get_sample_value(name, {"gpu": str(number), "name": f"GPU of {number}"})


def test_each_gpu_has_its_memory_and_its_use():
    value = exported(FakeDriver(2))
    assert [value("blastwatch_gpu_memory_used_bytes", number) for number in (0, 1)] == [2e9, 4e9]
    assert value("blastwatch_gpu_memory_bytes", 1) == 80e9
    assert [value("blastwatch_gpu_busy_ratio", number) for number in (0, 1)] == [0.25, 0.5]


def test_one_that_cannot_be_read_is_left_out_and_said(caplog):
    value = exported(FakeDriver(2, lost=(0,)))
    assert value("blastwatch_gpu_busy_ratio", 0) is None
    assert value("blastwatch_gpu_busy_ratio", 1) == 0.5
    assert "GPU 0 cannot be read: GPU is lost" in caplog.text


@pytest.mark.parametrize("missing", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_a_driver_there_are_none(monkeypatch, missing):
    def init():
        raise pynvml.NVMLError(missing)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    assert gpus.open_gpus() is None
    assert b"blastwatch_gpu" not in ServiceMetrics(CollectorRegistry()).export({})


def test_a_driver_that_fails_is_no_missing_driver(monkeypatch):
    def init():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    with pytest.raises(pynvml.NVMLError):
        gpus.open_gpus()


def test_with_a_driver_they_stand_in_the_export(monkeypatch):
    monkeypatch.setattr("serving.metrics.open_gpus", lambda: gpus.Gpus(FakeDriver(1)))
    assert b'blastwatch_gpu_busy_ratio{gpu="0",name="GPU of 0"} 0.25' in ServiceMetrics(CollectorRegistry()).export({})
