"""What stays in float32 of a graph for bf16: how much it is, and that OpenVINO leaves just that alone."""

import resource
import tempfile

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from blastwatch.absent import REPORTS_USE, leave_out
from blastwatch.engines import open_engine
from blastwatch.errors import PackageError
from blastwatch.mixed_precision import FLOAT32_SHARE, begin_in_float32, beginning, multiplications
from blastwatch.network import build
from blastwatch.package import open_package
from tests.service_packages import export, make_servable

SIDE = 64
UNWRITTEN = r"openvino-bf16 .* folder of temporary files, .* TMPDIR"
MARK = "DisablePrecisionConversion_0"  # what OpenVINO makes of `precise` in a file


@pytest.fixture(scope="module")
def core():
    leave_out(REPORTS_USE)
    import openvino

    return openvino.Core()


@pytest.fixture(scope="module")
def resnet50(core, tmp_path_factory):
    return exported(core, "resnet50", tmp_path_factory.mktemp("graph"))


def exported(core, architecture, folder):
    graph = folder / "network.onnx"
    graph.write_bytes(export(build(architecture).eval(), SIDE))
    return core.read_model(graph)


@pytest.mark.parametrize(
    "architecture", ["resnet50", "efficientnet_lite0_lite2_stages", "efficientnet_lite0_lite2_early", "convnext_tiny"]
)
def test_multiplications_are_counted_as_torch_counts_them(core, architecture, tmp_path):
    """Plain convolutions, convolutions in groups, and linear layers over a map with the channels last."""
    network = build(architecture).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(torch.zeros(1, 3, SIDE, SIDE))
    counted = sum(multiplications(node) for node in exported(core, architecture, tmp_path).get_ordered_ops())
    assert 2 * counted == counter.get_total_flops()  # torch counts the addition too


def test_of_a_resnet50_the_stem_and_the_first_stage_stay(resnet50):
    names = [node.get_friendly_name() for node in beginning(resnet50)]
    blocks = {name.split("/")[2] for name in names if name.startswith("/network/")}
    assert blocks == {"conv1", "relu", "maxpool", "layer1"}
    kept = sum(multiplications(node) for node in beginning(resnet50))
    every = sum(multiplications(node) for node in resnet50.get_ordered_ops())
    assert 0.19 < kept / every <= FLOAT32_SHARE


def test_networks_beside_each_other_begin_alike_in_float32(core, tmp_path):
    model = exported(core, "efficientnet_lite0_lite2_stages", tmp_path)
    kept = [node.get_friendly_name() for node in beginning(model) if multiplications(node)]
    one, other = ([name for name in kept if name.startswith(f"/network/{part}.")] for part in ("features", "beside"))
    assert len(one) + len(other) == len(kept) and len(other) <= len(one) <= len(other) + 9
    every = [node for node in model.get_ordered_ops() if multiplications(node)]
    assert sum(map(multiplications, beginning(model))) <= FLOAT32_SHARE * sum(map(multiplications, every))


def test_whatever_the_beginning_reads_is_in_it(core, tmp_path):
    nodes = beginning(exported(core, "densenet121", tmp_path))
    kept = {node.get_friendly_name() for node in nodes}
    read = [value.get_node() for node in nodes for value in node.input_values()]
    assert {node.get_friendly_name() for node in read if node.get_type_name() != "Constant"} <= kept


def test_the_beginning_alone_is_marked_and_nothing_else_changes(core, resnet50):
    marked = begin_in_float32(core, resnet50)
    kept = {node.get_friendly_name() for node in beginning(resnet50)}
    before, after = (
        {node.get_friendly_name(): node.get_type_name() for node in model.get_ordered_ops()}
        for model in (resnet50, marked)
    )
    assert after == before
    assert {node.get_friendly_name() for node in marked.get_ordered_ops() if MARK in node.get_rt_info()} == kept


def test_openvino_computes_the_beginning_in_float32_and_the_rest_in_bf16(core, resnet50):
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("needs a processor that computes in bf16")
    compiled = core.compile_model(begin_in_float32(core, resnet50), "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    precisions = []
    for node in compiled.get_runtime_model().get_ordered_ops():
        facts = node.get_rt_info()
        if facts["layerType"].astype(str) == "Convolution":
            precisions.append(facts["runtimePrecision"].astype(str))
    stays = sum(node.get_type_name() == "Convolution" for node in beginning(resnet50))
    assert precisions == ["f32"] * stays + ["bf16"] * (len(precisions) - stays)
    assert (stays, len(precisions)) == (11, 53)


def test_without_a_place_for_the_graph_the_error_says_so(tmp_path, monkeypatch):
    package = open_package(make_servable(tmp_path / "package"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(PackageError, match=UNWRITTEN):
        open_engine(package, "openvino-bf16")


def test_without_room_for_the_graph_the_error_says_so(tmp_path):
    package = open_package(make_servable(tmp_path / "package"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(PackageError, match=UNWRITTEN):
            open_engine(package, "openvino-bf16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
