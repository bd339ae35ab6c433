"""What somebody who may write to MLflow, but not promote, can bring about: nothing that serves, and nothing unseen."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import mlflow
import pytest

from blastwatch import history, promotion
from blastwatch.errors import AliasMoved, AliasNotSet, NotPermitted, PackageError, SignatureInvalid, UsageError
from blastwatch.ledger import Ledger
from blastwatch.recording import ALIAS_TAG, HEAD_TAG
from blastwatch.registry import Registry
from blastwatch.signing import PROMOTER, TRAINER, Signer, _load_private, make_private, open_signer, pem_of
from blastwatch.verification import verify
from tests.packages import make_package
from tests.policies import lenient

NAME = "blastwatch"


@pytest.fixture
def people(lenient_settings, tmp_path):
    """The registry as Tom, who trains, and Pat, who promotes, see it."""
    keys = tmp_path / "trusted"
    for role, name in ((TRAINER, "tom"), (PROMOTER, "pat")):
        make_private(tmp_path / f"{name}.pem")
        (keys / role).mkdir(parents=True)
        (keys / role / f"{name}.pem").write_text(pem_of(tmp_path / f"{name}.pem"))

    def seen(name):
        return Registry(replace(lenient_settings, signing_key=tmp_path / f"{name}.pem", trusted_keys=keys, actor=name))

    return seen("tom"), seen("pat")


@pytest.fixture
def register(new_run, tmp_path):
    made = []

    def make(registry, right=0.9):
        made.append(tmp_path / f"package{len(made)}")
        return registry.register(make_package(made[-1], run_id=new_run(), right=right, seed=len(made)))

    return make


@pytest.fixture
def client(lenient_settings):
    return mlflow.MlflowClient(lenient_settings.tracking_uri, lenient_settings.tracking_uri)


def copy_version(client, number, source=None, **tags):
    """Put a version into MLflow under a new number, with the signed tags of another and, if asked for, other files."""
    known = client.get_model_version(NAME, number)
    copied = {name: text for name, text in known.tags.items() if not name.startswith("blastwatch.history")}
    changed = {f"blastwatch.{name}": text for name, text in tags.items()}
    made = client.create_model_version(
        NAME, source=source or known.source, run_id=known.run_id, tags=copied | changed
    )  # fmt: skip
    return str(made.version)


def faults(registry):
    return " ".join(map(str, verify(registry).faults))


def forged(registry, key, *, action, alias, version, who):
    """A row that says what its author likes, signed with a key of theirs."""
    rows, entry, signer = registry.ledger.rows(), registry.entry(version), Signer(_load_private(key))
    report = history.report_of([])
    record = replace(
        rows[-1].record(), number=len(rows) + 1, time=history.now(), who=who, action=action, alias=alias,
        version=version, after=version, digest=entry.digest, report=history.hash_of(report), key=signer.fingerprint,
        previous=rows[-1].hash,
    )  # fmt: skip
    body = history.body_of(record)
    digest = history.hash_of(body)
    return history.Row(record.number, body, report, digest, signer.sign(history.statement(digest)))


def test_a_trainers_key_moves_no_champion_under_the_name_of_an_action_of_theirs(people, register, client):
    tom, pat = people
    register(tom, 0.9)
    promotion.promote(pat, "1", reason="", cells=None).check()
    register(tom, 0.6)
    with pytest.raises(NotPermitted):
        promotion.promote(tom, "2", reason="", cells=None)
    row = forged(tom, tom.settings.signing_key, action="register", alias="champion", version="2", who="pat")
    told = json.dumps({"body": row.body, "signature": row.signature})
    client.set_registered_model_alias(NAME, "champion", "2")
    client.set_registered_model_tag(NAME, ALIAS_TAG + "champion", told)
    with pytest.raises(SignatureInvalid, match="a register moves no alias 'champion'"):
        pat.proven("champion")
    tom.ledger.append(row)  # a trainer may write there, to register
    client.set_registered_model_tag(NAME, HEAD_TAG, told)
    assert "a register moves no alias 'champion'" in faults(pat)


@pytest.mark.parametrize("action", sorted(history.ROLE_OF))
def test_no_action_moves_an_alias_that_is_not_its_own(people, register, action):
    tom, pat = people
    register(tom)
    for alias in ("", *history.ALIASES):
        row = forged(pat, pat.settings.signing_key, action=action, alias=alias, version="1", who="pat")
        found = history.faults([*pat.ledger.rows(), row], pat.trusted)
        assert bool(found) is (alias != history.MOVES.get(action, ""))


def test_a_version_whose_package_was_exchanged_is_neither_promoted_nor_rolled_back_to(people, register, client):
    """Together with its signed tags, which are those of a package that the gates refuse."""
    tom, pat = people
    for number, right in enumerate((0.9, 0.95), start=1):
        register(tom, right)
        promotion.promote(pat, str(number), reason="", cells=None).check()
    register(tom, 0.5)
    assert not promotion.promote(pat, "3", reason="", cells=None).promoted
    refused = client.get_model_version(NAME, "3").tags
    for name in ("digest", "signature", "key"):
        client.set_model_version_tag(NAME, "1", f"blastwatch.{name}", refused[f"blastwatch.{name}"])
    old, other = (pat.store.download(number, None) for number in ("1", "3"))
    shutil.rmtree(old)
    shutil.copytree(other, old)
    with pytest.raises(PackageError, match="Version 1 was promoted as package"):
        promotion.rollback(pat, reason="stain")
    found = promotion.promote(pat, "1", reason="", cells=None)
    assert not found.promoted and found.gates[0].name == "digests" and "registered as package" in found.gates[0].value
    assert pat.proven("champion").version == "2"


def test_a_version_without_its_signature_is_not_rolled_back_to(people, register, client):
    tom, pat = people
    for number in ("1", "2"):
        register(tom, 0.9)
        promotion.promote(pat, number, reason="", cells=None).check()
    client.set_model_version_tag(NAME, "1", "blastwatch.signature", "AAAA")
    with pytest.raises(SignatureInvalid, match="Version 1 was not registered by anybody trusted"):
        promotion.rollback(pat, reason="")
    assert pat.proven("champion").version == "2"


def test_what_is_judged_is_what_is_signed(people, register, monkeypatch):
    """Tags that say another package while the gates look, and the old one before and after."""
    tom, pat = people
    register(tom, 0.9)
    asked, real = [], Registry.fetch
    monkeypatch.setattr(Registry, "fetch", lambda self, ref, **how: asked.append(ref) or real(self, ref, **how))
    promotion.promote(pat, "1", reason="", cells=None).check()
    assert "1" not in asked  # what was read once is not looked up again by its number


def test_data_split_and_code_in_the_history_are_those_of_the_registration(people, register, client):
    tom, pat = people
    entry = register(tom)
    for name in ("data_digest", "split_digest", "git_commit"):
        client.set_model_version_tag(NAME, "1", f"blastwatch.{name}", "f" * 40)
    client.set_model_version_tag(NAME, "1", "blastwatch.synthetic", "false")
    client.set_model_version_tag(NAME, "1", "blastwatch.metric.weighted_f1", "0.999")
    promotion.promote(pat, "1", reason="", cells=None).check()
    told = history.told(pat.ledger.rows(), history.parse_time(history.now()))
    assert (told["data_digest"], told["split_digest"]) == (entry.data_digest, entry.split_digest)
    said = faults(pat)
    for name in ("data_digest", "split_digest", "git_commit"):
        assert f"with {name}" in said
    assert "MLflow's tags say another data_digest, git_commit, metrics, split_digest, synthetic" in said


def test_a_rollback_keeps_what_the_version_was_promoted_in_spite_of(people, register):
    """A service refuses an engine that flips too often where nobody overrode that."""
    tom, pat = people
    register(tom, 0.9)
    promotion.promote(pat, "1", reason="", cells=None).check()
    register(tom, 0.7)
    promotion.promote(pat, "2", reason="the scanner", cells=None, override=["non-inferiority"]).check()
    register(tom, 0.9)
    promotion.promote(pat, "3", reason="", cells=None).check()
    promotion.rollback(pat, reason="")
    found = pat.proven("champion")
    assert (found.version, found.overridden) == ("2", ["non-inferiority"])
    promotion.rollback(pat, reason="")
    assert pat.proven("champion").overridden == [] and verify(pat).intact


def test_of_two_who_roll_back_at_once_the_second_is_told(people, register, monkeypatch):
    tom, pat = people
    for number in ("1", "2", "3"):
        register(tom, 0.9)
        promotion.promote(pat, number, reason="", cells=None).check()
    real, first = Registry.writing, []

    def one_before(self, role):
        if not first:
            first.append(True)
            promotion.rollback(Registry(pat.settings), reason="a bad stain")
        return real(self, role)

    monkeypatch.setattr(Registry, "writing", one_before)
    with pytest.raises(AliasMoved, match="was version 3 when this was asked for and is version 2 now"):
        promotion.rollback(pat, reason="the same bad stain")
    assert pat.proven("champion").version == "2"


def test_an_override_of_a_version_with_changed_files_is_a_refusal_in_the_history(people, register):
    tom, pat = people
    register(tom)
    next(pat.settings.artifacts.rglob("card.md")).write_text("x")
    found = promotion.promote(pat, "1", reason="x", cells=None, override=["latency"])
    assert not found.promoted and pat.records()[-1].action == "refuse"


def test_an_unknown_gate_is_said_before_anything_is_judged(people, register, monkeypatch):
    tom, pat = people
    register(tom)
    monkeypatch.setattr(promotion, "evaluate", lambda *_: pytest.fail("it was judged"))
    with pytest.raises(UsageError, match="one of the gates digests, signature"):
        promotion.promote(pat, "1", reason="x", cells=None, override=["latncy"])


def test_whose_key_lies_under_both_roles_is_a_promoter(people, register):
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    keys = pat.settings.trusted_keys
    shutil.copy(keys / PROMOTER / "pat.pem", keys / TRAINER / "pat.pem")
    again = Registry(pat.settings)
    assert again.proven("champion").version == "1"
    open_signer(pat.settings, PROMOTER)


def test_a_candidate_that_was_deleted_in_mlflow_stops_no_writer(people, register, client):
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    register(tom)
    client.delete_model_version(NAME, "2")
    assert "version 2 is no longer in MLflow" in faults(pat)
    assert promotion.restore(pat, reason="") == {"champion": "1"}
    assert register(tom).version == "3"
    promotion.promote(pat, "3", reason="", cells=None).check()
    assert promotion.rollback(pat, reason="").version == "1"


def test_from_a_champion_that_was_deleted_in_mlflow_there_is_a_way_back(people, register, client):
    tom, pat = people
    for number in ("1", "2"):
        register(tom, 0.9)
        promotion.promote(pat, number, reason="", cells=None).check()
    client.delete_model_version(NAME, "2")
    assert promotion.rollback(pat, reason="it is gone").version == "1"
    assert pat.proven("champion").version == "1"
    assert faults(pat) == "entry 3: version 2 is no longer in MLflow"


def test_the_first_champion_that_was_deleted_is_followed_by_one_that_was_not_compared_with_it(people, register, client):
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    client.delete_model_version(NAME, "1")
    with pytest.raises(AliasNotSet, match="Version 1 is the first champion"):
        promotion.rollback(pat, reason="")
    with pytest.raises(AliasNotSet, match="MLflow has no version any more"):
        promotion.restore(pat, reason="")
    register(tom)
    found = promotion.promote(pat, "2", reason="", cells=None)
    assert [gate.name for gate in found.gates if not gate.passed] == ["non-inferiority"]
    promotion.promote(pat, "2", reason="the other was deleted", cells=None, override=["non-inferiority"]).check()
    assert pat.proven("champion").version == "2"


@pytest.mark.parametrize("step", ["rollback", "challenge"])
def test_files_that_were_changed_in_the_store_are_neither_rolled_back_to_nor_challenge(people, register, step):
    tom, pat = people
    for number in ("1", "2"):
        register(tom, 0.9)
        promotion.promote(pat, number, reason="", cells=None).check()
    next(pat.store.download("1", None).rglob("card.md")).write_text("x")
    with pytest.raises(PackageError, match=r"card\.md"):
        promotion.rollback(pat, reason="") if step == "rollback" else promotion.challenge(pat, "1", reason="")
    assert pat.proven("champion").version == "2"


def test_an_unsigned_version_does_not_challenge(people, register, client):
    tom, pat = people
    register(tom)
    client.set_model_version_tag(NAME, "1", "blastwatch.signature", "AAAA")
    with pytest.raises(SignatureInvalid, match="was not registered by anybody trusted"):
        promotion.challenge(pat, "1", reason="")


def test_a_copy_of_a_version_under_another_name_is_neither_promoted_nor_challenges(people, register, client, tmp_path):
    """Its files and its signature are those of the package; that somebody else registered it is what its tags say."""
    _, pat = people
    register(pat)
    (tmp_path / "strict").mkdir()
    strict = replace(pat.settings, policy=lenient(tmp_path / "strict", two_person=True))
    assert not promotion.promote(Registry(strict), "1", reason="", cells=None).promoted
    copied = copy_version(client, "1", registered_by="kim")
    for settings, failing in ((strict, ["signature", "two-persons"]), (pat.settings, ["signature"])):
        found = promotion.promote(Registry(settings), copied, reason="", cells=None)
        failed = [gate for gate in found.gates if not gate.passed]
        assert [gate.name for gate in failed] == failing
        assert "nobody registered package" in failed[0].value
        assert "blastwatch registry register DIR" in failed[0].value
    with pytest.raises(UsageError, match="lets nobody override the gate 'signature'"):
        promotion.promote(pat, copied, reason="x", cells=None, override=["signature"])
    with pytest.raises(SignatureInvalid, match="nobody registered package"):
        promotion.challenge(pat, copied, reason="")
    assert "champion" not in pat.store.model().aliases and "challenger" not in pat.store.model().aliases


def test_a_package_keeps_the_version_that_it_was_registered_as(people, register, client, tmp_path):
    tom, _ = people
    register(tom)
    copied = copy_version(client, "1")
    assert tom.register(tmp_path / "package0").version == "1"
    client.delete_model_version(NAME, "1")
    assert tom.register(tmp_path / "package0").version == copied, "as one that an interrupted registration left"
    assert [record.version for record in tom.records()] == ["1", copied]


def test_a_copy_with_other_files_is_not_taken_for_a_package_that_is_registered(people, register, client, tmp_path):
    tom, _ = people
    register(tom)
    register(tom)
    other = client.get_model_version(NAME, "2").source
    wrong = [copy_version(client, "1", source=other), copy_version(client, "1", synthetic="false")]
    client.delete_model_version(NAME, "1")
    assert tom.register(tmp_path / "package0").version not in ("1", "2", *wrong)


def test_a_version_that_is_registered_as_another_package_is_not_taken_for_this_one(people, register, client, tmp_path):
    tom, _ = people
    register(tom)
    register(tom)
    known = client.get_model_version(NAME, "1").tags
    for name in ("digest", "signature", "key"):
        client.set_model_version_tag(NAME, "2", f"blastwatch.{name}", known[f"blastwatch.{name}"])
    assert tom.register(tmp_path / "package0").version == "1"


@pytest.mark.parametrize("text", ["good", "", "nan", "inf"])
def test_a_figure_in_mlflow_that_is_no_number_ends_nothing(people, register, client, text):
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    client.set_model_version_tag(NAME, "1", "blastwatch.metric.note", text or "-")
    client.set_model_version_tag(NAME, "1", "blastwatch.metric.weighted_f1", text)
    assert [entry.metrics for entry in pat.entries()] == [pat.proven("champion").metrics] == [{}]
    [fault] = verify(pat).faults
    assert "MLflow's tags say another metrics than its package" in fault.fault


def test_a_rollback_steps_over_champions_that_were_deleted_in_mlflow(people, register, client):
    tom, pat = people
    for number in ("1", "2", "3", "4", "5"):
        register(tom, 0.9)
        promotion.promote(pat, number, reason="", cells=None).check()
    for number in ("3", "4"):
        client.delete_model_version(NAME, number)
    back = promotion.rollback(pat, reason="stain")
    assert (back.version, back.stepped_over, back.note) == (
        "2", ["4", "3"], "stepped over versions 4, 3, deleted in MLflow",
    )  # fmt: skip
    assert pat.records()[-1].why == "stain (stepped over versions 4, 3, deleted in MLflow)"
    assert history.champions(pat.records()) == ["1", "2"] and pat.proven("champion").version == "2"
    further = promotion.rollback(pat, reason="")
    assert (further.version, further.stepped_over, pat.records()[-1].why) == ("1", [], "")
    with pytest.raises(AliasNotSet, match="Version 1 is the first champion"):
        promotion.rollback(pat, reason="")


def test_where_every_earlier_champion_was_deleted_a_rollback_says_so(people, register, client):
    tom, pat = people
    for number in ("1", "2"):
        register(tom, 0.9)
        promotion.promote(pat, number, reason="", cells=None).check()
    client.delete_model_version(NAME, "1")
    with pytest.raises(AliasNotSet, match="Every champion before version 2 was deleted in MLflow"):
        promotion.rollback(pat, reason="")
    assert [record.action for record in pat.records()].count("rollback") == 0


def test_the_champion_that_a_rollback_steps_down_to_is_checked(people, register, client):
    tom, pat = people
    for number in ("1", "2", "3"):
        register(tom, 0.9)
        promotion.promote(pat, number, reason="", cells=None).check()
    client.delete_model_version(NAME, "2")
    client.set_model_version_tag(NAME, "1", "blastwatch.signature", "AAAA")
    with pytest.raises(SignatureInvalid, match="Version 1 was not registered by anybody trusted"):
        promotion.rollback(pat, reason="")
    assert pat.proven("champion").version == "3"


@pytest.mark.parametrize("action", ["promote", "challenge", "withdraw"])
def test_an_alias_that_moved_while_a_command_waited_is_not_acted_on(people, register, monkeypatch, action):
    """Somebody looked at version 2 and gave a reason; version 3 took its alias before the command was let in."""
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    register(tom)
    if action == "withdraw":
        promotion.challenge(pat, "2", reason="")
    lock, first = Ledger.lock, []

    @contextmanager
    def late(self):
        if not first:
            first.append(True)
            register(tom)
            if action == "withdraw":
                promotion.challenge(pat, "3", reason="")
        with lock(self):
            yield

    monkeypatch.setattr(Ledger, "lock", late)
    asked = "challenger" if action == "withdraw" else "candidate"
    with pytest.raises(AliasMoved, match=f"The {asked} was version 2 when this was asked for and is version 3 now"):
        if action == "promote":
            promotion.promote(pat, "models:/blastwatch@candidate", reason="I saw it", cells=None, override=["latency"])
        elif action == "challenge":
            promotion.challenge(pat, "candidate", reason="I saw it")
        else:
            promotion.withdraw(pat, reason="I saw it")
    last = pat.records()[-1]
    assert (last.action, last.version) == ("challenge" if action == "withdraw" else "register", "3")
