"""What the GPUs of this machine do, read from NVIDIA's driver whenever Prometheus asks."""

import functools
import logging
from collections.abc import Callable, Iterator
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
        self._said: set[str] = set()  # Prometheus asks every few seconds, for days

    def collect(self) -> Iterator[Metric]:
        """What the driver cannot read has no samples, and the log says once why: under MIG a GPU tells its memory and
        not its use, and a driver that was renewed under this process tells nothing."""
        labels = ["gpu", "name"]
        used = GaugeMetricFamily("blastwatch_gpu_memory_used_bytes", "Memory of the GPU in use.", labels=labels)
        whole = GaugeMetricFamily("blastwatch_gpu_memory_bytes", "Memory of the GPU.", labels=labels)
        busy = GaugeMetricFamily(
            "blastwatch_gpu_busy_ratio", "Share of the last moment in which the GPU computed, 0 to 1.", labels=labels
        )
        nvml = self._nvml
        for number in range(self._read("The number of GPUs", nvml.nvmlDeviceGetCount) or 0):
            handle = self._read(f"GPU {number}", nvml.nvmlDeviceGetHandleByIndex, number)
            if handle is None:
                continue
            name = self._read(f"The name of GPU {number}", nvml.nvmlDeviceGetName, handle)
            label = [str(number), name or "unknown"]
            memory = self._read(f"The memory of GPU {number}", nvml.nvmlDeviceGetMemoryInfo, handle)
            use = self._read(f"The use of GPU {number}", nvml.nvmlDeviceGetUtilizationRates, handle)
            if memory is not None:
                used.add_metric(label, memory.used)
                whole.add_metric(label, memory.total)
            if use is not None:
                busy.add_metric(label, use.gpu / 100)
        yield from (used, whole, busy)

    def _read(self, what: str, ask: Callable[..., Any], *arguments: Any) -> Any:
        """What the driver says; None where it does not."""
        try:
            return ask(*arguments)
        except self._nvml.NVMLError as error:
            if what not in self._said:
                _log.warning("%s cannot be read: %s", what, error)
            self._said.add(what)
            return None


@functools.cache
def open_gpus() -> Gpus | None:
    """The GPUs, or None where NVIDIA's driver is not, or fails, which the log says once: no other metric is lost."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None
    except pynvml.NVMLError as error:
        _log.warning("The GPUs have no metrics until the service is started again, since their driver fails: %s", error)
        return None
    return Gpus(pynvml)
