"""What the evidence is worth: a drift reference by its thresholds, the comparison with size numbers by its patients."""

import dataclasses
import json

import pandas as pd
import pytest

from blastwatch.evidence_gates import baseline_gate, reference_gates
from blastwatch.gate import MISSING, at_least, at_most
from blastwatch.package import DRIFT, METRICS, REFERENCE, open_package
from blastwatch.policy import load_policy
from tests.packages import make_package

CELLS, GROUPS = 400, 12  # more than the policy asks for


@pytest.fixture
def package(tmp_path):
    made = open_package(make_package(tmp_path / "package"))
    rows = pd.DataFrame({"group": [str(number % GROUPS) for number in range(CELLS)], "probability": 0.5})
    rows.to_parquet(made.folder / REFERENCE)
    return made


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
    note = baseline_gate(package, load_policy(None)).note
    told = "lower end of the 95 % interval; the network beats three size numbers: +0.200 (+0.100 to +0.300)"
    assert note.startswith(told) and note.removeprefix(told).startswith(said)
    assert ("no evidence either way: 5 of each are needed" in note) is said.endswith("no evidence")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None])
def test_what_is_no_finite_number_passes_no_limit_and_can_be_reported(value):
    for gate in (at_least("x", value, -9.0), at_most("x", value, 9.0)):
        assert (gate.passed, gate.value) == (False, MISSING)
        assert json.dumps(dataclasses.asdict(gate), allow_nan=False)
    assert at_most("x", value, None).passed
