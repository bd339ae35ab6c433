"""What torch frees is kept by the process, where the C library can."""

import ctypes
import resource

import torch

from tests.trainings import in_process
from training.memory import keep_freed_memory

LARGE, TIMES = 12_000_000, 8  # float32 numbers: 48 MB, above what glibc keeps by itself
# What is asked for with an alignment does not fit where its like was freed, until what is left between has grown: nine
# tensors at most were seen.
SETTLED = 24


def faults(told, keep):
    """Pages that the kernel had to give for the same tensor, made again and again."""
    if keep:
        keep_freed_memory()
    for _ in range(SETTLED):
        torch.ones(LARGE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(TIMES):
        torch.ones(LARGE)
    told.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))


def test_a_large_tensor_finds_its_pages_again(tmp_path):
    found = {}
    for keep in (True, False):
        path = tmp_path / str(keep)
        process = in_process(faults, path, keep)
        process.join(60)
        assert process.exitcode == 0
        found[keep] = int(path.read_text())
    asked = TIMES * 4 * LARGE / resource.getpagesize()
    assert found[True] < 0.1 * asked and (found[False] > 0.9 * asked or not hasattr(ctypes.CDLL(None), "mallopt"))


def test_another_c_library_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    keep_freed_memory()
