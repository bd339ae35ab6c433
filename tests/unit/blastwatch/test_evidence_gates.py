"""A drift reference is worth what its thresholds are: without any, no number of its cells passes."""

import json

import pandas as pd
import pytest

from blastwatch.evidence_gates import reference_gates
from blastwatch.gate import MISSING
from blastwatch.package import DRIFT, REFERENCE, open_package
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
