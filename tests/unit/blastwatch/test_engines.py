import ctypes
import sys

import pytest
import torch

from blastwatch.engines import choose, open_engine
from blastwatch.package import open_package
from tests.service_packages import make_servable


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return open_package(make_servable(tmp_path_factory.mktemp("engines") / "package"))


def test_without_a_driver_torch_is_not_even_loaded(monkeypatch):
    """A service that OpenVINO answers for holds no torch, which takes seconds and half a gigabyte in each worker."""

    def absent(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    monkeypatch.setitem(sys.modules, "torch", None)  # an import of it would fail
    assert choose("auto") == "openvino-f32"


@pytest.mark.parametrize(("found", "engine"), [(True, "torch-bf16"), (False, "openvino-f32")])
def test_with_a_driver_torch_says_whether_there_is_a_gpu(monkeypatch, found, engine):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found)
    assert choose("auto") == engine


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
