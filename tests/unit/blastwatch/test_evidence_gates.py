"""What the evidence is worth: a drift reference by its thresholds, the comparison with size numbers by its patients,
and a test by the pixels that were learned from."""

import dataclasses
import json

import pandas as pd
import pytest

from blastwatch.evidence_gates import (
    audit_gate,
    baseline_gate,
    calibration_gate,
    cameras_gate,
    floor_gates,
    groups_gate,
    initial_weights_gate,
    reference_gates,
)
from blastwatch.gate import MISSING, at_least, at_most
from blastwatch.package import DRIFT, METRICS, REFERENCE, open_package
from blastwatch.policy import Baseline, load_policy
from blastwatch.seen import SEEN_SIDES, write_seen
from blastwatch.stored_answers import answers_gate
from tests.packages import make_package

CELLS, GROUPS = 400, 12  # more than the policy asks for


@pytest.fixture
def package(tmp_path):
    made = open_package(make_package(tmp_path / "package"))
    rows = pd.DataFrame({"group": [str(number % GROUPS) for number in range(CELLS)], "probability": 0.5})
    rows.to_parquet(made.folder / REFERENCE)
    return made


@pytest.mark.parametrize("side", SEEN_SIDES)
def test_a_tested_image_that_was_learned_from_under_another_name(tmp_path, side):
    package = open_package(make_package(tmp_path / "package"))
    assert groups_gate(package).passed
    one = package.predictions().loc[5]
    write_seen(package.folder, pd.DataFrame({"side": [side], "pixel_sha256": [one["pixel_sha256"]]}))
    gate = groups_gate(package)
    assert (gate.passed, gate.value) == (False, 1.0)
    assert gate.note.endswith(f": {one['group']}; 1 tested images are among those that it learned from")


def asked(package, drift):
    (package.folder / DRIFT).write_text(json.dumps({"cells": CELLS} | drift))
    return [(gate.value, gate.passed, gate.note) for gate in reference_gates(package, load_policy(None))]


@pytest.mark.parametrize("drift", [{}, {"windows": []}, {"windows": None}], ids=["no word", "no window", "nothing"])
def test_a_reference_without_thresholds_is_none(package, drift):
    assert asked(package, drift) == [(MISSING, False, "drift.json has no thresholds for this reference")] * 2
    assert asked(package, {"windows": [{"cells": 30}]}) == [(CELLS, True, ""), (GROUPS, True, "")]


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_that_no_score_lies_above_is_none(package, threshold):
    found = asked(package, {"windows": [{"cells": 30, "threshold": threshold}]})
    assert [(value, passed) for value, passed, _ in found] == [(MISSING, False)] * 2
    assert "expected finite numbers" in found[0][2]


@pytest.mark.parametrize(
    ("test", "said"),
    [
        ({"all": {"groups": 4}, "hem": {"groups": 9}}, "; of 4 all and 9 hem test patients, which is no evidence"),
        ({"all": {"groups": 5}, "hem": {"groups": 5}}, "; of 5 all and 5 hem test patients"),
        ({}, ""),
        (None, ""),
    ],
)
def test_of_few_test_patients_the_comparison_with_size_numbers_says_that_it_shows_nothing(package, test, said):
    """Whatever the interval is: of so few it may leave out zero by chance."""
    row = {"baseline": "sizes", "metric": "auroc", "difference": 0.2, "low": 0.1, "high": 0.3}
    (package.folder / METRICS).write_text(json.dumps({"comparisons": [row]}))
    split = package.folder / "evidence" / "split.json"
    split.write_text(json.dumps(json.loads(split.read_text()) | {"sides": {"test": test}}))
    policy = load_policy(None)
    off, judged = (
        baseline_gate(package, policy),
        baseline_gate(package, dataclasses.replace(policy, baseline=Baseline(least_difference=0))),
    )
    assert off.told.startswith("baseline: 0.2 of AUROC against three size numbers (off by policy); the network beats")
    assert judged.value == 0.1 and judged.note == f"lower end of the 95 % interval; {off.note}"
    note, told = off.note, "the network beats three size numbers: +0.200 (+0.100 to +0.300)"
    assert note.startswith(told) and note.removeprefix(told).startswith(said)
    assert ("no evidence either way: 5 of each are needed" in note) is said.endswith("no evidence")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None])
def test_what_is_no_finite_number_passes_no_limit_and_can_be_reported(value):
    for gate in (at_least("x", value, -9.0), at_most("x", value, 9.0)):
        assert (gate.passed, gate.value) == (False, MISSING)
        assert json.dumps(dataclasses.asdict(gate), allow_nan=False)
    assert at_most("x", value, None).passed


@pytest.mark.parametrize("odd", [5, "text", True, [1], [None], {"a": 1}, [{"a": [1]}], 10**400], ids=str)
def test_what_has_another_shape_within_the_evidence_passes_no_gate(package, odd):
    """Nor does it end one with an error that is not ours."""
    policy = load_policy(None)
    places = {
        "audit": ["findings", "groups"], "split": ["groups", "sides"], "data": ["initial_weights"],
        "metrics": ["patients", "calibration", "comparisons"],
    }  # fmt: skip
    for name, keys in places.items():
        path = package.folder / "evidence" / f"{name}.json"
        path.write_text(
            json.dumps(json.loads(path.read_text()) | dict.fromkeys(keys, odd) | {"cameras": {"rows": odd}})
        )
    judged = [
        audit_gate(package), groups_gate(package), answers_gate(package), initial_weights_gate(package),
        *floor_gates(package, policy), calibration_gate(package, policy),
    ]  # fmt: skip
    assert [gate.name for gate in judged if gate.passed] == []
    assert {cameras_gate(package, policy).value, baseline_gate(package, policy).value} == {MISSING}


@pytest.mark.parametrize("groups", [None, 5, [5], [[]], [[5]], [{"a": 1}]], ids=str)
def test_groups_of_the_audit_that_are_no_lists_of_names(package, groups):
    path = package.folder / "evidence/audit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"groups": groups}))
    assert "Expected evidence/audit.json to list groups" in str(groups_gate(package).value)


def test_a_figure_that_no_float_holds_is_none(package):
    path = package.folder / METRICS
    path.write_text(json.dumps({"patients": {"sensitivity_over_ill": {"value": 10**400, "low": 10**400}}}))
    assert floor_gates(package, load_policy(None))[0].value == MISSING
