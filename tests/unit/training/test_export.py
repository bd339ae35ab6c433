"""The graphs of a package against torch, and its projection."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import blastwatch.network
from blastwatch.decision import Thresholds
from blastwatch.engines import open_engine
from blastwatch.errors import PackageError
from blastwatch.images import Preprocessing, normalise
from blastwatch.inference import in_batches
from blastwatch.network import build, save_weights
from blastwatch.openvino_engine import OpenVinoEngine
from blastwatch.package import ONNX, ONNX_INT8, WEIGHTS, ModelInfo, Package, Precision
from training import export
from training.projection import fit_projection

SIZE = 32


def facts(**changed) -> ModelInfo:
    known = {
        "architecture": "resnet18", "preprocessing": Preprocessing(size=SIZE), "temperature": 1.25,
        "thresholds": Thresholds(hem=0.2, all=0.8), "synthetic": False, "data_digest": "d" * 64,
        "split_digest": "e" * 64, "run_id": "run-1", "git_commit": "c0ffee", "lock_digest": "f" * 64,
        "created": "2026-11-24T04:00:00+00:00", "precision": {"openvino-int8": Precision(
            cells=500, flip_rate=0.012, largest_difference=0.2)},
    }  # fmt: skip
    return ModelInfo(**{**known, **changed})


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Package, np.ndarray]:
    """A folder with weights and both graphs, and the cells that int8 was calibrated on."""
    import torch

    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    network = build("resnet18").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as in a trained network; they become the biases of the graph
            torch.nn.init.uniform_(module.bias, 0.05, 0.15)
    save_weights(network, folder / WEIGHTS)
    cells = np.random.default_rng(1).integers(0, 256, (12, SIZE, SIZE, 3), np.uint8)
    export.export_onnx(network, SIZE, folder / ONNX)
    export.quantize(folder / ONNX, cells, facts().preprocessing, folder / ONNX_INT8)
    # Not sealed: the engines are tried before there is a whole package to seal.
    return Package(folder=folder, info=facts(), digest=""), cells


@pytest.mark.parametrize("count", [1, 2, 5])
def test_float32_graph_answers_as_torch_does_for_any_number_of_cells(exported, count):
    package, cells = exported
    graph = in_batches(open_engine(package, "openvino-f32").infer, cells[:count])
    torch_ = in_batches(open_engine(package, "torch-f32").infer, cells[:count])
    assert graph.logits.shape == (count, 2)
    assert graph.embeddings.shape == (count, 512)
    np.testing.assert_allclose(graph.logits, torch_.logits, atol=export.TOLERANCE)
    np.testing.assert_allclose(graph.embeddings, torch_.embeddings, atol=1e-2)


def test_int8_graph_is_quantized_and_agrees_roughly(exported):
    package, cells = exported
    expected = in_batches(open_engine(package, "openvino-f32").infer, cells)
    found = in_batches(open_engine(package, "openvino-int8").infer, cells)
    assert (package.folder / ONNX_INT8).stat().st_size < 0.5 * (package.folder / ONNX).stat().st_size
    assert not np.array_equal(found.logits, expected.logits)
    spread = np.ptp(expected.logits)
    assert np.abs(found.logits - expected.logits).max() < 0.5 * spread
    cosine = (found.embeddings * expected.embeddings).sum(axis=1) / (
        np.linalg.norm(found.embeddings, axis=1) * np.linalg.norm(expected.embeddings, axis=1)
    )
    assert cosine.min() > 0.95


def quantized(graph: Path) -> tuple[list, dict[str, np.ndarray]]:
    """The nodes of a graph and its initializers by name."""
    model = onnx.load(graph)
    return list(model.graph.node), {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}


def test_int8_graph_computes_its_first_and_last_layer_in_float32(exported):
    package, _ = exported
    nodes, values = quantized(package.folder / ONNX_INT8)
    (first,) = (node for node in nodes if export.INPUT in node.input)
    (last,) = (node for node in nodes if "logits" in node.output)
    assert (first.op_type, last.op_type) == ("Conv", "Gemm")
    assert last.input[0] == "embedding"
    assert values[first.input[1]].dtype == values[last.input[1]].dtype == np.float32
    between = [node for node in nodes if node.op_type == "Conv" and node is not first]
    assert len(between) == 19
    assert all(node.input[1] not in values for node in between)  # it comes out of a DequantizeLinear


def test_int8_graph_uses_all_eight_bits_of_every_weight(exported):
    package, _ = exported
    _, values = quantized(package.folder / ONNX_INT8)
    weights = [value for value in values.values() if value.dtype == np.int8 and value.ndim == 4]
    assert [np.abs(value.astype(int)).max() for value in weights] == [127] * 19


def test_int8_graph_keeps_the_biases_of_float32(exported):
    package, _ = exported
    ours, theirs = (quantized(package.folder / name) for name in (ONNX_INT8, ONNX))
    kept = {node.name: ours[1][node.input[2]] for node in ours[0] if node.op_type == "Conv"}
    assert len(kept) == 20
    for node in theirs[0]:
        if node.op_type == "Conv":
            np.testing.assert_array_equal(kept[node.name], theirs[1][node.input[2]])


def test_logits_are_fitted_as_by_least_squares():
    random = np.random.default_rng(4)
    found = random.normal(size=(40, 2))
    expected = 0.9 * found + [0.3, -0.1] + 0.01 * random.normal(size=(40, 2))
    # One unknown scale and one shift for each class: the design matrix of both columns below each other.
    design = np.column_stack([found.T.ravel(), np.repeat(np.eye(2), 40, axis=0)])
    scale, first, second = np.linalg.lstsq(design, expected.T.ravel(), rcond=None)[0]
    fitted, shift = export.fit_logits(found, expected)
    np.testing.assert_array_equal(export.fit_logits(expected, expected)[0], 1)
    np.testing.assert_array_equal(export.fit_logits(expected, expected)[1], 0)
    np.testing.assert_allclose([fitted, *shift], [scale, first, second])


def test_logits_that_are_all_the_same_are_only_shifted():
    scale, shift = export.fit_logits(np.full((3, 2), 0.5), np.full((3, 2), 0.75))
    assert scale == 1
    np.testing.assert_allclose(shift, [0.25, 0.25])


def test_quantizing_holds_one_cell_at_a_time_as_float32(exported, tmp_path, monkeypatch):
    package, cells = exported
    held = []

    def counted(crops, preprocessing):
        held.append(len(crops))
        return normalise(crops, preprocessing)

    monkeypatch.setattr(export, "normalise", counted)
    export.quantize(package.folder / ONNX, cells[:2], package.info.preprocessing, tmp_path / "int8.onnx")
    assert len(held) >= 2 and set(held) == {1}


def test_a_graph_is_exported_without_what_gradients_need(tmp_path, monkeypatch):
    forward, told = blastwatch.network.forward_with_embedding, []

    def watched(network, cells):
        found = forward(network, cells)
        told.extend(each.grad_fn for each in found)
        return found

    monkeypatch.setattr(blastwatch.network, "forward_with_embedding", watched)
    export.export_onnx(build("resnet18").eval(), SIZE, tmp_path / ONNX)
    assert told and not any(told)


def test_quantizing_leaves_standard_output_to_the_command(exported, tmp_path, capfd):
    package, cells = exported
    export.quantize(package.folder / ONNX, cells[:2], package.info.preprocessing, tmp_path / "int8.onnx")
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    ("architecture", "networks"),
    [("efficientnet_lite0", 1), ("efficientnet_lite0_lite2_stages", 2), ("efficientnet_lite0_early", 1)],
)
def test_a_padding_that_differs_from_side_to_side_is_exported_and_quantized(tmp_path, architecture, networks):
    """EfficientNet-Lite has it before its first layer; a warning would be an error here."""
    import torch

    torch.manual_seed(0)
    network = build(architecture).eval()
    cells = np.random.default_rng(1).integers(0, 256, (4, 64, 64, 3), np.uint8)
    preprocessing = Preprocessing(crop=64, size=64)
    assert export.export_onnx(network, 64, tmp_path / ONNX) <= export.TOLERANCE
    export.quantize(tmp_path / ONNX, cells, preprocessing, tmp_path / ONNX_INT8)
    graph = OpenVinoEngine(tmp_path / ONNX, preprocessing, "openvino-f32", threads=1)
    with torch.inference_mode():
        expected = network(torch.from_numpy(normalise(cells, preprocessing))).numpy()
    np.testing.assert_allclose(graph.infer(cells).logits, expected, atol=export.TOLERANCE)
    nodes, values = quantized(tmp_path / ONNX_INT8)
    padded = {node.output[0] for node in nodes if node.op_type == "Pad" and export.INPUT in node.input}
    stems = [values[node.input[1]].dtype for node in nodes if node.op_type == "Conv" and node.input[0] in padded]
    assert stems == [np.float32] * networks


def test_graph_that_differs_from_torch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(PackageError, match="differs from torch"):
        export.export_onnx(build("resnet18").eval(), SIZE, tmp_path / ONNX)


def test_a_network_that_answers_no_numbers_is_refused(tmp_path):
    network = build("resnet18").eval()
    network.fc.bias.data.fill_(float("nan"))
    with pytest.raises(PackageError, match="differs from torch by nan"):
        export.export_onnx(network, SIZE, tmp_path / ONNX)


def test_projection_is_the_principal_axes_with_settled_signs():
    random = np.random.default_rng(2)
    embeddings = (random.normal(size=(200, 48)) * np.linspace(5, 0.1, 48) + 3).astype(np.float32)
    projection = fit_projection(embeddings)
    assert projection.components.shape == (32, 48)
    assert projection.components.dtype == np.float32
    np.testing.assert_allclose(projection.components @ projection.components.T, np.eye(32), atol=1e-4)
    spread = projection(embeddings).std(axis=0)
    assert (np.diff(spread) < 1e-4).all()
    largest = np.abs(projection.components).argmax(axis=1)
    assert (projection.components[np.arange(32), largest] > 0).all()
    np.testing.assert_array_equal(fit_projection(embeddings).components, projection.components)
    from sklearn.decomposition import PCA

    expected = PCA(32, svd_solver="full").fit(embeddings).components_
    cosines = np.abs((expected * projection.components).sum(axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-3)


def test_projection_of_few_cells_is_filled_up_with_zeros():
    embeddings = np.random.default_rng(3).normal(size=(10, 48)).astype(np.float32)
    components = fit_projection(embeddings).components
    assert components.shape == (32, 48)
    assert components[:9].any(axis=1).all()
    assert not components[10:].any()
