import json
from dataclasses import replace
from datetime import UTC, datetime

import mlflow
import pytest

from blastwatch import history, promotion
from blastwatch.errors import (
    AliasMoved,
    AliasNotSet,
    PackageError,
    PromotionRefused,
    RegistryError,
    RegistryUnreachable,
    SignatureInvalid,
    UsageError,
    VersionNotFound,
)
from blastwatch.recording import Writer
from blastwatch.registry import Registry, parse_ref
from blastwatch.settings import load
from blastwatch.signing import PROMOTER
from blastwatch.verification import verify
from tests.packages import make_package
from tests.policies import lenient


@pytest.fixture
def registry(lenient_settings):
    return Registry(lenient_settings)


@pytest.fixture
def register(registry, new_run, tmp_path):
    """Registers a package whose stored answers are right to a given share."""
    made = []

    def make(right=0.9, **kwargs):
        made.append(tmp_path / f"package{len(made)}")
        return registry.register(make_package(made[-1], run_id=new_run(), right=right, seed=len(made), **kwargs))

    return make


def served(registry):
    return registry.entry("champion").version


def test_register_makes_a_candidate_and_is_idempotent(registry, register, tmp_path):
    entry = register()
    assert (entry.version, entry.aliases, entry.synthetic) == ("1", ["candidate"], True)
    assert entry.metrics == {"weighted_f1": 0.9}
    again = registry.register(tmp_path / "package0")
    assert again.version == "1" and len(registry.entries()) == 1
    assert [record.action for record in registry.records()] == ["register"]


def test_nothing_in_the_logged_model_is_a_pickle(settings, register):
    register()
    names = [path.name for path in settings.artifacts.rglob("*") if path.is_file()]
    assert "weights.safetensors" in names
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".pth", ".pt", ".joblib"))]


def test_promote_roll_back_and_history(registry, register):
    first, second = register(0.9), register(0.95)
    assert promotion.promote(registry, "1", reason="first", cells=None).promoted
    assert served(registry) == first.version
    assert promotion.promote(registry, "candidate", reason="better", cells=None).promoted
    assert served(registry) == second.version
    between = registry.records()[-1].time
    assert promotion.rollback(registry, reason="wrong stain").version == first.version
    assert served(registry) == first.version
    told = [(r.action, r.version, r.before, r.after, r.why) for r in registry.records()]
    assert told[2:] == [
        ("promote", "1", "", "1", "first"),
        ("promote", "2", "1", "2", "better"),
        ("rollback", "1", "2", "1", "wrong stain"),
    ]
    assert history.told(registry.ledger.rows(), history.parse_time(between))["version"] == "2"
    assert registry.entry("champion").promoted_by == "tester"
    with pytest.raises(AliasNotSet, match="none to roll back to"):
        promotion.rollback(registry, reason="again")


def test_a_worse_version_is_refused_and_the_refusal_is_kept(registry, register):
    register(0.9)
    promotion.promote(registry, "1", reason="", cells=None)
    register(0.7)
    result = promotion.promote(registry, "2", reason="", cells=None)
    assert not result.promoted
    with pytest.raises(PromotionRefused, match="non-inferiority"):
        result.check()
    assert served(registry) == "1"
    last = registry.ledger.rows()[-1]
    assert last.record().action == "refuse"
    assert {gate["name"] for gate in json.loads(last.gates) if not gate["passed"]} == {"non-inferiority"}


def test_an_override_is_named_for_ever(registry, register):
    register(0.9)
    promotion.promote(registry, "1", reason="", cells=None)
    register(0.7)
    with pytest.raises(UsageError, match="Expected --reason TEXT"):
        promotion.promote(registry, "2", reason=" ", cells=None, override=["non-inferiority"])
    with pytest.raises(UsageError, match="Expected --override with the name of one gate but got .beauty.; repeat"):
        promotion.promote(registry, "2", reason="x", cells=None, override=["beauty"])
    with pytest.raises(UsageError, match="lets nobody override the gate 'digests'"):
        promotion.promote(registry, "2", reason="x", cells=None, override=["digests"])
    result = promotion.promote(registry, "2", reason="the scanner broke", cells=None, override=["non-inferiority"])
    result.check()
    assert [gate.name for gate in result.gates if gate.overridden] == ["non-inferiority"]
    assert registry.entry("champion").overridden == registry.proven("champion").overridden == ["non-inferiority"]
    promotion.rollback(registry, reason="")
    told = history.told(registry.ledger.rows()[:-1], datetime(2100, 1, 1, tzinfo=UTC))
    assert (told["version"], told["overridden"]) == ("2", ["non-inferiority"])


def test_a_gate_that_passes_is_not_marked_as_overridden(registry, register):
    register(0.9)
    result = promotion.promote(registry, "1", reason="to be sure", cells=None, override=["card"])
    assert result.promoted and registry.entry("1").overridden == []


def test_other_test_cells_need_the_cells(registry, register):
    register(0.9)
    promotion.promote(registry, "1", reason="", cells=None)
    register(0.9, cells=120)
    result = promotion.promote(registry, "2", reason="", cells=None)
    assert not result.promoted and "--cells DIR" in str(result.gates[-1].value)


def test_a_split_by_image_is_refused(registry, register):
    register(leaky=True)
    result = promotion.promote(registry, "1", reason="", cells=None)
    assert "split" in [gate.name for gate in result.gates if not gate.passed]


def test_a_file_changed_after_registration_is_refused(settings, registry, register):
    register()
    [card] = settings.artifacts.rglob("card.md")
    card.write_text("# Better than it is\n")
    with pytest.raises(PackageError, match="card.md was changed"):
        registry.fetch("1")
    result = promotion.promote(registry, "1", reason="", cells=None)
    assert [(gate.name, gate.passed) for gate in result.gates] == [("digests", False)]
    assert "card.md was changed" in str(verify(registry).faults[0])


def test_a_local_copy_that_was_changed_is_refused(settings, registry, register):
    entry = register()
    kept = registry.fetch("1").package.folder
    assert kept == settings.packages / entry.digest
    (kept / "model.json").write_text("{}")
    with pytest.raises(PackageError, match=r"model.json was changed"):
        registry.fetch("1")


def test_an_alias_moved_behind_the_back_is_reported_and_put_back(lenient_settings, registry, register):
    register()
    promotion.promote(registry, "1", reason="", cells=None)
    register()
    assert verify(registry).faults == []
    client = mlflow.MlflowClient(lenient_settings.tracking_uri)
    client.set_registered_model_alias("blastwatch", "champion", "2")
    assert "stands on version 2 but the history says 1" in str(verify(registry).faults[0])
    with pytest.raises(AliasMoved, match="behind the registry's back"):
        registry.proven("champion")
    for action in (lambda: promotion.rollback(registry, reason=""), lambda: promotion.promote(
        registry, "2", reason="", cells=None)):  # fmt: skip
        with pytest.raises(AliasMoved, match="blastwatch registry restore"):
            action()
    client.delete_registered_model_alias("blastwatch", "candidate")
    assert promotion.restore(registry, reason="found at night").aliases == {"champion": "1", "candidate": "2"}
    assert registry.proven("champion").version == "1" and verify(registry).faults == []
    assert registry.records()[-1].action == "restore"


def test_an_alias_set_without_a_word_is_not_proven(lenient_settings, registry, register):
    register()
    client = mlflow.MlflowClient(lenient_settings.tracking_uri)
    client.set_registered_model_alias("blastwatch", "champion", "1")
    with pytest.raises(SignatureInvalid, match="without a signed word"):
        registry.proven("champion")
    # The word about another alias is no word about this one.
    word = client.get_registered_model("blastwatch").tags["blastwatch.alias.candidate"]
    client.set_registered_model_tag("blastwatch", "blastwatch.alias.champion", word)
    with pytest.raises(AliasMoved, match="put it on version none"):
        registry.proven("champion")


def test_an_old_word_put_back_with_its_alias_is_older_and_found(lenient_settings, registry, register):
    """Whoever may write to MLflow can do that; a service that saw the newer word follows no older one."""
    register()
    promotion.promote(registry, "1", reason="", cells=None)
    client = mlflow.MlflowClient(lenient_settings.tracking_uri, lenient_settings.tracking_uri)
    old = client.get_registered_model("blastwatch").tags["blastwatch.alias.champion"]
    register()
    promotion.promote(registry, "2", reason="", cells=None)
    newest = registry.proven("champion")
    client.set_registered_model_tag("blastwatch", "blastwatch.alias.champion", old)
    client.set_registered_model_alias("blastwatch", "champion", "1")
    replayed = registry.proven("champion")
    assert (newest.version, newest.word, replayed.version, replayed.word) == ("2", 4, "1", 2)
    assert "stands on version 1 but the history says 2" in str(verify(registry).faults[0])


def test_a_policy_may_let_a_moved_alias_serve(lenient_settings, registry, register, tmp_path):
    register()
    client = mlflow.MlflowClient(lenient_settings.tracking_uri)
    client.set_registered_model_alias("blastwatch", "champion", "1")
    (tmp_path / "loose").mkdir()
    loose = Registry(replace(lenient_settings, policy=lenient(tmp_path / "loose", serve_moved_alias=True)))
    entry = loose.proven("champion")
    assert (entry.version, entry.promoted_by) == ("1", None)
    assert "the history says none" in str(verify(loose).faults[0])


def test_a_version_that_came_in_past_the_registry_is_signed_by_nobody(lenient_settings, registry, register):
    register()
    client = mlflow.MlflowClient(lenient_settings.tracking_uri)
    known = client.get_model_version("blastwatch", "1")
    tags = {name: text for name, text in known.tags.items() if name not in ("blastwatch.signature", "blastwatch.key")}
    client.create_model_version("blastwatch", source=known.source, run_id=known.run_id, tags=tags)
    result = promotion.promote(registry, "2", reason="", cells=None)
    assert [gate.name for gate in result.gates if not gate.passed] == ["signature"]
    assert "nobody registered it here" in "; ".join(map(str, verify(registry).faults))


def test_a_challenger_comes_goes_and_becomes_champion(registry, register):
    register(0.9)
    promotion.promote(registry, "1", reason="", cells=None)
    register(0.95)
    assert promotion.challenge(registry, "candidate", reason="watch it").aliases == ["candidate", "challenger"]
    assert registry.proven("challenger").version == "2"
    with pytest.raises(UsageError, match="already is the challenger"):
        promotion.challenge(registry, "2", reason="")
    with pytest.raises(UsageError, match="already is the champion"):
        promotion.challenge(registry, "1", reason="")
    assert promotion.withdraw(registry, reason="enough").aliases == ["candidate"]
    promotion.challenge(registry, "2", reason="again")
    promotion.promote(registry, "2", reason="better", cells=None)
    assert registry.store.model().aliases == {"champion": "2"}
    with pytest.raises(AliasNotSet):
        promotion.withdraw(registry, reason="")
    assert verify(registry).faults == []


def test_two_persons(lenient_settings, registry, register, tmp_path):
    register()
    (tmp_path / "strict").mkdir()
    strict = replace(lenient_settings, policy=lenient(tmp_path / "strict", two_person=True))
    alone = promotion.promote(Registry(strict), "1", reason="", cells=None)
    assert [gate.name for gate in alone.gates if not gate.passed] == ["two-persons"]
    other = Registry(replace(strict, actor="pat"))
    named = promotion.promote(other, "1", reason="", cells=None)
    [gate] = [gate for gate in named.gates if not gate.passed]
    assert gate.value == "cannot be judged: registered by tester, promoted by pat, and nobody checks these names"
    assert not named.promoted and "BLASTWATCH_TRUSTED_KEYS, as docs/promotion.md" in gate.told


def test_a_reason_that_is_too_long_is_told(registry, register):
    register()
    with pytest.raises(UsageError, match="at most 1000 characters but got 1001"):
        promotion.promote(registry, "1", reason="x" * 1001, cells=None)
    assert [record.action for record in registry.records()] == ["register"]


def test_promoting_the_champion_again_is_a_usage_error(registry, register):
    register()
    promotion.promote(registry, "1", reason="", cells=None)
    with pytest.raises(UsageError, match="already is the champion"):
        promotion.promote(registry, "1", reason="", cells=None)


def test_empty_registry_says_what_to_do(registry):
    assert registry.entries() == []
    with pytest.raises(AliasNotSet, match="blastwatch registry register"):
        registry.fetch("champion")
    with pytest.raises(VersionNotFound, match="no version 7"):
        registry.entry("7")


def test_a_run_of_another_store_is_named(registry, new_run, tmp_path):
    with pytest.raises(RegistryError, match="training run elsewhere"):
        registry.register(make_package(tmp_path / "p", run_id="elsewhere"))


def test_an_unreachable_server_is_said_quickly(tmp_path, free_port):
    uri = f"http://127.0.0.1:{free_port()}"
    registry = Registry(load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri}))
    with pytest.raises(RegistryUnreachable, match="Start it or set MLFLOW_TRACKING_URI to where it is") as said:
        registry.entries()
    assert "blastwatch up" not in str(said.value)  # it starts no server where the variable names one


@pytest.mark.parametrize(
    ("ref", "found"),
    [("champion", "champion"), ("3", "3"), ("models:/blastwatch@champion", "champion"), ("models:/blastwatch/3", "3")],
)
def test_refs(ref, found):
    assert parse_ref(ref, "blastwatch") == found


@pytest.mark.parametrize("ref", ["production", "models:/other@champion", "models:/blastwatch", "-1", "../3", ""])
def test_wrong_refs(ref):
    with pytest.raises(UsageError, match="Expected"):
        parse_ref(ref, "blastwatch")


@pytest.fixture
def crossed(registry, register, lenient_settings, monkeypatch):
    """Version 1 is the champion and version 2 the candidate. What is put into the list is done, an action each, after
    MLflow was asked and before the history is."""
    register()
    promotion.promote(registry, "1", reason="first", cells=None).check()
    register(right=0.95)
    actions, ask = [], registry.store.model

    def model():
        found = ask()
        if actions:
            actions.pop(0)(Registry(lenient_settings))
        return found

    monkeypatch.setattr(registry.store, "model", model)
    monkeypatch.setattr("blastwatch.registry._PAUSE", 0)
    return registry, actions


def crown(other):
    with other.writing(PROMOTER) as writer:
        writer.move("promote", "champion", other.entry("2"), why="a colleague")


def challenge(other):
    promotion.challenge(other, "2", reason="a colleague")


@pytest.mark.parametrize(("action", "aliases"), [
    (crown, [["champion"], []]), (challenge, [["candidate", "challenger"], ["champion"]]),
])  # fmt: skip
def test_versions_are_told_of_one_moment_whatever_a_colleague_does_meanwhile(crossed, action, aliases):
    registry, actions = crossed
    actions.append(action)
    found = registry.entries()
    assert [(entry.aliases, entry.moved) for entry in found] == [(names, {}) for names in aliases]
    assert [entry.promoted_at is None for entry in found] == [action is challenge, False]


def test_a_reference_is_of_one_moment_whatever_a_colleague_does_meanwhile(crossed):
    registry, actions = crossed
    actions.append(crown)
    assert promotion.unmoved(registry, "champion").version == "2"


def test_an_alias_that_was_moved_by_hand_is_told_at_once(crossed, monkeypatch):
    registry, _ = crossed
    registry.store.set_alias("champion", "2")
    monkeypatch.setattr("time.sleep", lambda _: pytest.fail("there is nothing to wait for"))
    assert [entry.moved for entry in registry.entries()] == [{"champion": "1"}, {}]


def test_what_an_interrupted_action_left_is_told_as_it_is(crossed, monkeypatch):
    registry, _ = crossed
    monkeypatch.setattr(Writer, "_tell", lambda *_: None)
    crown(registry)
    assert [entry.moved for entry in registry.entries()] == [{"candidate": ""}, {"champion": "2"}]


def test_a_check_says_where_the_champion_was_moved_meanwhile(crossed, monkeypatch):
    """Its comparison is with one who is champion no more."""
    registry, actions = crossed
    actions += [lambda _: None, crown]  # between the version and the champion: seen, and judged against the new one
    assert promotion.judge(registry, "2", cells=None).version == "2"
    monkeypatch.setattr(promotion, "evaluate", lambda *_, **__: promotion.rollback(registry, reason="") and [])
    with pytest.raises(AliasMoved, match="champion was version 2 when this was asked for and is version 1 now: .* ask"):
        promotion.judge(registry, "2", cells=None)
