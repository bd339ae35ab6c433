"""What /v1/history says where all is well, where nothing is at hand, and where somebody changed it."""

import json
import shutil
import sqlite3
from dataclasses import asdict, replace

import pytest

from blastwatch.gate import OFF, Gate
from blastwatch.settings import load
from serving.problems import Problem
from serving.told import Told
from tests.service_packages import crown


@pytest.fixture(scope="module")
def crowned(tmp_path_factory, empty_store):
    """A home with a champion; nothing in it is changed after."""
    home = tmp_path_factory.mktemp("told") / "home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    crown(load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "tester"}), home / "package")
    return home


@pytest.fixture
def crowned_settings(crowned, tmp_path):
    home = shutil.copytree(crowned, tmp_path / "copy", ignore=shutil.ignore_patterns("mlartifacts", "package*"))
    return load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "tester"})


@pytest.fixture
def told(crowned_settings):
    return Told(crowned_settings)


def change(settings, statement):
    with sqlite3.connect(settings.home / "history.db") as database:
        database.execute(statement)
    database.close()


def test_now_and_before(told):
    now = told.answer(None)
    assert (now["told"]["version"], now["told"]["by"], now["check"]["intact"]) == ("1", "tester", True)
    assert told.answer("2020-01-01")["entries"] == []


def test_entries_that_one_answer_does_not_hold_are_counted(told, monkeypatch):
    every = told.answer(None)
    assert every["total"] == len(every["entries"]) == 2
    monkeypatch.setattr("serving.told.LATEST", 1)
    answer = told.answer(None)
    assert (answer["entries"], answer["total"]) == (every["entries"][:1], 2)
    assert told.answer("2020-01-01")["total"] == 0


def test_a_changed_entry_is_told_with_the_fault(told, crowned_settings):
    change(crowned_settings, "update history set body = replace(body, 'tester', 'nobody') where number = 2")
    answer = told.answer(None)
    assert answer["told"]["by"] == "nobody"
    assert not answer["check"]["intact"] and answer["check"]["faults"][0].startswith("2: ")


def test_an_entry_that_cannot_be_read_is_a_problem(told, crowned_settings):
    change(crowned_settings, "update history set body = '{' where number = 1")
    with pytest.raises(Problem, match="Entry 1"):
        told.answer(None)


@pytest.mark.parametrize(
    "change_made",
    [
        "set gates = 'x'",
        "set gates = '5'",
        "set gates = '[5]'",
        """set gates = '[{"name": "parity"}]'""",
        'set body = replace(body, \'"version":"1"\', \'"version":"x"\')',
        'set body = replace(body, \'"version":"1"\', \'"version":null\')',
        "set body = replace(body, '\"overridden\":[]', '\"overridden\":[[1]]')",
        'set body = replace(body, \'"why":""\', \'"why":"\\ud800"\')',
        """set gates = '[{"name": "parity", "value": NaN}]'""",
        'set body = replace(body, \'"time":"20\', \'"time":"x20\')',
        "set body = replace(body, '+00:00', '')",
    ],
)
def test_whatever_was_changed_is_said_and_is_no_failure_of_the_service(told, crowned_settings, change_made):
    change(crowned_settings, f"update history {change_made}")
    with pytest.raises(Problem, match="Entry 1: ") as said:
        told.answer(None)
    assert said.value.kind.name == "history-broken"


def test_what_is_no_text_in_the_database_is_no_failure_of_the_service(told, crowned_settings):
    change(crowned_settings, "update history set body = x'00' where number = 1")
    with pytest.raises(Problem, match="a number and four texts as entry 1") as said:
        told.answer(None)
    assert said.value.kind.name == "history-broken"


def test_without_a_time_every_entry_is_told_whatever_its_own(told, monkeypatch):
    """As of a clock that ran ahead; a time that is asked for leaves them to the future."""
    monkeypatch.setattr("blastwatch.history.now", lambda: "2020-01-01T00:00:00.000000+00:00")
    answer = told.answer(None)
    assert (answer["told"]["version"], answer["total"], answer["told"]["unsure"]) == ("1", 2, [])
    assert told.answer("2020-01-01")["told"]["unsure"] == []


def test_an_entry_that_was_removed_leaves_the_gates_of_the_others_theirs(told, crowned_settings):
    before = told.answer(None)["told"]
    change(crowned_settings, "delete from history where number = 1")
    answer = told.answer(None)
    assert answer["told"]["gates"] == before["gates"] and not answer["check"]["intact"]
    change(crowned_settings, "delete from history")
    assert told.answer(None)["told"]["version"] == ""


def test_each_gate_comes_with_its_verdict(told, crowned_settings):
    """One that the policy does not ask for was not passed."""
    gates = [
        Gate(name="parity", passed=True, value=0.001, limit=0.01),
        Gate(name="latency", passed=True, value="not measured", limit=OFF),
        Gate(name="reference-cells", passed=False, value=200.0, limit=300.0, overridden=True),
        Gate(name="card", passed=False, value="incomplete", limit="complete"),
    ]
    report = [asdict(gate) | {"of_a_later_version": 1} for gate in gates]
    change(crowned_settings, f"update history set gates = '{json.dumps(report)}' where number = 2")
    answer = told.answer(None)
    verdicts = ("passed", "off", "overridden", "failed")
    assert answer["told"]["gates"] == [
        row | {"verdict": verdict} for row, verdict in zip(report, verdicts, strict=True)
    ]
    assert not answer["check"]["intact"]


def test_a_history_that_should_be_there_is_a_failure_and_one_that_nobody_has_is_none(settings, crowned_settings):
    told = Told(settings)
    assert told.none_to_ask(follows=False) and not told.none_to_ask(follows=True)
    for follows, name, status in ((False, "no-history", 404), (True, "history-unavailable", 503)):
        with pytest.raises(Problem) as said:
            told.answer(None, follows=follows)
        assert (said.value.kind.name, said.value.kind.status) == (name, status)
    assert not (settings.home / "history.db").exists()
    for named in ("sqlite:////nowhere/history.db", "postgresql+psycopg://127.0.0.1:9/history"):
        told = Told(replace(settings, history_url=named))
        assert not told.none_to_ask(follows=False)
        with pytest.raises(Problem) as said:
            told.answer(None)
        assert said.value.kind.name == "history-unavailable"
    assert not Told(crowned_settings).none_to_ask(follows=False)


def test_without_a_good_time_no_history_is_asked(settings):
    with pytest.raises(Problem, match="Expected a time"):
        Told(settings).answer("last Tuesday")
