"""Gates over registered versions: a first one, changed files, signatures, persons, and against the champion."""

import dataclasses
import json

import mlflow
import pytest

from blastwatch import noninferiority
from blastwatch.errors import SignatureInvalid
from blastwatch.gate import GATES, OFF
from blastwatch.gates import evaluate
from blastwatch.package import CARD, DRIFT, REFERENCE, seal
from blastwatch.policy import load_policy
from blastwatch.registry import Registry
from tests.packages import make_package
from tests.policies import lenient
from tests.service_packages import give_alias, make_servable


@pytest.fixture
def registry(settings):
    return Registry(settings)


@pytest.fixture
def register(registry, settings, tmp_path):
    """Registers hand-made packages, each under a run of its own."""
    client = mlflow.MlflowClient(settings.tracking_uri)
    experiment = client.create_experiment("gates", artifact_location=settings.artifacts.as_uri())
    made = []

    def make(maker=make_package, **options):
        made.append(tmp_path / f"package{len(made)}")
        run = client.create_run(experiment).info.run_id
        return registry.register(maker(made[-1], run_id=run, seed=len(made), **options))

    return make


@pytest.fixture
def judge(registry, tmp_path):
    """Every gate of a version by name, under the lenient policy with changes."""

    def run(entry, actor="somebody else", cells=None, **changed):
        gates = evaluate(registry, entry, load_policy(lenient(tmp_path, **changed)), cells, actor)
        return {gate.name: gate for gate in gates}

    return run


def failed(gates):
    return [name for name, gate in gates.items() if not gate.passed]


def test_a_first_version_passes_every_gate_in_their_order(register, judge):
    gates = judge(register())
    assert tuple(gates) == GATES and failed(gates) == []
    assert (gates["non-inferiority"].value, gates["non-inferiority"].limit) == ("no champion yet", -0.02)
    assert json.dumps([dataclasses.asdict(gate) for gate in gates.values()], allow_nan=False)


@pytest.mark.parametrize("kept", [False, True])
def test_changed_files_leave_one_gate(settings, registry, register, judge, kept):
    """Also where a good copy lies on this machine: the store's files are what other machines would serve."""
    entry = register()
    if kept:
        registry.fetch("1")
    [path] = settings.artifacts.rglob("card.md")
    path.write_text("# Better than it is\n")
    gates = judge(entry)
    assert list(gates) == failed(gates) == ["digests"] and "card.md was changed" in str(gates["digests"].value)


def test_signed_by_nobody(registry, register, judge, monkeypatch):
    entry = register()

    def refuse(_):
        raise SignatureInvalid("Version 1 is signed by nobody.")

    monkeypatch.setattr(registry, "check_signature", refuse)
    gates = judge(entry)
    assert failed(gates) == ["signature"] and gates["signature"].value == "Version 1 is signed by nobody."


def test_a_leaky_split_fails_alone(register, judge):
    assert failed(judge(register(leaky=True))) == ["split"]


def test_two_persons(register, judge, registry, tmp_path):
    entry = register()
    assert entry.registered_by == "tester"
    assert judge(entry, actor="tester")["two-persons"].limit == OFF
    assert failed(judge(entry, actor="tester", two_person=True)) == ["two-persons"]
    assert failed(judge(entry, actor="", two_person=True)) == ["two-persons"]
    assert failed(judge(entry, actor="other", two_person=True)) == ["two-persons"], "anybody may say so"
    registry.settings = dataclasses.replace(registry.settings, trusted_keys=tmp_path)
    assert failed(judge(entry, actor="tester", two_person=True)) == ["two-persons"]
    assert failed(judge(entry, actor="other", two_person=True)) == []


@pytest.mark.parametrize(("right", "passes"), [(0.9, True), (0.89, True), (0.95, True), (0.87, False), (0.5, False)])
def test_against_the_champion(registry, register, judge, right, passes):
    give_alias(registry, register(right=0.9))
    gate = judge(register(right=right))["non-inferiority"]
    assert gate.passed is passes and type(gate.value) is float and gate.limit == -0.02
    assert f"difference of {round(100 * right) / 100 - 0.9:+.2f}" in gate.note
    assert "against version 1: 100 cells of 7 all and 7 hem patients, 0 patients left out" in gate.note
    assert f"fails wholly on {1 - 0.2 ** (1 / 7):.0%} of the patients of a label, none of them among the 7" in gate.note


def test_a_share_and_a_level_are_told_as_they_are(registry, register, judge, monkeypatch):
    """Of 700 patients compared those unseen are 0.4 %, and not none; 97.5 % are no 98."""
    monkeypatch.setattr(noninferiority, "unseen_share", lambda *_, **__: 0.0043)
    give_alias(registry, register(right=0.9))
    gate = judge(register(right=0.9), non_inferiority={"margin": 0.02, "confidence": 0.975, "least_patients": 4})
    note = gate["non-inferiority"].note
    assert "fails wholly on 0.4% of the patients" in note and "lower bound at 97.5% of a difference of +0.0000" in note


def test_no_level_is_told_as_one_of_all(registry, register, tmp_path):
    """95 and 97.5 % stand as they are; 99.996 % are no 100."""
    give_alias(registry, register(right=0.9))
    entry = register(right=0.9)
    for confidence, told in ((0.95, "95%"), (0.975, "97.5%"), (0.99996, "99.996%")):
        lax = load_policy(lenient(tmp_path))
        policy = dataclasses.replace(
            lax, non_inferiority=dataclasses.replace(lax.non_inferiority, confidence=confidence)
        )
        gates = {gate.name: gate for gate in evaluate(registry, entry, policy, None, "somebody else")}
        assert f"lower bound at {told} of a difference" in gates["non-inferiority"].note


def test_patients_that_one_of_the_two_was_trained_on_are_left_out(registry, register, judge):
    """The champion knows two of the test patients: it is not held against the candidate that it answers them well."""
    give_alias(registry, register(right=0.9, trained=["0", "3"]))
    gate = judge(register(right=0.9))["non-inferiority"]
    assert gate.passed and "of 6 all and 6 hem patients, 2 patients left out" in gate.note


def test_too_few_patients_are_left(registry, register, judge):
    give_alias(registry, register(trained=[str(number) for number in range(0, 12, 2)]))
    entry = register()
    gate = judge(entry)["non-inferiority"]
    assert (gate.passed, gate.value) == (False, "cannot be judged: 7 all and 1 hem patients, 2 of each are needed")
    gate = judge(entry, non_inferiority={"margin": None})["non-inferiority"]
    assert (gate.passed, gate.limit) == (True, OFF)


def test_other_test_cells_need_the_cells(registry, register, judge):
    give_alias(registry, register())
    gate = judge(register(cells=120))["non-inferiority"]
    assert not gate.passed and "never tested on 20 " in str(gate.value) and "--cells DIR" in str(gate.value)


def test_the_default_policy_on_a_package_that_can_answer(register, registry):
    """What fails is what the package lacks: a drift reference and a card."""
    gates = evaluate(registry, register(maker=make_servable), load_policy(None), None, "somebody else")
    assert [gate.name for gate in gates if not gate.passed] == ["reference-cells", "reference-groups", "card"]


def test_as_many_patients_of_each_label_are_needed(registry, register, judge):
    """Many of one do not make up for few of the other."""
    give_alias(registry, register(trained=[str(number) for number in range(0, 8, 2)]))
    gate = judge(register(), non_inferiority={"margin": 0.02, "confidence": 0.8, "least_patients": 4})[
        "non-inferiority"
    ]
    assert (
        not gate.passed and gate.value.startswith("cannot be judged: ") and gate.value.endswith("4 of each are needed")
    )


def test_evidence_of_another_shape_fails_the_gates_that_read_it_and_is_named(register, judge):
    """The files are as they were sealed, and so are their digests."""

    def odd(folder, **options):
        make_package(folder, **options)
        for name in ("audit", "split", "data"):
            (folder / f"evidence/{name}.json").write_text("[]")
        (folder / DRIFT).write_text("5")
        (folder / REFERENCE).write_bytes(b"junk")
        (folder / CARD).write_bytes(b"\xff\xfe")
        seal(folder)
        return folder

    gates = judge(register(odd))
    assert gates["digests"].passed and gates["sensitivity"].passed
    named = {
        "audit": "evidence/audit.json", "split": "evidence/split.json", "answers": "evidence/split.json", "card": CARD,
        "groups": REFERENCE, "reference-groups": REFERENCE, "initial-weights": "evidence/data.json",
    }  # fmt: skip
    for name, file in named.items():
        assert not gates[name].passed and file in str(gates[name].value), name
