"""What somebody who may write to MLflow, but not promote, can bring about: nothing that serves, and nothing unseen."""

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest

from blastwatch import history, promotion
from blastwatch.errors import AliasMoved, NotPermitted, PackageError, SignatureInvalid, UsageError
from blastwatch.ledger import Ledger
from blastwatch.recording import ALIAS_TAG, HEAD_TAG
from blastwatch.registry import Registry
from blastwatch.signing import PROMOTER, TRAINER, Signer, _load_private, open_signer
from blastwatch.verification import verify
from tests.policies import lenient

NAME = "blastwatch"


def copy_version(client, number, source=None, **tags):
    """Put a version into MLflow under a new number, with the signed tags of another and, if asked for, other files."""
    known = client.get_model_version(NAME, number)
    copied = {name: text for name, text in known.tags.items() if not name.startswith("blastwatch.history")}
    changed = {f"blastwatch.{name}": text for name, text in tags.items()}
    made = client.create_model_version(
        NAME, source=source or known.source, run_id=known.run_id, tags=copied | changed
    )  # fmt: skip
    return str(made.version)


def exchange(client, registry, number, source):
    """Put the package of one version, with what is signed of it, into the place of another's."""
    copy_signed(client, number, source)
    old, other = (registry.store.download(version, None) for version in (number, source))
    shutil.rmtree(old)
    shutil.copytree(other, old)


def copy_signed(client, number, source):
    """Give a version the digest and the signature of another."""
    known = client.get_model_version(NAME, source).tags
    for name in ("digest", "signature", "key"):
        client.set_model_version_tag(NAME, number, f"blastwatch.{name}", known[f"blastwatch.{name}"])


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
        found = history.faults([*pat.ledger.rows(), row], pat.trusted, model=NAME)
        assert bool(found) is (alias != history.MOVES.get(action, ""))


def test_a_version_whose_package_was_exchanged_is_neither_promoted_nor_rolled_back_to(people, register, client):
    """Together with its signed tags, which are those of a package that the gates refuse."""
    tom, pat = people
    for number, right in enumerate((0.9, 0.95), start=1):
        register(tom, right)
        promotion.promote(pat, str(number), reason="", cells=None).check()
    register(tom, 0.5)
    assert not promotion.promote(pat, "3", reason="", cells=None).promoted
    exchange(client, pat, "1", "3")
    with pytest.raises(PackageError, match="Version 1 was promoted as package"):
        promotion.rollback(pat, reason="stain")
    found = promotion.promote(pat, "1", reason="", cells=None)
    assert not found.promoted and found.gates[0].name == "digests" and "registered as package" in found.gates[0].value
    assert pat.proven("champion").version == "2"


def test_a_champion_whose_package_was_exchanged_is_not_proven(people, register, client):
    """Everything that MLflow says of it is signed; the word of the promoter is about the package that was judged."""
    tom, pat = people
    judged = register(tom, 0.9)
    promotion.promote(pat, "1", reason="", cells=None).check()
    refused = register(tom, 0.5)
    assert not promotion.promote(pat, "2", reason="", cells=None).promoted
    exchange(client, pat, "1", "2")
    packages = f"as package {refused.digest[:12]} but .* put it on package {judged.digest[:12]}"
    with pytest.raises(AliasMoved, match=f"{packages}: the version was exchanged in MLflow"):
        pat.proven("champion")
    assert "it registered package" in faults(pat)


def test_a_word_about_another_model_is_none_about_this_one(people, register, client, tmp_path):
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    seen = [Registry(replace(registry.settings, model_name="other")) for registry in (tom, pat)]
    assert seen[0].register(tmp_path / "package0").digest == pat.proven("champion").digest
    client.set_registered_model_alias("other", "champion", "1")
    word = client.get_registered_model(NAME).tags[ALIAS_TAG + "champion"]
    client.set_registered_model_tag("other", ALIAS_TAG + "champion", word)
    with pytest.raises(SignatureInvalid, match="about other but got one about blastwatch"):
        seen[1].proven("champion")


@pytest.mark.parametrize("restored", [False, True])
def test_an_alias_that_a_promotion_took_away_is_not_set_again_by_hand(people, register, client, restored):
    tom, pat = people
    for number in ("1", "2"):
        register(tom, 0.9)
        promotion.challenge(pat, number, reason="")
        assert pat.proven("challenger").version == pat.proven("candidate").version == number
        promotion.promote(pat, number, reason="", cells=None).check()
    took = pat.records()[-1].number
    promotion.rollback(pat, reason="")
    if restored:
        assert promotion.restore(pat, reason="to be sure").aliases == {"champion": "1"}
    for alias in ("candidate", "challenger"):
        client.set_registered_model_alias(NAME, alias, "2")
        with pytest.raises(AliasMoved, match="stands on version 2 but the last signed word .* on version none"):
            pat.proven(alias)
        assert f"entry {took}: the alias {alias} stands on version 2 but the history says none" in faults(pat)
    assert pat.proven("champion").version == "1"


def test_a_promotion_takes_away_what_was_set_by_hand_and_speaks_for_what_was_removed(people, register, client):
    tom, pat = people
    register(tom)
    client.set_registered_model_alias(NAME, "challenger", "1")
    client.delete_registered_model_alias(NAME, "candidate")
    promotion.promote(pat, "1", reason="", cells=None).check()
    model = pat.store.model()
    assert model.aliases == {"champion": "1"} and faults(pat) == ""
    assert pat.word(model, "candidate") == pat.word(model, "challenger") == pat.records()[-1]


def test_a_restoration_mends_the_word_at_an_alias(people, register, client):
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    proven = pat.proven("champion")
    client.set_registered_model_tag(NAME, ALIAS_TAG + "champion", "{}")
    with pytest.raises(SignatureInvalid, match="cannot be read"):
        pat.proven("champion")
    promotion.restore(pat, reason="somebody was at it")
    assert pat.proven("champion") == proven and faults(pat) == ""


def test_what_is_judged_is_what_is_signed(people, register, monkeypatch):
    """Tags that say another package while the gates look, and the old one before and after."""
    tom, pat = people
    register(tom, 0.9)
    asked, real = [], Registry.entry
    monkeypatch.setattr(Registry, "entry", lambda self, ref: asked.append(ref) or real(self, ref))
    promotion.promote(pat, "1", reason="", cells=None).check()
    assert asked == ["1"]  # what was read once is not looked up again by its number


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


def test_an_override_of_a_version_with_changed_files_is_a_refusal_in_the_history(people, register):
    tom, pat = people
    register(tom)
    next(pat.settings.artifacts.rglob("card.md")).write_text("x")
    found = promotion.promote(pat, "1", reason="x", cells=None, override=["latency"])
    assert not found.promoted and pat.records()[-1].action == "refuse"


def test_an_unknown_gate_is_said_before_anything_is_judged(people, register, monkeypatch):
    tom, pat = people
    register(tom)
    monkeypatch.setattr(promotion, "evaluate", lambda *_, **__: pytest.fail("it was judged"))
    with pytest.raises(UsageError, match="name of one gate but got .* The policy allows: "):
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
    copy_signed(client, "2", "1")
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
