"""Rolling back: to which version, past which that were deleted in MLflow, and with what it was promoted in spite of."""

import pytest

from blastwatch import history, promotion
from blastwatch.errors import AliasMoved, AliasNotSet, SignatureInvalid, UsageError
from blastwatch.registry import Registry
from blastwatch.verification import verify
from tests.policies import lenient

NAME = "blastwatch"


def faults(registry):
    return " ".join(map(str, verify(registry).faults))


def crown_one_after_another(people, register, versions):
    """Each was champion, the last is; returns the promoter's registry."""
    tom, pat = people
    for version in versions:
        register(tom, 0.9)
        promotion.promote(pat, version, reason="", cells=None).check()
    return pat


def test_a_version_without_its_signature_is_not_rolled_back_to(people, register, client):
    pat = crown_one_after_another(people, register, ("1", "2"))
    client.set_model_version_tag(NAME, "1", "blastwatch.signature", "AAAA")
    with pytest.raises(SignatureInvalid, match="Version 1 was not registered by anybody trusted"):
        promotion.rollback(pat, reason="")
    assert pat.proven("champion").version == "2"


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


def test_a_candidate_that_was_deleted_in_mlflow_stops_no_writer(people, register, client):
    tom, pat = people
    register(tom)
    promotion.promote(pat, "1", reason="", cells=None).check()
    register(tom)
    client.delete_model_version(NAME, "2")
    assert "version 2 is no longer in MLflow" in faults(pat)
    assert promotion.restore(pat, reason="").aliases == {"champion": "1"}
    assert register(tom).version == "3"
    promotion.promote(pat, "3", reason="", cells=None).check()
    assert promotion.rollback(pat, reason="").version == "1"


def test_from_a_champion_that_was_deleted_in_mlflow_there_is_a_way_back(people, register, client):
    pat = crown_one_after_another(people, register, ("1", "2"))
    client.delete_model_version(NAME, "2")
    assert promotion.rollback(pat, reason="it is gone").version == "1"
    assert pat.proven("champion").version == "1"
    gone = "entry 3: version 2 is no longer in MLflow, where it was deleted: a backup of MLflow's store alone brings it"
    assert faults(pat) == f"{gone} back, and nothing else can or need be done"


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


def test_a_rollback_steps_over_champions_that_were_deleted_in_mlflow(people, register, client):
    pat = crown_one_after_another(people, register, ("1", "2", "3", "4", "5"))
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
    pat = crown_one_after_another(people, register, ("1", "2"))
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


REASONED = {
    "promote": lambda pat, reason: promotion.promote(pat, "3", reason=reason, cells=None).check(),
    "rollback": lambda pat, reason: promotion.rollback(pat, reason=reason),
    "challenge": lambda pat, reason: promotion.challenge(pat, "3", reason=reason),
    "withdraw": lambda pat, reason: promotion.withdraw(pat, reason=reason),
    "restore": lambda pat, reason: promotion.restore(pat, reason=reason),
}


def test_where_the_policy_wants_a_reason_no_alias_moves_without_one(people, register, client, tmp_path):
    pat = crown_one_after_another(people, register, ("1", "2"))
    register(people[0])
    lenient(tmp_path, require_reason=True)
    for number, action in enumerate(("challenge", "withdraw", "promote", "rollback", "restore"), start=6):
        if action == "restore":
            client.delete_registered_model_alias(NAME, "champion")
        before = len(pat.records())
        for reason in ("", "  "):
            with pytest.raises(UsageError, match=r"Expected --reason TEXT: the policy says require_reason"):
                REASONED[action](pat, reason)
        assert len(pat.records()) == before == number - 1
        REASONED[action](pat, "as was agreed")
        assert (pat.records()[-1].action, pat.records()[-1].why) == (action, "as was agreed")
    assert pat.proven("champion").version == "2" and not promotion.restore(pat, reason="").done
