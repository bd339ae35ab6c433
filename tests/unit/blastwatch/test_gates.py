"""The gates: each by the package that fails it alone, and all of them through the registry."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from blastwatch import DISCLAIMER
from blastwatch.engine_gates import engine_gates
from blastwatch.evidence_gates import (
    audit_gate,
    baseline_gate,
    calibration_gate,
    cameras_gate,
    card_gate,
    floor_gates,
    groups_gate,
    initial_weights_gate,
    reference_gates,
    split_gate,
)
from blastwatch.gate import MISSING, OFF, Gate, at_least, at_most, table_of
from blastwatch.manifest import SIDES
from blastwatch.package import DRIFT, METRICS, PREDICTIONS, REFERENCE, TRAINED, Package, Precision, open_package
from blastwatch.parity import parity_gate
from blastwatch.policy import load_policy
from tests.packages import make_package
from tests.policies import lenient
from tests.service_packages import make_servable

DEFAULT = load_policy(None)


@pytest.fixture
def package(tmp_path) -> Package:
    """Opened before a test spoils it: the gates of the evidence do not look at digests again."""
    return open_package(make_package(tmp_path / "package"))


def edit(package, name, **changed):
    """Change keys of a JSON file of the package; None takes one away."""
    path = package.folder / name
    document = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))


def told(gate):
    return f"{gate.value} {gate.note}"


def test_an_honest_package_passes_by_its_evidence(package):
    assert audit_gate(package).passed and split_gate(package).passed
    assert initial_weights_gate(package).passed
    gate = groups_gate(package)
    assert (gate.passed, gate.value, gate.limit) == (True, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("audit", {"findings": None}, "not in the evidence"),
        ("audit", {"groups": []}, "not in the evidence"),
        ("audit", {"data_digest": "x" * 64}, "audit.json is of data xxxxxxxxxxxx but the version of dddddddddddd"),
        ("data", {"digest": None}, "data.json is of data unknown"),
        ("audit", {"findings": [{"kind": "label"}]}, "1 pairs of equal images carry two labels"),
    ],
)
def test_audit(package, name, changed, said):
    edit(package, f"evidence/{name}.json", **changed)
    gate = audit_gate(package)
    assert not gate.passed and said in told(gate)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"leaky": True}, "by group"),
        ({"leaky": None}, "by group"),
        ({"crossing": 3}, "3 findings of the audit cross it"),
        ({"crossing": None}, "? findings"),
        ({"parted_groups": ["1"]}, "by group"),
        ({"digest": "x" * 64}, "xxxxxxxxxxxx but the version's ssssssssssss"),
        ({"digest": None}, "unknown"),
        ({"data_digest": "x" * 64}, "the split is of data xxxxxxxxxxxx"),
    ],
)
def test_split(package, changed, said):
    edit(package, "evidence/split.json", **changed)
    gate = split_gate(package)
    assert not gate.passed and said in told(gate)


def regroup(package, **sides):
    split = package.evidence("split")
    edit(package, "evidence/split.json", groups=split["groups"] | sides)


@pytest.mark.parametrize("side", ["train", "validation", "calibration"])
def test_a_test_patient_on_another_side(package, side):
    regroup(package, **{side: ["t0", "v", "c", "3"]})
    gate = groups_gate(package)
    assert not gate.passed and gate.value >= 1 and "3" in gate.note


def test_one_subject_in_groups_of_two_sides(package):
    """The groups have two names, the person is one."""
    audit = package.evidence("audit")
    groups = [group if group != ["t0"] else ["t0", "3"] for group in audit["groups"]]
    edit(package, "evidence/audit.json", groups=groups)
    gate = groups_gate(package)
    assert (gate.passed, gate.value) == (False, 1.0) and gate.note.endswith(": 3")


def test_stored_answers_of_a_patient_who_is_not_tested(package):
    rows = package.predictions()
    rows.loc[0, ["subject", "group"]] = "t0"
    rows.to_parquet(package.folder / PREDICTIONS)
    assert not groups_gate(package).passed


def test_a_drift_reference_of_a_patient_trained_on(package):
    package.reference().cells.assign(group="t0").to_parquet(package.folder / REFERENCE)
    gate = groups_gate(package)
    assert not gate.passed and "t0" in gate.note


@pytest.mark.parametrize(("group", "probability", "on", "passed"), [
    ("t0", np.nan, "calibration", True),  # measured alone
    ("t0", 0.5, "out-of-fold", True),  # answered by fits that had not seen it
    ("t0", 0.5, "calibration", False),
    ("0", np.nan, "calibration", False),  # a patient of the test
])  # fmt: skip
def test_patients_trained_on_in_the_drift_reference(package, group, probability, on, passed):
    rows = package.reference().cells.assign(group=group, probability=probability)
    rows.to_parquet(package.folder / TRAINED)
    edit(package, METRICS, calibration=package.metrics()["calibration"] | {"on": on})
    gate = groups_gate(package)
    assert gate.passed == passed and (group in gate.note) != passed


@pytest.mark.parametrize(
    ("start", "passed", "said"),
    [
        ({"source": "scratch"}, True, "scratch"),
        ({"source": "imagenet", "name": "resnet50-11ad3fa6.pth"}, True, "imagenet"),
        ({"source": "pretrained", "subjects": ["t0"]}, True, "pretrained on 1 subjects"),
        ({"source": "pretrained", "subjects": ["t0", "c", "3"]}, False, "not on the training side: 3, c"),
        ({"source": "pretrained", "subjects": []}, False, "pretrained on 0 subjects"),
        ({"source": "pretrained"}, False, "pretrained on 0 subjects"),
        ({"source": "unknown", "name": "w.pth"}, False, "w.pth, of which it is not known what it has seen"),
        ({"source": None}, False, "not in the evidence"),
        ({}, False, "not in the evidence"),
        (None, False, "not in the evidence"),
        ("scratch", False, "not in the evidence"),
    ],
)
def test_initial_weights(package, start, passed, said):
    edit(package, "evidence/data.json", initial_weights=start)
    gate = initial_weights_gate(package)
    assert gate.passed is passed and said in told(gate)


def test_initial_weights_of_which_patients_nobody_knows_the_side(package):
    edit(package, "evidence/data.json", initial_weights={"source": "pretrained", "subjects": ["t0"]})
    edit(package, "evidence/split.json", groups=None)
    assert "does not" in told(initial_weights_gate(package)) and not initial_weights_gate(package).passed


@pytest.mark.parametrize("groups", [
    None, {}, {"train": ["t0"]}, "all", dict.fromkeys(SIDES, 5), {side: [5] for side in SIDES}
])  # fmt: skip
def test_a_package_that_does_not_name_its_groups(package, groups):
    edit(package, "evidence/split.json", groups=groups)
    gate = groups_gate(package)
    assert not gate.passed and "Package the model again" in str(gate.value)


def test_a_group_that_the_audit_does_not_know(package):
    edit(package, "evidence/audit.json", groups=[["t0"]])
    assert "audit.json to name the subjects" in str(groups_gate(package).value)


def test_floors(package):
    sensitivity, specificity = floor_gates(package, DEFAULT)
    assert (sensitivity.name, sensitivity.passed, sensitivity.value, sensitivity.limit) == (
        "sensitivity", True, package.metrics()["patients"]["sensitivity_over_ill"]["value"], DEFAULT.floors.sensitivity
    )  # fmt: skip
    assert "95 % interval 0.850 to 0.950" in specificity.note
    near = {"value": 0.9999, "low": 0.9996, "high": 0.99998}
    edit(package, METRICS, patients={"sensitivity_over_ill": near, "specificity_over_healthy": near})
    assert "95 % interval 0.9996 to 0.99998" in floor_gates(package, DEFAULT)[0].note
    edit(package, METRICS, patients={"sensitivity_over_ill": {"value": 0.5}, "specificity_over_healthy": {}})
    low, missing = floor_gates(package, DEFAULT)
    assert (low.passed, low.value) == (False, 0.5)
    assert (missing.passed, missing.value) == (False, "not in the evidence")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.99", True, None])
def test_what_is_no_number_passes_no_floor(package, value):
    edit(package, METRICS, patients={"sensitivity_over_ill": {"value": value}})
    assert [gate.passed for gate in floor_gates(package, DEFAULT)] == [False, False]


def test_calibration(package):
    edit(package, METRICS, calibration={"ece_after": 0.05})
    assert calibration_gate(package, DEFAULT).value == 0.05
    edit(package, METRICS, calibration={"ece_after": 0.3})
    gate = calibration_gate(package, DEFAULT)
    assert (gate.passed, gate.value, gate.limit) == (False, 0.3, DEFAULT.calibration.largest_ece)


CAMERAS = {"rows": [
    {"name": "stain", "change": {"value": 0.02}}, {"name": "white_balance", "change": {"value": -0.31}},
]}  # fmt: skip


@pytest.mark.parametrize(("found", "value", "note"), [
    (CAMERAS, 0.31, "under white balance"),
    ({"rows": CAMERAS["rows"][:1]}, -0.02, "under stain"),  # none of them loses
    ({"rows": [*CAMERAS["rows"], {"name": "noise", "change": None}]}, MISSING, ""),  # the worst is not known
    ({"rows": []}, MISSING, ""), (None, MISSING, ""), ("none", MISSING, ""),
])  # fmt: skip
def test_the_worst_camera_is_judged_where_the_policy_says_so(package, tmp_path, found, value, note):
    edit(package, METRICS, cameras=found)
    gate = cameras_gate(package, DEFAULT)
    assert (gate.passed, gate.value, gate.limit, gate.note) == (True, value, OFF, note)
    strict = load_policy(lenient(tmp_path, cameras={"largest_loss": 0.3}))
    gate = cameras_gate(package, strict)
    assert (gate.passed, gate.value, gate.limit) == (isinstance(value, float) and value <= 0.3, value, 0.3)


def test_the_worst_camera_says_where_the_last_layer_was_kept_from_reading_it(package):
    edit(package, METRICS, cameras=CAMERAS)
    edit(package, "evidence/params.json", train={"nuisances": 0})
    assert cameras_gate(package, DEFAULT).note == "under white balance"
    edit(package, "evidence/params.json", train={"nuisances": 60})
    kept = "under white balance; the last layer was kept from reading these same simulations, so this is no test of an"
    assert cameras_gate(package, DEFAULT).note == f"{kept} unseen camera"
    others = [{"name": name, "simulated": False, "change": {"value": change}}
              for name, change in (("gamma of 0.7", -0.34), ("more contrast", -0.1))]  # fmt: skip
    edit(package, METRICS, cameras={"rows": [row | {"simulated": True} for row in CAMERAS["rows"]] + others})
    gate = cameras_gate(package, DEFAULT)
    assert gate.value == 0.34  # the worst of all
    assert gate.note == "under gamma of 0.7; the last layer was kept from reading all but gamma of 0.7, more contrast"


def compared(low, high, **changed):
    return {"baseline": "sizes", "metric": "auroc", "difference": 0.022, "low": low, "high": high} | changed


@pytest.mark.parametrize(("rows", "value", "said"), [
    ([compared(0.004, 0.2)], 0.004, "the network beats three size numbers: +0.022 (+0.004 to +0.200)"),
    ([compared(-0.106, 0.211)], -0.106, "cannot be told apart from three size numbers: +0.022 (-0.106 to +0.211)"),
    ([compared(0.0, 0.0)], 0.0, "cannot be told apart"),
    ([compared(-0.2, -0.01)], -0.2, "the network does not beat three size numbers"),
    ([compared(0.5, 0.6, metric="weighted_f1"), compared(0.3, 0.4, baseline="boosted"), compared(-0.1, 0.2)], -0.1,
     "cannot be told apart"),
    ([compared(0.5, 0.6, metric="weighted_f1")], MISSING, "evaluate and package anew"),
    ([compared(float("nan"), 0.1)], MISSING, "evaluate and package anew"), ([compared(None, None)], MISSING, "anew"),
    ([], MISSING, "anew"), (None, MISSING, "anew"), ("none", MISSING, "anew"), (["none"], MISSING, "anew"),
])  # fmt: skip
def test_what_the_network_is_worth_is_reported_and_judged_where_the_policy_says_so(
    package, tmp_path, rows, value, said
):
    edit(package, METRICS, comparisons=rows)
    gate = baseline_gate(package, DEFAULT)
    reported = 0.022 if isinstance(value, float) else value  # the difference, which no limit is held against
    assert (gate.passed, gate.value, gate.limit) == (True, reported, OFF) and said in gate.note
    gate = baseline_gate(package, load_policy(lenient(tmp_path, baseline={"least_difference": 0})))
    passes = isinstance(value, float) and value >= 0
    assert (gate.passed, gate.value, gate.limit) == (passes, value, 0.0) and said in gate.note


@pytest.mark.parametrize(("engine", "value", "passed"), [
    ("openvino-f32", 0.0, True), ("torch-f32", 0.0, True), ("openvino-int8", 0.03, False),
    ("openvino-bf16", 0.002, True), ("torch-bf16", "not in the evidence", False),
])  # fmt: skip
def test_parity(package, engine, value, passed):
    precision = {
        "openvino-int8": Precision(cells=500, flip_rate=0.03, largest_difference=0.2),
        "openvino-bf16": Precision(cells=500, flip_rate=0.002, largest_difference=0.02),
    }
    measured = Package(package.folder, dataclasses.replace(package.info, precision=precision), package.digest)
    gate = parity_gate(measured, DEFAULT, engine)
    assert (gate.value, gate.passed) == (value, passed) and engine in gate.note


@pytest.mark.parametrize(("cells", "groups", "passed"), [
    (400, 12, [True, True]), (200, 12, [False, True]), (400, 4, [True, False]),
])  # fmt: skip
def test_drift_reference(package, cells, groups, passed):
    rows = pd.DataFrame({"group": [str(number % groups) for number in range(cells)], "probability": 0.5})
    rows.to_parquet(package.folder / REFERENCE)
    edit(package, DRIFT, windows=[{"cells": 30}], cells=cells)
    found = reference_gates(package, DEFAULT)
    assert [(gate.value, gate.passed) for gate in found] == list(zip([cells, groups], passed, strict=True))
    edit(package, DRIFT, cells=cells + 1)
    assert [gate.value for gate in reference_gates(package, DEFAULT)] == ["not in the evidence"] * 2


def card(*headings, body="Text.", disclaimer=DISCLAIMER):
    return f"# Model card\n\n{disclaimer}\n\n" + "\n\n".join(f"## {heading}\n\n{body}" for heading in headings)


def test_card(package):
    headings = DEFAULT.card.headings
    assert card_gate(card(*headings), DEFAULT).passed
    for text, said in (
        (card(*headings[1:]), "missing: Intended use"),
        (card(*headings, body=" \n"), "missing: Intended use, Data"),
        (card(*headings, disclaimer="Safe."), "missing: the disclaimer"),
        ("", "missing: Intended use"),
    ):
        gate = card_gate(text, DEFAULT)
        assert not gate.passed and str(gate.value).startswith(said)


def test_the_card_that_training_writes_is_complete():
    from tests.unit.training import test_card as made
    from training.card import model_card

    assert card_gate(model_card(made.facts(), made.evidence(), made.DRIFT), DEFAULT).value == "complete"


def test_every_gate_that_is_off_says_so(package, tmp_path):
    policy = load_policy(lenient(tmp_path))
    found = [
        *floor_gates(package, policy), calibration_gate(package, policy), cameras_gate(package, policy),
        baseline_gate(package, policy), parity_gate(package, policy, "torch-bf16"),
        *engine_gates(package, policy, "openvino-f32", threads=1), *reference_gates(package, policy),
        card_gate("", policy),
    ]  # fmt: skip
    assert [(gate.passed, gate.limit) for gate in found] == [(True, OFF)] * 11
    assert {gate.verdict for gate in found} == {"off"}, "what was not judged was not passed"
    assert [line.split("  ")[0].strip() for line in table_of(found).splitlines()] == ["off"] * 11


def test_latency_and_golden_cells_are_measured_on_the_engine(tmp_path):
    servable = open_package(make_servable(tmp_path / "servable"))
    latency, golden = engine_gates(servable, DEFAULT, "openvino-f32", threads=1)
    assert latency.passed and 0 < latency.value < latency.limit == DEFAULT.engine.largest_latency_ms
    assert golden.passed and golden.value < golden.limit == 1e-3
    strict = load_policy(lenient(tmp_path, engine={"largest_latency_ms": 0.001}))
    latency, golden = engine_gates(servable, strict, "openvino-f32", threads=1)
    assert not latency.passed and golden.limit == OFF


def test_an_engine_that_gives_other_answers_or_none(tmp_path, package):
    servable = open_package(make_servable(tmp_path / "servable"))
    other = open_package(make_servable(tmp_path / "other", seed=1))
    (servable.folder / "network.onnx").write_bytes((other.folder / "network.onnx").read_bytes())
    latency, golden = engine_gates(servable, DEFAULT, "openvino-f32", threads=1)
    assert latency.passed and not golden.passed and "golden cell" in str(golden.value)
    latency, golden = engine_gates(package, DEFAULT, "openvino-f32", threads=1)
    assert not latency.passed and not golden.passed and "cannot be compiled" in str(golden.value)


@pytest.mark.parametrize(("passed", "overridden", "stands", "said"), [
    (True, False, True, "passed"), (False, False, False, "FAILED"), (False, True, True, "OVERRIDDEN"),
])  # fmt: skip
def test_a_gate_in_words(passed, overridden, stands, said):
    gate = Gate(
        name="latency", passed=passed, value=61.5, limit=250.0, note="of 25 cells", overridden=overridden, unit="ms",
        bound="at most",
    )  # fmt: skip
    assert gate.stands is stands and gate.verdict == said
    assert str(gate).split(maxsplit=1) == [said, "latency: 61.5 ms (limit: at most 250); of 25 cells"]


@pytest.mark.parametrize(("gate", "line"), [
    (at_least("reference-cells", 200.0, 300, unit="cells"), "FAILED  reference-cells: 200 cells (limit: at least 300)"),
    (at_most("calibration", 0.13081, 0.1, unit="ECE"), "FAILED  calibration: 0.1308 ECE (limit: at most 0.1)"),
    (at_most("latency", 1234.5, None, unit="ms"), "off  latency: 1234 ms (off by policy)"),
    (at_least("x", 1.0, 0.9, unit="of the blasts"), "passed  x: 1.000 of the blasts (limit: at least 0.9)"),
    (at_most("golden", 3.1e-7, 1e-3), "passed  golden: 3.1e-07 (limit: at most 0.001)"),
    (at_least("non-inferiority", -0.0312, -0.05), "passed  non-inferiority: -0.0312 (limit: at least -0.05)"),
    (at_least("x", None, 0.8, "why", unit="ECE"), "FAILED  x: not in the evidence (limit: at least 0.8); why"),
    (Gate(name="latency", passed=True, value="not measured", limit=OFF), "off  latency: not measured (off by policy)"),
    (Gate(name="card", passed=False, value="none", limit="a card"), "FAILED  card: none (limit: a card)"),
])  # fmt: skip
def test_a_gate_says_its_unit_and_which_way_its_limit_goes(gate, line):
    assert str(gate) == line


def test_every_figure_with_a_limit_says_which_way_it_goes(tmp_path):
    """Of a package that answers, under the defaults and every limit that these leave away."""
    strict = {"cameras": {"largest_loss": 0.3}, "baseline": {"least_difference": 0.0}}
    (tmp_path / "policy.yaml").write_text(json.dumps(strict))
    policy, servable = load_policy(tmp_path / "policy.yaml"), open_package(make_servable(tmp_path / "servable"))
    found = [
        groups_gate(servable), *floor_gates(servable, policy), calibration_gate(servable, policy),
        cameras_gate(servable, policy), baseline_gate(servable, policy), parity_gate(servable, policy, "openvino-bf16"),
        *engine_gates(servable, policy, "openvino-f32", threads=1), *reference_gates(servable, policy),
    ]  # fmt: skip
    assert all(gate.bound for gate in found if isinstance(gate.limit, float)) and len(found) == 11


# -- through the registry ----------------------------------------------------------------------------------------
