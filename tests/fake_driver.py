"""NVIDIA's driver as pynvml shows it, for machines without a GPU."""

from types import SimpleNamespace


class FakeDriver:
    """Some GPUs of 80 GB; those of `lost` fell off the bus, those of `split` (MIG) do not tell how busy they are.

    Args:
        renewed: whether the driver is another one now than when the process opened it.
    """

    class NVMLError(Exception):
        """What pynvml raises."""

    def __init__(self, count, lost=(), split=(), renewed=False):
        self._count, self._lost, self._split, self._renewed = count, lost, split, renewed

    def nvmlDeviceGetCount(self):  # noqa: N802
        if self._renewed:
            raise self.NVMLError("Driver/library version mismatch")
        return self._count

    def nvmlDeviceGetHandleByIndex(self, number):  # noqa: N802
        if number in self._lost:
            raise self.NVMLError("GPU is lost")
        return number

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return f"GPU of {handle}"

    def nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return SimpleNamespace(used=2e9 * (handle + 1), total=80e9)

    def nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        if handle in self._split:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=25 * (handle + 1))
