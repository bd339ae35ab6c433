"""What `verify` finds that MLflow alone would hide, and that what it names as the remedy is one."""

import json
import re
import shutil
from dataclasses import replace

import pytest

from blastwatch import history, promotion
from blastwatch.errors import AliasNotSet, HistoryBroken, NotPermitted, RegistryUnreachable
from blastwatch.model_store import ModelStore
from blastwatch.recording import ALIAS_TAG, HEAD_TAG
from blastwatch.registry import Registry
from blastwatch.signing import PROMOTER, TRAINER
from blastwatch.verification import verify
from tests.keys import add_key, private_of
from tests.unit.blastwatch.test_tampering import copy_signed, forged

NAME = "blastwatch"


@pytest.fixture
def crowned(people, register):
    """The promoter's registry: version 1 is champion, version 2 candidate."""
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    register(tom)
    return pat


def faults(registry):
    return [str(fault) for fault in verify(registry, files=False).faults]


def test_an_older_word_about_the_same_version_is_found_and_put_right(crowned, client):
    """It would hide that the version serves in spite of a gate, and who stands for that."""
    older = client.get_registered_model(NAME).tags[ALIAS_TAG + "champion"]
    promotion.promote(crowned, "2", reason="", cells=None).check()
    promotion.rollback(crowned, reason="the scanner")
    proven = crowned.proven("champion")
    client.set_registered_model_tag(NAME, ALIAS_TAG + "champion", older)
    assert crowned.proven("champion") != proven
    [fault] = faults(crowned)
    assert fault.startswith("entry 5: MLflow holds entry 2 as the last word about champion, which this one is")
    promotion.restore(crowned, reason="somebody put back a tag")
    assert faults(crowned) == [] and crowned.proven("champion") == proven


def test_a_second_registration_hides_no_exchange(people, crowned, client):
    tom, _ = people
    copy_signed(client, "1", "2")
    row = forged(tom, tom.settings.signing_key, action="register", alias="candidate", version="1", who="tom")
    tom.ledger.append(row)
    with tom.writing(TRAINER):
        pass  # MLflow is told of it
    said = " ".join(faults(crowned))
    assert "entry 4: it registers version 1 with another digest than entry 1, which stands" in said
    assert "entry 1: it registered package" in said


def test_an_entry_of_another_models_history_is_no_part_of_this_one(crowned):
    [first, *_] = history.faults(crowned.ledger.rows(), crowned.trusted, model="sandbox")
    assert first == (1, "it is of the history of 'blastwatch', not of 'sandbox'")


def test_a_model_that_was_deleted_in_mlflow_has_another_remedy_than_a_restoration(crowned, client):
    for again in (False, True):
        if again:
            client.create_registered_model(NAME)
        else:
            client.delete_registered_model(NAME)
        for action in (promotion.rollback, promotion.restore):
            with pytest.raises(HistoryBroken, match=r"has 3 entries but MLflow has no version.*a backup.*MODEL_NAME"):
                action(crowned, reason="it is gone")
        said = " ".join(faults(crowned))
        assert "begin a new history with another BLASTWATCH_MODEL_NAME" in said and "registry restore" not in said


def test_a_model_that_was_deleted_after_its_first_entry_is_named_too(people, register, client):
    tom, pat = people
    register(tom)
    client.delete_registered_model(NAME)
    with pytest.raises(HistoryBroken, match="has 1 entries but MLflow has no version"):
        promotion.restore(pat, reason="")


@pytest.mark.parametrize("text", [
    json.dumps({"body": json.dumps({"number": 99}), "signature": ""}), json.dumps({"body": 5}), "[" * 100_000,
], ids=["forged", "no text", "deep"])  # fmt: skip
def test_a_head_that_nobody_signed_is_a_lost_one(crowned, client, text):
    """Else whoever may write a tag there could keep everybody from rolling back."""
    client.set_registered_model_tag(NAME, HEAD_TAG, text[:5000])
    [fault] = faults(crowned)
    assert fault.startswith(f"MLflow's tag {HEAD_TAG} does not say where the history ends") and "restore" in fault
    with pytest.raises(HistoryBroken, match="does not say where the history ends.*registry restore"):
        promotion.rollback(crowned, reason="")
    assert promotion.restore(crowned, reason="as it said").done and faults(crowned) == []


@pytest.fixture
def ana(lenient_settings, crowned, tmp_path):
    """A promoter whose key the crowned registry does not know."""
    theirs = tmp_path / "of-ana"
    shutil.copytree(crowned.trusted.folder, theirs)
    add_key(theirs, PROMOTER, "ana")
    return Registry(replace(lenient_settings, signing_key=private_of(theirs, "ana"), trusted_keys=theirs, actor="ana"))


@pytest.mark.parametrize("head_lost", [False, True])
def test_a_cut_tail_of_a_key_that_is_missing_here_is_not_written_over(crowned, ana, client, head_lost):
    promotion.promote(ana, "2", reason="", cells=None).check()
    with crowned.ledger._engine.begin() as connection:
        connection.exec_driver_sql("delete from history where number = 4")
    if head_lost:
        client.delete_registered_model_tag(NAME, HEAD_TAG)
        expected = "not what was signed"
    else:
        expected = r"ends with entry 3 but MLflow was told of entry 4: .*cut, or the key of .*BLASTWATCH_TRUSTED_KEYS"
        [first, *_] = verify(crowned, files=False).faults
        assert first.entry == 4 and re.match(f"The history {expected}", first.fault)
    for action in (promotion.rollback, promotion.restore)[head_lost:]:
        with pytest.raises(HistoryBroken, match=expected):
            action(crowned, reason="")
    assert len(crowned.records()) == 3 and crowned.store.model().aliases["champion"] == "2"


@pytest.mark.parametrize("change", [{"signature": ""}, {"signature": "AAAA"}, {"signature": "-"}])
def test_a_head_that_no_key_signed_is_a_lost_one_whatever_key_it_names(crowned, ana, client, change):
    text = told_of_four(ana) | change
    client.set_registered_model_tag(NAME, HEAD_TAG, json.dumps(text))
    assert promotion.restore(crowned, reason="as it said").done and faults(crowned) == []


def test_a_head_with_a_known_key_that_did_not_sign_it_is_a_lost_one(crowned, ana, client):
    said = told_of_four(ana)
    body = said["body"].replace(json.loads(said["body"])["key"], crowned.records()[-1].key)
    client.set_registered_model_tag(NAME, HEAD_TAG, json.dumps(said | {"body": body}))
    assert promotion.restore(crowned, reason="as it said").done and faults(crowned) == []


def told_of_four(registry):
    """A head of an entry 4 as a registry would write it, which is in no history."""
    row = forged(registry, registry.settings.signing_key, action="restore", alias="", version="1", who="ana")
    return {"body": row.body, "signature": row.signature}


def test_a_head_whose_signature_was_exchanged_names_its_remedy(crowned, client):
    said = json.loads(client.get_registered_model(NAME).tags[HEAD_TAG])
    client.set_registered_model_tag(NAME, HEAD_TAG, json.dumps(said | {"signature": "AAAA"}))
    [fault] = faults(crowned)
    assert fault.startswith("what MLflow mirrors: ") and fault.endswith("Put it back: blastwatch registry restore")
    assert promotion.restore(crowned, reason="as it said").done and faults(crowned) == []


def test_a_challenger_that_was_deleted_in_mlflow_leaves_nothing_to_put_back(crowned, client):
    promotion.challenge(crowned, "2", reason="")
    client.delete_model_version(NAME, "2")
    [fault] = faults(crowned)
    assert fault.startswith("entry 3: version 2 is no longer in MLflow, where it was deleted: a backup of")
    assert fault.endswith("nothing else can or need be done")
    assert not promotion.restore(crowned, reason="").done
    with pytest.raises(AliasNotSet, match="is the challenger in .* Make one: blastwatch registry challenge VERSION"):
        promotion.withdraw(crowned, reason="")


@pytest.mark.parametrize("error", [RegistryUnreachable("No MLflow server answers."), NotPermitted("pat may not.")])
def test_a_registry_that_cannot_be_looked_at_is_not_called_broken(crowned, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(ModelStore, "version", refuse)
    with pytest.raises(type(error)):
        verify(crowned)
