"""Who registers and promotes alone under a policy without the rule is found out by who reads under one with it."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from blastwatch import history, promotion
from blastwatch.errors import PromotionRefused, SignatureInvalid
from blastwatch.gate import Gate
from blastwatch.history import CHALLENGER, CHAMPION
from blastwatch.policy import load_policy
from blastwatch.registry import Registry
from blastwatch.signing import PROMOTER
from blastwatch.two_persons import two_persons_gate
from blastwatch.verification import verify
from tests.keys import add_key, private_of
from tests.policies import lenient

TODAY = datetime.now(UTC).date()


@pytest.fixture
def read(people, tmp_path):
    """The registry as somebody reads it whose own policy has the rule, from a day on."""
    _, pat = people

    def under(since=TODAY, registry=pat, overridable=(), **changed):
        folder = tmp_path / f"strict-{since}"
        folder.mkdir(exist_ok=True)
        policy = lenient(folder, two_person=True, two_person_since=since, overridable=[*overridable])
        return Registry(replace(registry.settings, policy=policy, **changed))

    return under


@pytest.fixture
def sam(people, tmp_path):
    """Who may promote too."""
    _, pat = people
    keys = tmp_path / "trusted"
    add_key(keys, PROMOTER, "sam")
    return Registry(replace(pat.settings, signing_key=private_of(keys, "sam"), actor="sam"))


def promoted(registry, version, *override):
    promotion.promote(registry, version, reason="in need", cells=None, override=override).check()


def faults(registry):
    return [str(fault) for fault in verify(registry, files=False).faults]


def test_a_champion_of_one_person_is_named_and_not_followed(people, register, read):
    _, pat = people
    register(pat)
    promoted(pat, "1")  # under a policy without the rule
    [fault] = faults(read())
    assert fault.startswith("entry 2: version 1 became champion by the key ")
    assert "alone, which registered it too, and the policy says two_person. Have somebody else promote" in fault
    with pytest.raises(SignatureInvalid, match=f"two persons behind a champion since {TODAY} but version 1 became"):
        read().proven(CHAMPION)
    assert faults(pat) == [] and pat.proven(CHAMPION).version == "1"


def test_what_stood_before_the_rule_stops_no_service(people, register, read):
    """A service that names no day goes on with all; `verify` names what it finds unless it is of before the day."""
    _, pat = people
    register(pat)
    promoted(pat, "1")
    later = TODAY + timedelta(days=2)
    assert read(None).proven(CHAMPION).version == read(later).proven(CHAMPION).version == "1"
    assert len(faults(read(None))) == 1 and faults(read(later)) == []


@pytest.mark.parametrize(("days", "stands"), [(10, True), (0, False)])
def test_a_champion_of_before_the_rule_may_be_gone_back_to(people, register, read, monkeypatch, days, stands):
    """Whoever goes back in need must not leave services on what they go back from; what one person put there since the
    rule began stands no better by that."""
    tom, pat = people
    now = history.now
    monkeypatch.setattr(history, "now", lambda: (datetime.now(UTC) - timedelta(days=days)).isoformat())
    register(pat)
    promoted(pat, "1")
    monkeypatch.setattr(history, "now", now)
    register(tom)
    promoted(read(), "2")
    promotion.rollback(read(), reason="it is bad")
    if stands:
        assert read().proven(CHAMPION).version == "1" and faults(read()) == []
    else:
        with pytest.raises(SignatureInvalid, match="version 1 became champion by the key"):
            read().proven(CHAMPION)
        assert len(faults(read())) == 1
    assert len(faults(read(None))) == 1


def test_an_override_that_the_policy_allows_is_followed(people, register, read):
    tom, pat = people
    register(pat)
    allowing = read(overridable=["two-persons"])
    promoted(allowing, "1", "two-persons")
    assert allowing.proven(CHAMPION).overridden == ["two-persons"] and faults(allowing) == []
    register(tom)
    promoted(allowing, "2")
    promotion.rollback(allowing, reason="")  # which keeps what the version was promoted in spite of
    assert allowing.proven(CHAMPION).version == "1" and faults(allowing) == []
    strict = read()
    assert len(faults(strict)) == 1
    with pytest.raises(SignatureInvalid, match="version 1 became champion"):
        strict.proven(CHAMPION)


def test_two_persons_are_two_keys(people, register, read):
    tom, pat = people
    register(tom)
    promoted(read(), "1")
    assert faults(read()) == [] and read().proven(CHAMPION).version == "1"
    assert faults(pat) == []


def test_one_key_for_everybody_is_nobodys(lenient_settings, register, read):
    """As without a folder of trusted keys: there nothing but names, which nobody checks, tells two persons apart."""
    registry = Registry(lenient_settings)
    register(registry)
    promoted(registry, "1")
    strict = read(registry=registry)
    assert strict.proven(CHAMPION).version == "1" and faults(strict) == []
    [said] = verify(strict, files=False).unexamined
    assert said.startswith("The rule of two persons was not examined, since everybody signs with one key here: give")
    assert verify(registry, files=False).unexamined == [], "of a policy without the rule"
    register(registry)
    other = Registry(replace(strict.settings, actor="mia"))
    with pytest.raises(PromotionRefused, match="two-persons: cannot be judged: .*BLASTWATCH_TRUSTED_KEYS"):
        promoted(other, "2")
    with pytest.raises(PromotionRefused, match="two-persons: cannot be judged: .*BLASTWATCH_TRUSTED_KEYS"):
        promotion.challenge(other, "2", reason="")


@pytest.mark.parametrize(("uri", "account", "passes"), [
    ("http://mlflow:5000", "mia", True), ("http://mlflow:5000", "root", False), ("http://mlflow:5000", "", False),
    ("sqlite:///mlflow.db", "mia", False),
])  # fmt: skip
def test_an_account_of_mlflow_is_a_name_that_somebody_checks(
    lenient_settings, register, read, monkeypatch, uri, account, passes
):
    registry = Registry(lenient_settings)
    register(registry)
    [registered] = registry.records()
    settings = replace(read(registry=registry).settings, tracking_uri=uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", account)
    policy = load_policy(settings.policy)
    gate = two_persons_gate(registered, "mia", policy, settings=settings, key=registered.key)
    assert gate.passed is passes and gate.value.startswith("cannot be judged") is not passes
    assert not two_persons_gate(registered, "tester", policy, settings=settings, key="").passed


def test_who_goes_back_to_their_own_version_needs_that_somebody_else_promoted_it(people, register, read, sam):
    tom, pat = people
    register(pat)
    promoted(sam, "1")
    register(tom)
    promoted(pat, "2")
    register(pat)
    promoted(pat, "3")  # alone
    with pytest.raises(SignatureInvalid, match="version 3 became champion"):
        read().proven(CHAMPION)
    promotion.rollback(pat, reason="")
    assert read().proven(CHAMPION).version == "2" and faults(read()) == []
    promotion.rollback(pat, reason="")
    found = read().proven(CHAMPION)  # its last word is Pat's, who registered it; Sam had promoted it
    assert (found.version, found.promoted_by) == ("1", "pat") and faults(read()) == []


def test_a_word_of_another_version_stands_for_nothing(people, register, read, sam, client):
    """A signed entry that is put at a version which it is not about."""
    tom, pat = people
    register(tom)
    promoted(sam, "1")
    register(pat)
    promoted(pat, "2")
    for name, text in client.get_model_version("blastwatch", "1").tags.items():
        if name.startswith("blastwatch.history."):
            client.set_model_version_tag("blastwatch", "2", f"{name}9", text)
    client.set_model_version_tag("blastwatch", "2", "blastwatch.history.000001", "nothing")
    with pytest.raises(SignatureInvalid, match="version 2 became champion"):
        read().proven(CHAMPION)


def test_a_challenger_of_one_person_is_refused_and_named(people, register, read):
    tom, pat = people
    register(pat)
    with pytest.raises(PromotionRefused, match="two-persons: registered by pat, promoted by pat, both with one key"):
        promotion.challenge(read(), "1", reason="")
    promotion.challenge(pat, "1", reason="")
    [fault] = faults(read())
    assert "version 1 became challenger by the key" in fault and "withdraw, then challenge" in fault
    with pytest.raises(SignatureInvalid, match="two persons behind a challenger"):
        read().proven(CHALLENGER)
    register(tom)
    assert promotion.challenge(read(), "2", reason="").aliases == ["candidate", CHALLENGER]
    assert read().proven(CHALLENGER).version == "2" and faults(read()) == []


def test_a_report_names_the_policy_by_which_it_was_judged(people, register, read):
    tom, pat = people
    register(tom)
    digest = load_policy(pat.settings.policy).digest
    assert {gate.policy for gate in promotion.judge(read(), "1", cells=None).gates} == {
        load_policy(read().settings.policy).digest
    }
    promoted(pat, "1")
    rows = json.loads(pat.ledger.rows()[-1].gates)
    assert {row["policy"] for row in rows} == {digest} and verify(pat).intact
    rows[0].pop("policy")  # as an earlier Blastwatch wrote it
    assert Gate.stored(rows[0]).policy == ""
