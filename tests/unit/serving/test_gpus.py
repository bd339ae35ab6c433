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


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_UNKNOWN, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH])
def test_a_driver_that_fails_takes_no_other_metric_with_it_and_is_said_once(monkeypatch, caplog, error):
    def init():
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    for _ in range(2):
        text = ServiceMetrics(CollectorRegistry()).export({})
        assert b"blastwatch_capture_waiting" in text and b"blastwatch_gpu" not in text
    assert caplog.text.count("their driver fails") == 1


def test_a_driver_that_was_renewed_under_the_process_takes_no_other_metric_with_it(monkeypatch, caplog):
    driver = gpus.Gpus(FakeDriver(2, renewed=True))
    monkeypatch.setattr("serving.metrics.open_gpus", lambda: driver)
    for _ in range(2):
        text = ServiceMetrics(CollectorRegistry()).export({})
        assert b"blastwatch_capture_waiting" in text and b"blastwatch_gpu_busy_ratio{" not in text
    assert caplog.text.count("version mismatch") == 1


def test_one_that_does_not_tell_its_use_tells_its_memory(caplog):
    value = exported(FakeDriver(2, split=(1,)))
    assert value("blastwatch_gpu_memory_used_bytes", 1) == 4e9 and value("blastwatch_gpu_memory_bytes", 1) == 80e9
    assert value("blastwatch_gpu_busy_ratio", 1) is None and value("blastwatch_gpu_busy_ratio", 0) == 0.25
    assert caplog.text.count("The use of GPU 1 cannot be read: Not Supported") == 1


def test_with_a_driver_they_stand_in_the_export(monkeypatch):
    monkeypatch.setattr("serving.metrics.open_gpus", lambda: gpus.Gpus(FakeDriver(1)))
    assert b'blastwatch_gpu_busy_ratio{gpu="0",name="GPU of 0"} 0.25' in ServiceMetrics(CollectorRegistry()).export({})
