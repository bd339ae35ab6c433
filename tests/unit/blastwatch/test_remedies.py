"""What `verify` finds that MLflow alone would hide, and that what it names as the remedy is one."""

import json

import pytest

from blastwatch import history, promotion
from blastwatch.errors import AliasNotSet, HistoryBroken, NotPermitted, RegistryUnreachable
from blastwatch.model_store import ModelStore
from blastwatch.recording import ALIAS_TAG, HEAD_TAG
from blastwatch.signing import TRAINER
from blastwatch.verification import verify
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


def test_a_challenger_that_was_deleted_in_mlflow_leaves_nothing_to_put_back(crowned, client):
    promotion.challenge(crowned, "2", reason="")
    client.delete_model_version(NAME, "2")
    assert faults(crowned) == ["entry 3: version 2 is no longer in MLflow"]
    assert not promotion.restore(crowned, reason="").done
    with pytest.raises(AliasNotSet, match="carries the alias challenger"):
        promotion.withdraw(crowned, reason="")


@pytest.mark.parametrize("error", [RegistryUnreachable("No MLflow server answers."), NotPermitted("pat may not.")])
def test_a_registry_that_cannot_be_looked_at_is_not_called_broken(crowned, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(ModelStore, "version", refuse)
    with pytest.raises(type(error)):
        verify(crowned)
