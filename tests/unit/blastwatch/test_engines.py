import ctypes
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays

from blastwatch.engines import choose, open_engine
from blastwatch.images import Preprocessing, normalise
from blastwatch.package import Precision, open_package
from serving.memory import trim
from tests.running import environment
from tests.same_bits import looked_up
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


@pytest.mark.parametrize("name", ["openvino-bf16", "torch-bf16"])
def test_logits_are_corrected_as_the_package_says(package, name):
    found = Precision(cells=9, flip_rate=0.0, largest_difference=0.0, scale=2.0, shift=(0.5, -0.25))
    told = replace(package, info=replace(package.info, precision={name: found}))
    side = package.info.preprocessing.size
    crops = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    plain, corrected = (open_engine(one, name, beside=True) for one in (package, told))
    assert (corrected.name, corrected.abreast, corrected.on_cores) == (name, plain.abreast, plain.on_cores)
    inputs = normalise(crops, package.info.preprocessing)
    for call, values in (("infer", crops), ("infer_beside", crops), ("infer_inputs", inputs)):
        before, after = (getattr(engine, call)(values) for engine in (plain, corrected))
        np.testing.assert_allclose(after.logits, 2 * before.logits + np.array([0.5, -0.25]), rtol=1e-6)
        np.testing.assert_array_equal(after.embeddings, before.embeddings)
        assert after.logits.dtype == np.float32
    assert type(open_engine(told, "torch-f32")) is type(open_engine(package, "torch-f32"))


def test_while_one_float32_engine_computes_no_other_tells_torch_to_round(package):
    """What torch is told holds for the process. It takes no GPU to see what the engines tell it."""
    one, other = (open_engine(package, "torch-f32") for _ in range(2))
    for engine in (one, other):
        engine._device = "cuda"
    before, tries, inside, told = torch.backends.cudnn.allow_tf32, threading.Event(), threading.Event(), []

    def compute_beside():
        tries.set()
        with other._whole_float32():
            inside.set()
            told.append(torch.backends.cudnn.allow_tf32)

    thread = threading.Thread(target=compute_beside)
    try:
        torch.backends.cudnn.allow_tf32 = True
        with one._whole_float32():
            thread.start()
            assert tries.wait(60)
            assert not inside.wait(0.2)  # it waits until this one has computed
            told.append(torch.backends.cudnn.allow_tf32)
        thread.join(60)
        assert told == [False, False] and torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


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
    batches = [random.integers(0, 256, (1 + number % 3, 32, 32, 3), np.uint8) for number in range(24)]
    engine = open_engine(package, name, threads=2, beside=True)
    assert engine.abreast >= 1
    expected = [engine.infer(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.infer_beside, batches))
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(other.logits, one.logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(other.embeddings, one.embeddings, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["openvino-f32", "torch-f32"])
def test_an_engine_that_rested_says_the_same(package, name):
    engine = open_engine(package, name, threads=2, beside=True)
    ways = engine.infer, engine.infer_beside
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    before = [way(crops) for way in ways]
    engine.rest()
    for way, known in zip(ways, before, strict=True):
        np.testing.assert_array_equal(way(crops).logits, known.logits)


def test_openvino_rests_only_where_nothing_runs_and_gives_back_what_a_batch_took(tmp_path):
    large = open_package(make_servable(tmp_path / "package", size=224))
    engine = open_engine(large, "openvino-f32", threads=2)
    crops = np.zeros((32, 224, 224, 3), np.uint8)
    engine.infer(crops)
    trim()
    before = psutil.Process().memory_info().rss
    engine.rest()
    trim()
    assert before - psutil.Process().memory_info().rss > 100 << 20  # a ResNet-18 has 8 sizes of its input and more
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(engine.infer, crops) for _ in range(3)]
        while not all(each.done() for each in running):
            engine.rest()
        for each in running:
            assert np.isfinite(each.result().logits).all()


def test_a_batch_that_openvino_refuses_does_not_spoil_the_next(package):
    engine = open_engine(package, "openvino-f32")
    with pytest.raises(RuntimeError):
        engine.infer_inputs(np.zeros((1, 5, 32, 32), np.float32))
    assert engine.infer_inputs(np.zeros((2, 3, 32, 32), np.float32)).logits.shape == (2, 2)


@pytest.mark.parametrize("name", ["openvino-f32", "openvino-bf16", "openvino-int8", "torch-f32", "torch-bf16"])
def test_crops_are_answered_as_what_normalise_makes_of_them_to_the_bit(package, name):
    crops = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), np.uint8)
    engine = open_engine(package, name)
    ours, theirs = engine.infer(crops), engine.infer_inputs(normalise(crops, package.info.preprocessing))
    assert ours.logits.tobytes() == theirs.logits.tobytes()
    assert ours.embeddings.tobytes() == theirs.embeddings.tobytes()


@settings(deadline=None, max_examples=30)
@given(arrays(np.uint8, (2, 16, 16, 3)))
def test_the_table_in_the_graph_holds_the_bits_of_normalise(crops):
    shape = Preprocessing(crop=16, size=16)
    assert looked_up(shape)(crops).tobytes() == normalise(crops, shape).tobytes()


REPORTING = """
import sys
from pathlib import Path

import numpy as np

asked = []
sys.addaudithook(lambda event, args: asked.append((event, args)) if event in EVENTS else None)
from blastwatch.engines import open_engine
from blastwatch.package import Precision, open_package
from serving.memory import trim
from training.export import quantize

package = open_package(Path(sys.argv[1]))
crops = np.zeros((2, 32, 32, 3), np.uint8)
open_engine(package, "openvino-f32").infer(crops)
quantize(package.folder / "network.onnx", crops, package.info.preprocessing, Path(sys.argv[2]))
print(asked, "openvino" in sys.modules, "nncf" in sys.modules)
"""


def test_openvino_and_nncf_report_their_use_to_nobody(package, tmp_path):
    events = ("socket.getaddrinfo", "socket.connect", "socket.gethostbyname")
    done = subprocess.run(
        [sys.executable, "-c", REPORTING.replace("EVENTS", repr(events)), package.folder, tmp_path / "int8.onnx"],
        env=environment(HOME=str(tmp_path)), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[] True True"
    assert not (tmp_path / "intel").exists()  # where they note who they are and how often they were used


@pytest.mark.parametrize("name", ["openvino-f32", "torch-f32"])
@pytest.mark.parametrize(("shape", "kind"), [
    ((0, 32, 32, 3), np.uint8), ((1, 3, 32, 32), np.uint8), ((1, 64, 64, 3), np.uint8), ((1, 32, 32, 3), np.float32),
])  # fmt: skip
def test_what_is_no_crop_is_refused(package, name, shape, kind):
    with pytest.raises(ValueError, match=r"Expected uint8 of shape \(n, 32, 32, 3\), one cell at least, but got "):
        open_engine(package, name).infer(np.zeros(shape, kind))
