"""The graphs of a package against torch, its projection, and what its card says."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from blastwatch import DISCLAIMER
from blastwatch.decision import Thresholds
from blastwatch.engines import open_engine
from blastwatch.errors import PackageError
from blastwatch.images import Preprocessing, normalise
from blastwatch.inference import in_batches
from blastwatch.manifest import SIDES
from blastwatch.network import build, save_weights
from blastwatch.openvino_engine import OpenVinoEngine
from blastwatch.package import ONNX, ONNX_INT8, WEIGHTS, ModelInfo, Package, Precision
from training import export
from training.card import model_card
from training.checklists import CLAIM, TRIPOD, UNKNOWN
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


def evidence(*, auroc: float = 0.9, leaky: bool = False, patients: int = 5) -> dict:
    figure = {"value": 0.7, "low": 0.6, "high": 0.8}
    covered = {
        "calibration_patients": 4, "aimed_error": 0.2, "guaranteed_error": 0.4, "coverage_by_patient": figure,
        "inside": True, "expected": {"low": 0.5, "high": 1.0},
    }  # fmt: skip
    sides = {side: {label: {"cells": 40, "groups": patients} for label in ("all", "hem")} for side in SIDES}
    return {
        "metrics": {
            "cells": {"auroc": {"value": auroc, "low": 0.5, "high": 0.99}, "referred": figure},
            "patients": {"worst_quarter_accuracy": figure},
            "size_baseline": {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9}},
            "leaky": leaky,
            "counts": {"cells": 80, "groups": 8},
            "calibration": {"on": "calibration", "ece_before": 0.1, "ece_after": 0.05, "temperature": 1.25},
            "operating": {"threshold": 0.4, "cells": {"sensitivity": figure}},
            "size_matched": {"network": figure},
            "cameras": {
                "cells": 40,
                "patients": 8,
                "strength": 1.0,
                "plain": {"mean_accuracy": figure, "auroc": figure},
                "rows": [
                    {
                        "name": "white_balance",
                        "figures": {"mean_accuracy": figure},
                        "change": {"value": -0.6, "low": -0.7, "high": -0.5},
                    },
                    {"name": "noise", "figures": {}, "change": None},
                ],
            },
            "comparisons": [
                {"baseline": "sizes", "metric": "auroc", "difference": 0.1, "low": -0.02, "high": 0.2, "p_holm": 0.07}
            ],
            "conformal": {"error": 0.1, "classes": {"hem": covered, "all": covered | {"inside": False}}},
        },
        "split": {
            "by": "group", "leaky": leaky, "parted_groups": ["1"], "crossing": 3, "sides": sides, "groups": {
                "train": ["1", "2", "3"], "validation": ["4", "5", "6"], "calibration": ["7", "8", "9", "10"],
                "test": ["11"]},
        },
        "audit": {"findings": [{"kind": "near"}, {"kind": "exact"}, {"kind": "near"}], "groups": [["1", "2"], ["3"]]},
        "data": {"images": 320, "subjects": 33, "sources": {"fold 1": 120, "fold 0": 200}},
        "params": {
            "train": {"balance": "subject", "weights": "scratch"}, "evaluate": {"resamples": 700},
            "package": {"ood_rate": 0.02},
        },
    }  # fmt: skip


DRIFT = {"cells": 160, "groups": 16, "answered_groups": 8, "false_alarm_rate": 0.01, "enough_groups": True}


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({"source": "scratch"}, "trained from scratch"),
        (
            {"source": "imagenet", "name": "a.pth", "digest": "5793" * 16},
            r"ImageNet, `a\.pth` \(SHA-256 `579357935793`\)",
        ),
        (
            {"source": "pretrained", "name": "w.safetensors", "digest": "0" * 64, "subjects": ["1", "2"]},
            "cells of 2 subjects",
        ),
        ({"source": "unknown", "name": "w.pth", "digest": "0" * 64}, "What these have seen is not known"),
    ],
)
def test_card_says_what_the_weights_had_seen_before(start, said):
    known = evidence()
    known["data"]["initial_weights"] = start
    assert re.search(said, model_card(facts(), known, DRIFT))


def test_card_warns_of_drawn_cells_before_any_figure():
    card = model_card(facts(synthetic=True), evidence(), DRIFT)
    assert DISCLAIMER in card
    assert "**Synthetic.**" in card
    assert card.index("**Synthetic.**") < card.index("## Results")
    assert "**Synthetic.**" not in model_card(facts(), evidence(), DRIFT)


def test_card_says_what_another_camera_does():
    card = model_card(facts(), evidence(), DRIFT)
    assert "40 of the test cells, evenly of 8 patients" in card
    assert "| as they are | 0.700 |  | 0.700 |" in card
    assert "| white balance | 0.700 | -0.600 (-0.700 to -0.500) | unknown |" in card
    assert "| noise | unknown | unknown | unknown |" in card
    known = evidence()
    for metrics in (
        {**known["metrics"], "cameras": None},
        {k: v for k, v in known["metrics"].items() if k != "cameras"},
    ):
        assert "It was not measured" in model_card(facts(), known | {"metrics": metrics}, DRIFT)


def test_card_says_which_cameras_the_last_layer_was_kept_from_reading():
    known = evidence()
    kept = "kept from reading these same simulations (strengths 0.5 and 1)"
    assert "kept from reading" not in model_card(facts(), known, DRIFT)
    known["params"]["train"] |= {"fit": "logistic", "nuisances": 60}
    assert f"{kept}, so this is no test of an unseen camera." in model_card(facts(), known, DRIFT)
    known["metrics"]["cameras"]["rows"] += [
        {"name": "stain", "simulated": True, "figures": {}, "change": None},
        {"name": "more contrast", "simulated": False, "figures": {}, "change": None},
    ]
    card = model_card(facts(), known, DRIFT)
    assert f"{kept}, but for those that were not simulated in training (more contrast): these alone are a" in card
    assert "no test of an unseen camera" not in card


@pytest.mark.parametrize(("on", "said"), [
    ("calibration", "from those of 7 validation and calibration patients than all but a share of 0.125 of a new"),
    ("out-of-fold", "from those of 10 validation, calibration and (on axes fitted to the others) training patients "
     "than all but a share of 0.091 of a new"),
])  # fmt: skip
def test_card_states_the_rate_of_strangers_that_its_patients_can_give(on, said):
    """Seven patients can show a share of 1 / 8, whatever was asked for; enough of them what was asked for."""
    known = evidence()
    known["metrics"]["calibration"]["on"] = on
    assert said in model_card(facts(), known, DRIFT)
    known["split"]["groups"]["calibration"] = [str(number) for number in range(200)]  # of which 4 to 6 validate too
    assert "a share of 0.020 of a new patient's cells" in model_card(facts(), known, DRIFT)
    assert f"{200} validation" in model_card(facts(), known, DRIFT)


def test_card_does_not_call_patients_unseen_where_the_initial_weights_may_have_seen_them():
    known = evidence()
    known["data"]["initial_weights"] = {"source": "unknown", "name": "w.pth", "digest": "0" * 64}
    card = model_card(facts(), known, DRIFT)
    assert "nothing before had read" not in card
    assert "of 8 patients, of whom it is not known whether the initial weights had seen them." in card
    assert card.index("**Initial weights of unknown origin.**") < card.index("## Intended use")
    leaky = evidence(leaky=True)
    leaky["data"] = known["data"]
    assert "some of whom were trained on" in model_card(facts(), leaky, DRIFT)
    known["data"]["initial_weights"]["source"] = "imagenet"
    card = model_card(facts(), known, DRIFT)
    assert "nothing before had read" in card and "unknown origin" not in card


def test_card_says_where_too_few_patients_were_answered_for_the_thresholds():
    said = "Too few were answered to rely on that rate"
    assert said in model_card(facts(), evidence(), DRIFT | {"enough_groups": False})
    assert said not in model_card(facts(), evidence(), DRIFT)


def test_card_warns_of_a_split_that_leaks():
    assert "**Leaks.**" in model_card(facts(), evidence(leaky=True), DRIFT)


@pytest.mark.parametrize(("patients", "warned"), [(1, True), (4, True), (5, False)])
def test_card_warns_where_too_few_patients_were_tested_for_an_interval(patients, warned):
    card = model_card(facts(), evidence(patients=patients), DRIFT)
    assert ("**Too few test patients**" in card) is warned


SIZE_NUMBERS = "a logistic regression on three size numbers (AUROC"


@pytest.mark.parametrize(("low", "high", "said"), [
    (0.01, 0.2, f" The network beats {SIZE_NUMBERS} +0.100 (+0.010 to +0.200), 95 % interval by patient)."),
    (-0.02, 0.2, f"**The network cannot be told apart from {SIZE_NUMBERS} +0.100 (-0.020 to +0.200), 95 % interval by "
     "patient): nothing shows that it sees more than they do.**"),
    (-0.2, -0.01, f"**The network does not beat {SIZE_NUMBERS} +0.100 (-0.200 to -0.010), 95 % interval by patient): "
     "do not use it.**"),
])  # fmt: skip
def test_card_says_plainly_whether_size_alone_does_as_well(low, high, said):
    """Of 0.9 and 0.8 alone nobody can tell: the interval of their difference says it."""
    known = evidence(auroc=0.9)
    [row] = known["metrics"]["comparisons"]
    row |= {"low": low, "high": high}
    card = model_card(facts(), known, DRIFT)
    assert said in card and card.count("three size numbers (AUROC") == 1
    few = evidence(patients=4, auroc=0.9)
    few["metrics"]["comparisons"][0] |= {"low": low, "high": high}
    assert ("so few test patients that is no evidence.**" in model_card(facts(), few, DRIFT)) is (low > 0)
    del known["metrics"]["comparisons"][0]
    assert "beats a logistic regression on three size numbers is not known.**" in model_card(facts(), known, DRIFT)


@pytest.mark.parametrize(
    "said",
    [
        "| auroc | 0.900 | 0.500 to 0.990 |", "| patients: worst quarter accuracy | 0.700 |", "| referred | 0.700 |",
        "| openvino-int8 | 500 | 1.20% | unknown | 0.200 | unknown |",
        "| test | 40 | 5 | 40 | 5 |", "from fold 0 (200), fold 1 (120)",
        "160 cells of 16 patients, and answers to 8 of them",
        "at the chosen threshold 0.400: sensitivity | 0.700", "cell area | 0.700",
        "| sizes: auroc | +0.100 | -0.020 to +0.200 | 0.0700 |", "as it does not",
        "| `hem` | 4 | 0.800 | 0.600 | 0.700 (0.600 to 0.800) | 0.500 to 1.000, as it does |",
        "700 draws of whole patients", "what weighs the same in training is the subject", "weights scratch",
        "3 pairs of images (1 exact, 2 near) that show one cell, and joined subjects into patients (1 of several",
        "An unknown number of images were refused", "no patient on two sides",
        "Run `run-1`, code `c0ffee`", "`ffffffffffff`", "Temperature 1.250", "0.800 upwards, `hem` up to 0.200",
    ],
)  # fmt: skip
def test_card_states(said):
    assert said in model_card(facts(), evidence(), DRIFT)


def test_the_card_says_that_more_coverage_than_expected_is_no_fault():
    known = evidence()
    covered = known["metrics"]["conformal"]["classes"]["hem"]
    covered["expected"] = {"low": 0.5, "high": 0.65}  # 0.700 was found
    assert "0.700 (0.600 to 0.800) | 0.500 or more, as it does |" in model_card(facts(), known, DRIFT)
    assert "more coverage than that is no fault" in model_card(facts(), known, DRIFT)


@pytest.mark.parametrize(("temperature", "said"), [(0.05, "too sure, many of them 0 or 1.**"), (20.0, "one half.**")])
def test_the_card_says_where_no_patient_bounds_the_temperature(temperature, said):
    border = "**The calibration patients do not bound the temperature"
    assert border not in model_card(facts(), evidence(), DRIFT)
    card = model_card(facts(temperature=temperature), evidence(), DRIFT)
    assert card.count(border) == 1 and said in card


def test_the_card_says_what_is_an_ensemble():
    assert "No ensemble." in model_card(facts(), evidence(), DRIFT)
    known = evidence()
    known["params"]["train"] = {"architecture": "resnet50", "fit": "gradient", "average": 0.99}
    assert "No ensemble of networks; the weights are a moving average" in model_card(facts(), known, DRIFT)
    known["params"]["train"]["fit"] = "logistic"  # which averages nothing
    assert "No ensemble." in model_card(facts(), known, DRIFT)
    known["params"]["train"] |= {"architecture": "efficientnet_lite0_lite2_stages", "fusion": "scores"}
    card = model_card(facts(), known, DRIFT)
    assert "An ensemble of efficientnet_lite0 and efficientnet_lite2 in one graph" in card and "No ensemble" not in card


def test_the_card_names_the_knobs_that_a_training_read_alone():
    known = evidence()
    known["params"]["train"] = {"fit": "gradient", "epochs": 30, "nuisances": 60}
    assert "of the training: epochs 30, fit gradient, nuisances 60." in model_card(facts(), known, DRIFT)
    known["params"]["train"]["fit"] = "logistic"  # which has no epochs
    assert "of the training: fit logistic, nuisances 60." in model_card(facts(), known, DRIFT)


@pytest.mark.parametrize(("items", "count"), [(TRIPOD, 27), (CLAIM, 44)])
def test_every_item_of_the_guidelines_is_in_the_card_and_points_at_what_is_there(items, count):
    numbers = [item.number for item in items]
    assert len(set(numbers)) == len(numbers)
    assert {int(number.rstrip("abcdefg")) for number in numbers} == set(range(1, count + 1))
    card = model_card(facts(), evidence(), DRIFT)
    headings = {line.removeprefix("## ") for line in card.splitlines() if line.startswith("## ")}
    elsewhere = {"report.html", "title of this card", "evidence/params.json", "this package"}
    for item in items:
        assert f"| {item.number} | {item.asks} | {item.answer or UNKNOWN} |" in card
        for part in filter(None, item.answer.split("; ")):
            place = part.split(":")[0].split(",")[0]
            known = place in headings or place in elsewhere or UNKNOWN in part or "this package" in part
            assert known, part


def test_what_only_the_laboratory_knows_is_said_to_be_unknown():
    card = model_card(facts(), evidence(), DRIFT)
    for number, asks in (("17", "ethical approval and consent"), ("18a", "funding"), ("13", "image acquisition")):
        assert f"| {number} | {asks} | not known to the software: to be filled by the laboratory |" in card


def test_card_of_a_leaky_split_does_not_say_that_patients_are_apart():
    assert "patients that are kept apart" in model_card(facts(), evidence(), DRIFT)
    leaky = model_card(facts(), evidence(leaky=True), DRIFT)
    assert "sides that share patients" in leaky
    assert "some of whom were trained on" in leaky and "nothing before had read" not in leaky
