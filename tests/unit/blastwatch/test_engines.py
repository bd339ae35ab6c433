import ctypes
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from blastwatch.engines import choose, open_engine
from blastwatch.package import open_package
from tests.service_packages import make_servable


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return open_package(make_servable(tmp_path_factory.mktemp("engines") / "package"))


def compared(*names):
    """A package that was compared with these engines, as far as a choice looks at it."""
    return SimpleNamespace(info=SimpleNamespace(precision=dict.fromkeys(names)))


def test_without_a_driver_torch_is_not_even_loaded(monkeypatch):
    """A service that OpenVINO answers for holds no torch, which takes seconds and half a gigabyte in each worker."""

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would fail
    assert choose("auto", compared("torch-f16-graphs")) == "openvino-f32"


@pytest.mark.parametrize(("found", "known", "engine"), [
    (True, ("torch-bf16", "torch-f16-graphs"), "torch-f16-graphs"), (True, ("torch-bf16",), "torch-bf16"),
    (True, (), "torch-bf16"), (False, ("torch-f16-graphs",), "openvino-f32"),
])  # fmt: skip
def test_with_a_driver_torch_says_whether_there_is_a_gpu(monkeypatch, found, known, engine):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert choose("auto", compared(*known)) == engine
    assert choose("openvino-int8", compared(*known)) == "openvino-int8"


def test_the_number_of_torchs_threads_is_changed_only_where_one_is_asked_for(package):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        open_engine(package, "torch-f32")
        assert torch.get_num_threads() == 1
        open_engine(package, "torch-f32", threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["openvino-f32", "openvino-int8"])
def test_several_batches_at_a_time_say_what_one_says(package, name):
    random = np.random.default_rng(0)
    batches = [random.normal(size=(1 + number % 3, 3, 32, 32)).astype(np.float32) for number in range(24)]
    engine = open_engine(package, name, threads=2, beside=True)
    assert engine.abreast >= 1
    expected = [engine.infer(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.infer_beside, batches))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other.logits, one.logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(other.embeddings, one.embeddings, rtol=1e-4, atol=1e-4)


def test_a_batch_that_openvino_refuses_does_not_spoil_the_next(package):
    engine = open_engine(package, "openvino-f32")
    with pytest.raises(RuntimeError):
        engine.infer(np.zeros((1, 5, 32, 32), np.float32))
    assert engine.infer(np.zeros((2, 3, 32, 32), np.float32)).logits.shape == (2, 2)
