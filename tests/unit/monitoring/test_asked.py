"""What a person asks for in a way that cannot be answered is said before anything is read."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from blastwatch.errors import DataError, RegistryError
from monitoring.commands import _print_patients, drift
from monitoring.commands import _print_report as _print_drift
from monitoring.label_commands import labels
from monitoring.patient_drift import Change, Course
from monitoring.performance import STATES
from monitoring.performance_words import SAID, interval
from monitoring.performance_words import print_report as _print_performance
from monitoring.shadow_commands import shadow
from monitoring.watch import patient_sentence
from tests.drift_status import NOW, drawn_patients, drawn_performance, report

FEW = "1 patient had fewer than 10 cells in that time, which is too few to count."
REVERSED = ["--since", "2026-11-29T08:00", "--until", "2026-11-29T07:00"]


@pytest.fixture
def run(settings, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    return lambda command, *words: CliRunner().invoke(command, [str(word) for word in words])


@pytest.mark.parametrize(
    "call", [(drift, "report"), (labels, "report"), (labels, "review", "--out", "review.csv")], ids=str
)
def test_a_span_that_ends_before_it_begins(run, call):
    found = run(*call, *REVERSED)
    assert found.exit_code == 2 and "Expected --until after --since but got" in found.stderr


@pytest.mark.parametrize(
    "call",
    [
        (drift, "report"),
        (drift, "patients"),
        (drift, "calibrate", "--ref", "1"),
        (drift, "watch"),
        (drift, "watch", "--once", "--json"),
        (labels, "report"),
        (labels, "review", "--out", "review.csv"),
        (shadow, "report"),
        (shadow, "report", "--champion", "1", "--challenger", "2"),
    ],
    ids=str,
)
def test_in_a_home_without_a_registry_none_is_made(tmp_path, monkeypatch, call):
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("monitoring.watch.watch", lambda *_: pytest.fail("the monitor was started"))
    monkeypatch.chdir(tmp_path)
    found = CliRunner().invoke(call[0], call[1:])
    assert isinstance(found.exception, RegistryError) and found.stdout == ""
    assert f"There is no registry in sqlite:///{tmp_path}/home/mlflow.db (BLASTWATCH_HOME)" in str(found.exception)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [("id|label\n1|all\n", "its first line is 'id|label'"), ("", "it is empty"), ("import os\n", "'import os'")],
)
def test_a_file_of_labels_in_another_form(run, tmp_path, text, said):
    (tmp_path / "labels.csv").write_text(text)
    found = run(labels, "add", tmp_path / "labels.csv")
    assert isinstance(found.exception, DataError) and said in str(found.exception)


def test_one_look_where_no_version_serves_yet(run):
    found = run(drift, "watch", "--once", "--json")
    assert found.exit_code == 0 and json.loads(found.stdout)["reason"].startswith("Nothing to watch yet: There is no")
    found = run(drift, "watch", "--once")
    assert (found.exit_code, found.stdout) == (0, "") and found.stderr.startswith("Nothing to watch yet: There is no")
    assert len(found.stderr.splitlines()) == 1
    assert patient_sentence({}) == []


@pytest.mark.parametrize(
    ("entered", "waiting", "few", "said"),
    [
        (0, 8, 0, "0 patients count|8 patients are here; each counts 60 minutes after the first cell."),
        (56, 1, 1, f"56 patients count|1 patient is here and counts 60 minutes after the first cell.|{FEW}"),
        (1, 0, 0, "1 patient counts"),
    ],
)
def test_patients_who_came_and_do_not_count_yet_are_said(entered, waiting, few, said, capsys):
    _print_patients(drawn_patients(others=False) | {"entered": entered, "waiting": waiting, "few": few})
    lines, (first, *others) = capsys.readouterr().out.splitlines(), said.split("|")
    assert lines[: len(others) + 1] == [f"Version 2: {first}, 36 are known", *others]
    assert lines[len(others) + 1].startswith("column")


@pytest.mark.parametrize("cut", [False, True])
def test_a_change_of_who_came_first_may_be_of_before_where_others_came_before_them(cut, capsys):
    found = drawn_patients(others=True, cut=cut)
    changed = next(column for column in found["columns"] if column["drifted"])
    words = f"{changed['since']}{' or before' if cut else ''}"
    assert [change["since_or_before"] for change in found["changes"]] == [cut]
    assert not any(column["since_or_before"] for column in found["columns"] if not column["drifted"])
    assert patient_sentence(found) == [f"Other patients: probability since {words}; probable cause: unknown."]
    camera = {"cause": "illumination", "images": "images come in another light"}
    assert patient_sentence(found | {"causes": [camera]}) == [
        f"Images come in another light: probability since {words}; probable cause: illumination."
    ]
    _print_patients(found)
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("probability"))
    assert line.endswith(f"  {words}  other")


def test_a_change_after_patients_as_known_is_dated_whoever_came_before(monkeypatch):
    """Of the second alarm of a column the beginning is looked at."""
    ended, stands = Change(since=3, found=9, until=20), Change(since=30, found=40)
    course = Course(evidence=1.0, baseline=np.ones(2), changes=(ended, stands), behind=40)
    monkeypatch.setattr("monitoring.patient_report.courses", lambda *_: {"probability": course})
    found = drawn_patients(others=True, cut=True)
    assert [change["since_or_before"] for change in found["changes"]] == [True, False]
    assert [column["since_or_before"] for column in found["columns"]] == [False]


def test_no_figure_is_rounded_onto_the_limit_that_it_does_not_reach(capsys):
    _print_drift(report(NOW, "2", {"od_red": 0.99996}) | {"compared": 500})
    _print_patients(
        {**(found := drawn_patients(others=False)), "columns": [found["columns"][0] | {"evidence": 0.99996}]}
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["od_red", "0.19999", "0.2"] in rows and "0.99996" in rows[-1]
    assert interval({"value": 0.99996, "low": 0.99, "high": 1.0}) == "0.99996 (0.990 to 1.000)"


def test_every_state_of_the_estimate_is_explained():
    assert sorted(SAID) == sorted(STATES)


def test_each_figure_of_a_report_says_by_what_its_interval_is(capsys):
    found = drawn_performance() | {"version": "2"}
    _print_performance(found)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("intervals by")).split()[2:] == ["patient"] * 3
    assert [line for line in lines if line.startswith("Intervals by")] == [
        "Intervals by patient: patients are independent; cells without a patient key are left out."
    ]
    assert "tolerance 0.02; the estimate is open: the labels so far neither confirm nor refute it." in "\n".join(lines)
    found["now"]["labelled"] |= {"unit": "cell"}
    found["now"]["labelled"]["check"]["lacks"] = "keys"
    found["windows"][1] |= {"unit": "cell"}
    _print_performance(found)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("intervals by")).split()[2:] == ["patient", "cell", "patient"]
    said = "the estimate is open: no verdict, since fewer than half of the labelled cells carry a patient key."
    assert said in "\n".join(lines)
    assert [line.split()[-2] for line in lines if line[:2] == "20"] == ["patient", "cell", *["patient"] * 3]
    assert [line.split(":")[0] for line in lines if line.startswith("Intervals by")] == [
        "Intervals by cell", "Intervals by patient",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("lacks", "said"),
    [
        ("patients", "no verdict, since the labelled cells are of 4 patients and 10 are needed."),
        ("cells", "no verdict, since 29 cells have labels and 30 are needed."),
    ],
)
def test_what_is_lacking_for_a_verdict_is_said(lacks, said, capsys):
    found = drawn_performance() | {"version": "2"}
    labelled = found["now"]["labelled"]
    labelled |= {"patients": 4, "labelled": 29, "check": labelled["check"] | {"state": "open", "lacks": lacks}}
    _print_performance(found)
    assert f"the estimate is open: {said}" in capsys.readouterr().out


def test_a_report_says_when_its_cells_were_answered_and_which_windows_are_cut(capsys):
    found = drawn_performance() | {"version": "2", "truncated": True}
    found["windows"][0] |= {"cut": True, "cells": 0, "estimated": {}}
    found["windows"][1] |= {"cut": True}
    _print_performance(found)
    told = capsys.readouterr()
    lines = told.out.splitlines()
    latest, labelled = found["now"]["latest"], found["now"]["labelled"]
    for words, end in (("from (UTC)", "since"), ("to (UTC)", "until")):
        row = next(line for line in lines if line.startswith(words))
        assert row.split()[2:] == [latest[end][:16], labelled[end][:16]]
    first, second, third = [line for line in lines if line[:2] == "20"][:3]
    assert first.split()[1:4] == ["not", "read", "unknown"] and f"latest {found['windows'][1]['cells']}" in second
    assert "latest" not in third and "There are more predictions than one report reads" in told.err
