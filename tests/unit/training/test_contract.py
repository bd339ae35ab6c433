"""The contract: each rule can be broken, names what breaks it, and says how to go on."""

import dataclasses
from pathlib import Path

import pytest

from tests.unit.training.test_audit import cells_of
from training.audit import audit_cells
from training.contract import SHOWN, check_contract, write_check
from training.data_parameters import ContractParameters
from training.oddities import Oddity
from training.parameters import load_parameters
from training.subjects import spelled_alike


def cohort():
    cells = cells_of(
        [(f"{prefix}{number}", label, f"{prefix}{number}-{image}")
         for prefix, label in (("", "all"), ("H", "hem")) for number in range(5) for image in range(10)]
    )  # fmt: skip
    return dataclasses.replace(cells, folder=Path("cells"), facts={**cells.facts, "refused": 2})


def broken(cells, audit=None, **changes):
    rules = check_contract(cells, audit or audit_cells(cells, []), ContractParameters(**changes))
    assert len(rules) == 14
    return {rule.name: rule for rule in rules if not rule.passed}


def changed(cells, row, column, value):
    rows = cells.rows.copy()
    rows.loc[row, column] = value
    return dataclasses.replace(cells, rows=rows)


def test_an_ordinary_cohort_keeps_it(tmp_path):
    cells = cohort()
    assert broken(cells) == {}
    rules = check_contract(cells, audit_cells(cells, []), ContractParameters())
    assert '"passed": true' in write_check(rules, cells, tmp_path).read_text()


@pytest.mark.parametrize(
    ("column", "value", "name"),
    [
        ("path", "0001.bmp", "paths are unique"),
        ("subject", " ", "nothing is empty"),
        ("source", None, "nothing is empty"),
        ("label", "blast", "labels are known"),
        ("pixel_sha256", "12ab", "digests are SHA-256"),
        ("width", 8, "frames are in range"),
        ("height", 9000, "frames are in range"),
    ],
)
def test_a_row_that_breaks_the_schema_is_named(column, value, name):
    cells = changed(cohort(), 7, column, value)
    rule = broken(cells, audit_cells(cohort(), []))[name]
    assert rule.rows == ["0001.bmp" if column == "path" else "0007.bmp"]
    assert rule.go_on


def test_too_few_patients_or_cells():
    cells = cohort()
    found = broken(cells, least_patients=6, least_cells=51)
    assert set(found) == {
        f"enough {what} with the label {label}" for what in ("patients", "cells") for label in ("all", "hem")
    }
    assert found["enough patients with the label hem"].got == "5"
    assert found["enough cells with the label all"].wanted == "at least 51"


def test_tied_subjects_are_one_patient():
    cells = cohort()
    audit = audit_cells(cells, [], links=[["0", "1"]])
    assert set(broken(cells, audit, least_patients=5)) == {"enough patients with the label all"}


@pytest.mark.parametrize("other", ["P 11", "p11", "P011", "P11\u200b", "\uff3011", "P11 "])
def test_subjects_that_differ_by_their_spelling_alone(other):
    """Most likely one patient; the audit may tie the two, and then they are one."""
    cells = changed(cohort(), slice(0, 9), "subject", "P11")
    cells = changed(cells, slice(10, 19), "subject", other)
    rule = broken(cells)["subjects differ by more than spelling"]
    assert len(rule.rows) == 1 and "'P11'" in rule.rows[0] and "audit.links" in rule.go_on
    assert broken(cells, audit_cells(cells, [], links=[["P11", other]])) == {}


def test_letters_that_are_encoded_in_two_ways_are_told_apart_in_the_message():
    cells = changed(changed(cohort(), 0, "subject", "M\u00fcller"), 11, "subject", "Mu\u0308ller")
    rule = broken(cells)["subjects differ by more than spelling"]
    assert rule.rows == ["'Mu\\u0308ller' and 'M\u00fcller'"]


def test_the_healthy_and_the_ill_subject_of_one_number_are_two():
    """In C-NMC 11 and H11 are two people; h3 is H3, which the import of C-NMC knows."""
    assert spelled_alike(["11", "H11", "1", "101", "110", "1.05", "1.5"]) == []
    assert spelled_alike(["H3", "h3", "0011", "11", "0"]) == [["0011", "11"], ["H3", "h3"]]


def test_a_copy_that_was_saved_anew_under_the_other_label():
    cells = cohort()
    near = [("0000.bmp", "0060.bmp", 0.9), ("0000.bmp", "0010.bmp", 0.9)]
    rule = broken(cells, audit_cells(cells, near))["near images carry one label"]
    assert rule.rows == ["0000.bmp and 0060.bmp"] and "audit.html" in rule.go_on


def test_a_near_pair_that_a_person_judged_to_be_two_cells_breaks_nothing():
    cells = cohort()
    audit = audit_cells(cells, [("0000.bmp", "0060.bmp", 0.9), ("0001.bmp", "0061.bmp", 0.9)])
    judged = ["0060.bmp", "0000.bmp"]
    rule = broken(cells, audit, two_cells=[judged])["near images carry one label"]
    assert rule.rows == ["0001.bmp and 0061.bmp"] and "contract.two_cells" in rule.go_on
    both = load_parameters(None, [f"contract.two_cells={[judged, ['0001.bmp', '0061.bmp']]}"]).contract
    assert "near images carry one label" not in broken(cells, audit, two_cells=both.two_cells)
    # Equal pixels are one cell, whoever says otherwise.
    twice = changed(cells, 60, "pixel_sha256", cells.rows.loc[0, "pixel_sha256"])
    assert "equal images carry one label" in broken(twice, two_cells=[judged])


def test_conflicts_refusals_and_oddities():
    cells = cohort()
    twice = changed(cells, 60, "pixel_sha256", cells.rows.loc[0, "pixel_sha256"])
    assert broken(twice)["equal images carry one label"].rows == ["0000.bmp and 0060.bmp"]
    assert "refused.csv" in broken(cells, most_refused=0.01)["few images were refused"].go_on
    odd = [
        Oddity(path=path, kind="empty", statistic="cell_area", value=0.0, low=1.0, high=2.0)
        for path in cells.rows["path"][:30]
    ]
    rule = broken(cells, audit_cells(cells, [], odd=odd))["few images are odd"]
    assert len(rule.rows) == SHOWN
    assert rule.got == "30.0%: 30 of 100"
