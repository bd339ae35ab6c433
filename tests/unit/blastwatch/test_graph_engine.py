"""The engine of a GPU, without its graphs: folding, parts and padding, several callers, crops looked up there.

What only a GPU can show is measured by `tests/benchmarks/gpu.py`.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from blastwatch.engines import open_engine
from blastwatch.errors import UsageError
from blastwatch.folding import ConvRelu, fold
from blastwatch.graph_engine import DTYPES, GraphEngine, HalfNetwork
from blastwatch.images import Preprocessing, normalise
from blastwatch.network import build, forward_with_embedding
from blastwatch.package import open_package
from tests.service_packages import make_servable

SHAPE = Preprocessing(crop=320, size=32)
NORMALISATIONS = (torch.nn.BatchNorm2d,)


def lived_in(architecture):
    """A network whose normalisations have statistics of their own, as after training."""
    torch.manual_seed(1)
    network = build(architecture).eval()
    for module in network.modules():
        if isinstance(module, NORMALISATIONS):
            for values, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.7, 1.4)):
                values.uniform_(low, high)
            for values, low, high in ((module.weight, 0.7, 1.4), (module.bias, -0.2, 0.2)):
                values.data.uniform_(low, high)
    return network


@pytest.fixture(scope="module")
def crops():
    return np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def engine():
    return GraphEngine(lived_in("resnet18"), SHAPE, "torch-bf16-graphs", device="cpu", sizes=(1, 4), join_relu=True)


@pytest.mark.parametrize(("architecture", "left", "joined"), [
    ("resnet18", 0, 17), ("densenet121", 62, 59), ("mobilenet_v3_large", 0, 13), ("convnext_tiny", 0, 0),
    ("efficientnet_lite0", 0, 0), ("efficientnet_lite0_stages", 0, 0), ("efficientnet_lite0_lite2_stages", 0, 0),
    ("efficientnet_lite0_lite2_early", 0, 0),
])  # fmt: skip
def test_a_folded_network_says_the_same(architecture, left, joined):
    network = lived_in(architecture)
    cells = torch.randn(2, 3, 32, 32)
    folded = fold(network, join_relu=True)
    called = [folded.get_submodule(node.target) for node in folded.graph.nodes if node.op == "call_module"]
    with torch.inference_mode():
        expected, got, plain = network(cells), folded(cells), fold(network, join_relu=False)(cells)
    for answered in (got, plain):
        torch.testing.assert_close(answered, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert sum(isinstance(module, NORMALISATIONS) for module in called) == left
    assert sum(isinstance(module, ConvRelu) for module in called) == joined


def test_it_answers_as_float32_does_within_the_rounding_of_bfloat16(engine, crops):
    cells = normalise(crops, SHAPE)
    with torch.inference_mode():
        logits, embeddings = (values.numpy() for values in forward_with_embedding(
            lived_in("resnet18"), torch.from_numpy(cells)
        ))  # fmt: skip
    got = engine.infer(crops)
    assert got.logits.dtype == got.embeddings.dtype == np.float32
    # Eight bits a number, over the eighteen layers of the network.
    np.testing.assert_allclose(got.embeddings, embeddings, atol=0.04 * np.abs(embeddings).max())
    np.testing.assert_allclose(got.logits, logits, atol=0.04 * np.abs(logits).max())


def test_parts_and_padding_change_no_answer(engine, crops):
    """Eleven cells are two parts of four and one of three, which is padded."""
    whole, single = engine.infer(crops), [engine.infer(crops[n : n + 1]) for n in range(len(crops))]
    np.testing.assert_allclose(whole.logits, np.concatenate([one.logits for one in single]), rtol=0.02, atol=1e-3)
    assert whole.embeddings.shape == (11, 512)
    again = engine.infer(crops)
    np.testing.assert_array_equal(whole.logits, again.logits)


def test_crops_are_looked_up_to_the_same_bits(engine, crops):
    looked_up = engine.normalise(torch.from_numpy(crops)).contiguous().numpy()
    assert looked_up.tobytes() == normalise(crops, SHAPE).tobytes()
    np.testing.assert_array_equal(engine.infer(crops).logits, engine.infer_inputs(normalise(crops, SHAPE)).logits)


def test_callers_at_the_same_time_get_their_own_answers(engine, crops):
    expected = [engine.infer(crops[n : n + 3]).logits for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, wanted in zip(pool.map(lambda n: engine.infer(crops[n : n + 3]), range(8)), expected, strict=True):
                np.testing.assert_array_equal(got.logits, wanted)


@pytest.mark.parametrize("shape", [(0, 3, 32, 32), (2, 3, 1, 1), (2, 32, 32, 3), (3, 32, 32)])
def test_other_shapes_are_refused(engine, shape):
    with pytest.raises(ValueError, match=r"Expected float32 of shape \(n, 3, 32, 32\)"):
        engine.infer_inputs(np.zeros(shape, np.float32))


def test_float16_keeps_closer_to_float32(crops):
    cells = torch.from_numpy(normalise(crops, SHAPE))
    apart = {}
    for name, dtype in DTYPES.items():
        with torch.inference_mode():
            expected = lived_in("resnet18")(cells)
            got, _ = HalfNetwork(lived_in("resnet18"), dtype, join_relu=False)(cells.to(dtype))
        apart[name] = float((got - expected).abs().max())
    assert apart["torch-f16-graphs"] < apart["torch-bf16-graphs"] / 3


@pytest.mark.parametrize("name", DTYPES)
def test_emulated_it_is_as_far_from_float32_as_kernels_of_half_precision(crops, name):
    """One last bit that falls otherwise is carried on, so the two err alike and not in the same places."""
    dtype = DTYPES[name]
    cells = torch.from_numpy(normalise(crops, SHAPE)).to(dtype)
    exact = lived_in("resnet18")
    exact.fc = torch.nn.Identity()
    with torch.inference_mode():
        native, emulated = (
            HalfNetwork(lived_in("resnet18"), dtype, join_relu=False, emulate=emulate)(cells)[1]
            for emulate in (False, True)
        )
        expected = exact(cells.float())
    apart = [float((found - expected).abs().mean()) for found in (native, emulated)]
    assert 0.7 < apart[1] / apart[0] < 1.4
    assert torch.equal(emulated, emulated.to(dtype).float())


def test_a_network_beyond_the_range_of_float16_shows_it(crops):
    network = lived_in("resnet18")
    with torch.no_grad():
        network.conv1.weight.mul_(1e6)
        network.bn1.running_var.fill_(1.0)
    engine = GraphEngine(network, SHAPE, "torch-f16-graphs", device="cpu", sizes=(4,))
    assert not np.isfinite(engine.infer(crops).logits).all()


def test_the_engine_of_graphs_is_for_a_gpu(monkeypatch, tmp_path):
    package = open_package(make_servable(tmp_path / "package"))
    with pytest.raises(UsageError, match="Expected an NVIDIA GPU for the engine torch-bf16-graphs"):
        open_engine(package, "torch-bf16-graphs")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("blastwatch.graph_engine.open_graph_engine", lambda package, name: (package.digest, name))
    assert open_engine(package, "torch-bf16-graphs") == (package.digest, "torch-bf16-graphs")
