"""A package with fewer answers than test cells, or figures that do not follow from them, is found out by one gate."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blastwatch import promotion
from blastwatch.comparison import compare
from blastwatch.errors import PackageError
from blastwatch.package import DIGESTS, HEADLINE, METRICS, MODEL, PREDICTIONS, open_package, seal
from blastwatch.registry import Registry
from blastwatch.stored_answers import answers_gate, over_cells
from tests.packages import agree, make_package
from training.evaluation import prediction_table
from training.figures import figures, units_of


@pytest.fixture
def package(tmp_path):
    """Opened before a test spoils it: gates of the evidence do not look at digests again."""
    return open_package(make_package(tmp_path / "package"))


def change(package, name, edit):
    path = package.folder / name
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


def test_whole_answers_pass(package):
    gate = answers_gate(package)
    assert (gate.passed, gate.value) == (True, "100 cells of 14 patients")


def right(rows):
    return (rows["probability"] >= 0.5) == (rows["label"] == "all")


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda rows: rows[right(rows)], "answers of 45 cells of label all where the split tests 50"),
        (lambda rows: rows[rows["group"] != "3"], "answers of 6 groups of label all where the split tests 7"),
        (lambda rows: rows[rows["group"] != "3"], "no answer of the tested 3"),
        (lambda rows: pd.concat([rows, rows[right(rows)]]), "90 cells are answered more than once"),
        (lambda rows: rows.assign(label="all"), "answers of 0 cells of label hem where the split tests 50"),
        (lambda rows: rows.assign(label=rows["label"].where(rows.index > 0, "other")), "answers of label other"),
        (lambda rows: rows.assign(probability=rows["probability"].where(rows.index > 3)), "4 answers of"),
        (lambda rows: rows.assign(probability=rows["probability"].where(rows.index > 3, 1.5)), "4 answers of"),
        (lambda rows: rows.assign(probability="0.9"), "100 answers of"),
        (lambda rows: rows.drop(columns="path"), "test_predictions.parquet has no path"),
        (
            lambda rows: rows.assign(probability=1 - rows["probability"]),
            "sensitivity_over_ill of the answers is 0.09949",
        ),
    ],
)
def test_answers_that_are_not_those_of_the_test_side(package, edit, said):
    edit(package.predictions()).reset_index(drop=True).to_parquet(package.folder / PREDICTIONS)
    gate = answers_gate(package)
    assert not gate.passed and said in str(gate.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda rows: rows.assign(probability=np.where(rows["label"] == "all", 0.9, 0.1)), "10 answers of evidence/te"),
        (lambda rows: rows.assign(logit_all=rows["logit_all"].where(rows.index > 0)), "1 answers of evidence/te"),
        (lambda rows: rows.assign(logit_all="0"), "the logits of evidence/test_predictions.parquet are no numbers"),
    ],
)
def test_answers_that_do_not_follow_from_the_logits(package, edit, said):
    """Split and metrics are made to say what the changed answers say."""
    edit(package.predictions()).to_parquet(package.folder / PREDICTIONS)
    agree(package.folder)
    gate = answers_gate(package)
    assert not gate.passed and str(gate.value).startswith(said)


def test_the_answers_of_an_evaluation_follow_from_the_logits(package):
    """At another temperature than one, from the float32 that a network gives."""
    info = replace(package.info, temperature=1.7)
    (package.folder / MODEL).write_text(info.to_json())
    rows = package.predictions()
    logits = rows[["logit_hem", "logit_all"]].to_numpy(np.float32) * np.float32(2.3)
    prediction_table(rows, logits, info.temperature).to_parquet(package.folder / PREDICTIONS)
    agree(package.folder)
    assert answers_gate(replace(package, info=info)).passed


@pytest.mark.parametrize("sides", [None, {}, {"test": {"all": {"cells": 50}}}, {"test": {"all": None, "hem": None}}])
def test_a_split_that_does_not_say_how_many_are_tested(package, sides):
    change(package, "evidence/split.json", lambda split: split.update(sides=sides))
    gate = answers_gate(package)
    assert not gate.passed and ("does not say how many" in gate.value or "an unknown number of" in gate.value)


@pytest.mark.parametrize("name", ["sensitivity_over_ill", "specificity_over_healthy"])
def test_a_figure_that_is_missing(package, name):
    """Without a floor no other gate would ask for it."""
    change(package, METRICS, lambda metrics: metrics["patients"].pop(name))
    assert (answers_gate(package).passed, answers_gate(package).value) == (
        False,
        f"evidence/metrics.json says no {name}",
    )


@pytest.mark.parametrize("name", ["sensitivity_over_ill", "specificity_over_healthy"])
def test_figures_that_do_not_follow_from_the_answers(package, name):
    change(package, METRICS, lambda metrics: metrics["patients"][name].update(value=0.99))
    gate = answers_gate(package)
    assert (
        not gate.passed and f"{name} of the answers is 0.9005" in gate.value and "metrics.json says 0.99" in gate.value
    )


@pytest.mark.parametrize(("part", "name"), [("cells", "weighted_f1"), ("calibration", "ece_after")])
def test_what_is_told_with_a_version_or_judged_by_follows_too(package, part, name):
    def edit(metrics):
        metrics[part][name] = {"value": 0.01} if part == "cells" else 0.01

    change(package, METRICS, edit)
    gate = answers_gate(package)
    assert not gate.passed and f"{name} of the answers is " in gate.value and "metrics.json says 0.01" in gate.value


@given(st.integers(2, 60), st.integers(0, 2**32 - 1))
def test_figures_over_cells_are_those_of_an_evaluation(cells, seed):
    random = np.random.default_rng(seed)
    labels = np.where(np.arange(cells) % 2, "all", random.choice(["all", "hem"], cells))
    groups = random.integers(0, 5, cells).astype(str)
    rows = pd.DataFrame({"group": groups, "label": labels, "probability": random.integers(0, 31, cells) / 30})
    found = over_cells(rows)
    units = units_of(rows)
    expected = figures(units, np.ones((1, units.groups)), ["ece", *HEADLINE])
    assert found.pop("ece_after") == pytest.approx(expected["ece"][0], abs=1e-12)
    assert set(found) == (set(HEADLINE) if len(set(labels)) == 2 else set())
    for name, value in found.items():
        assert value == pytest.approx(expected[name][0], abs=1e-9)


def test_a_candidate_of_which_wrong_answers_were_dropped_is_refused(lenient_settings, new_run, tmp_path):
    """Sealed anew, so that its digests are right; the comparison alone would have let it pass."""
    registry = Registry(lenient_settings)
    registry.register(make_package(tmp_path / "first", run_id=new_run(), right=0.9))
    promotion.promote(registry, "1", reason="", cells=None).check()
    folder = make_package(tmp_path / "second", run_id=new_run(), right=0.3, seed=5)
    rows = pd.read_parquet(folder / PREDICTIONS)
    rows[right(rows)].reset_index(drop=True).to_parquet(folder / PREDICTIONS)
    (folder / DIGESTS).unlink()
    seal(folder)
    registry.register(folder)
    found = promotion.promote(registry, "2", reason="", cells=None)
    assert [gate.name for gate in found.gates if not gate.passed] == ["answers"] and not found.promoted


def test_what_is_no_number_is_not_compared_as_a_right_answer(package, tmp_path):
    """Below one half it would count as `hem`, and be right for every normal cell."""
    champion = open_package(make_package(tmp_path / "champion"))
    rows = package.predictions()
    rows.assign(probability=np.where(right(rows), rows["probability"], np.nan)).to_parquet(package.folder / PREDICTIONS)
    with pytest.raises(PackageError, match="10 answers of .* are no probability from 0 to 1"):
        compare(package, champion, None)
    with pytest.raises(PackageError, match="The champion: 10 answers of .* are no probability from 0 to 1"):
        compare(champion, package, None)
