"""What the GPUs of this machine do, read from NVIDIA's driver whenever Prometheus asks."""

import functools
import logging
from collections.abc import Iterator
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

_log = logging.getLogger("blastwatch.service")


class Gpus(Collector):
    """Memory and use of every GPU that the driver shows to this process, whoever uses it.

    Args:
        nvml: the module pynvml, initialised.
    """

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml

    def collect(self) -> Iterator[Metric]:
        """A GPU that the driver cannot read has no samples, and the log says why."""
        labels = ["gpu", "name"]
        used = GaugeMetricFamily("blastwatch_gpu_memory_used_bytes", "Memory of the GPU in use.", labels=labels)
        whole = GaugeMetricFamily("blastwatch_gpu_memory_bytes", "Memory of the GPU.", labels=labels)
        busy = GaugeMetricFamily(
            "blastwatch_gpu_busy_ratio", "Share of the last moment in which the GPU computed, 0 to 1.", labels=labels
        )
        nvml = self._nvml
        for number in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                label = [str(number), nvml.nvmlDeviceGetName(handle)]
                memory, use = nvml.nvmlDeviceGetMemoryInfo(handle), nvml.nvmlDeviceGetUtilizationRates(handle)
            except nvml.NVMLError as error:
                _log.warning("GPU %d cannot be read: %s", number, error)
                continue
            used.add_metric(label, memory.used)
            whole.add_metric(label, memory.total)
            busy.add_metric(label, use.gpu / 100)
        yield from (used, whole, busy)


@functools.cache
def open_gpus() -> Gpus | None:
    """The GPUs, or None where NVIDIA's driver is not."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None
    return Gpus(pynvml)
