"""What a promotion goes by where somebody was at MLflow's aliases and tags, or acts under two names."""

from dataclasses import replace

import pytest

from blastwatch import promotion, signing
from blastwatch.errors import AliasMoved, UsageError
from blastwatch.registry import Registry
from tests.policies import lenient

NAME = "blastwatch"


@pytest.fixture
def strong_after_weak(people, register):
    """Version 2 is champion, much better than version 1 before it and than the candidate, version 3."""
    tom, pat = people
    for number, right in (("1", 0.6), ("2", 0.95)):
        register(tom, right)
        promotion.promote(pat, number, reason="", cells=None).check()
    register(tom, 0.6)
    return pat


def not_inferior(found):
    """The one gate that a version failed."""
    assert not found.promoted and [gate.name for gate in found.gates if not gate.passed] == ["non-inferiority"]
    return found.gates[-1]


def test_a_champion_whose_tags_say_another_package_is_not_compared_with_as_that(strong_after_weak, client):
    pat = strong_after_weak
    weak, strong = (client.get_model_version(NAME, number).tags["blastwatch.digest"] for number in ("1", "2"))
    client.set_model_version_tag(NAME, "2", "blastwatch.digest", weak)
    gate = not_inferior(promotion.promote(pat, "3", reason="", cells=None))
    assert f"became champion as package {strong[:12]} but MLflow has it as {weak[:12]}" in gate.value


def test_a_champion_whose_alias_is_moved_while_the_gates_look_is_compared_with_all_the_same(
    strong_after_weak, client, monkeypatch
):
    pat, real = strong_after_weak, promotion.check_alias

    def then_moved(*known):
        real(*known)
        client.set_registered_model_alias(NAME, "champion", "1")

    monkeypatch.setattr(promotion, "check_alias", then_moved)
    assert "against version 2: " in not_inferior(promotion.promote(pat, "3", reason="", cells=None)).note


def test_an_alias_that_was_moved_by_hand_names_no_version_to_promote(people, register, client):
    tom, pat = people
    for _ in range(2):
        register(tom, 0.9)
    promotion.challenge(pat, "2", reason="")
    for alias in ("candidate", "challenger"):
        client.set_registered_model_alias(NAME, alias, "1")
    before = pat.ledger.rows()
    for alias, step in (
        ("candidate", lambda: promotion.promote(pat, "candidate", reason="better", cells=None)),
        ("candidate", lambda: promotion.judge(pat, "models:/blastwatch@candidate", cells=None)),
        ("candidate", lambda: promotion.challenge(pat, "candidate", reason="")),
        ("challenger", lambda: promotion.withdraw(pat, reason="")),
    ):
        with pytest.raises(AliasMoved, match=f"{alias} stands on version 1 but the history says 2.* registry restore"):
            step()
    assert pat.ledger.rows() == before
    promotion.restore(pat, reason="by hand")
    assert promotion.promote(pat, "candidate", reason="better", cells=None).version == "2"


def test_two_persons_do_not_sign_with_one_key(people, register, tmp_path):
    """Under which name somebody acts nobody checks where there are no accounts."""
    tom, pat = people
    (tmp_path / "strict").mkdir()
    strict = replace(pat.settings, policy=lenient(tmp_path / "strict", two_person=True))
    register(pat)
    sam = Registry(replace(strict, actor="sam"))
    for found in (promotion.judge(sam, "1", cells=None), promotion.promote(sam, "1", reason="", cells=None)):
        [gate] = [gate for gate in found.gates if not gate.passed]
        assert (gate.name, gate.value) == ("two-persons", "registered by pat, promoted by sam, both with one key")
    with pytest.raises(UsageError, match="lets nobody override the gate 'two-persons'"):
        promotion.promote(sam, "1", reason="x", cells=None, override=["two-persons"])
    register(tom)
    keyless = Registry(replace(strict, actor="sam", signing_key=None))
    assert promotion.judge(keyless, "2", cells=None).passed
    assert promotion.promote(Registry(strict), "2", reason="", cells=None).promoted


def test_a_check_is_by_the_key_that_would_sign(people, register, tmp_path):
    """Also by the one under home, and also while a colleague's file cannot be read."""
    _, pat = people
    (tmp_path / "strict").mkdir()
    strict = replace(pat.settings, policy=lenient(tmp_path / "strict", two_person=True), signing_key=None)
    trusted = pat.settings.trusted_keys
    (trusted / "promoter" / "lab.pem").write_text(signing.public_pem(strict))
    register(Registry(replace(strict, actor="tom")))
    sam = Registry(replace(strict, actor="sam"))
    expected = [False]

    def two():
        return [gate.passed for gate in promotion.judge(sam, "1", cells=None).gates if gate.name == "two-persons"]

    assert two() == expected
    (trusted / "trainer" / "kim.pem").write_text("")
    assert two() == expected
    (strict.keys / "signing.pem").unlink()
    assert two() == [True] and not (strict.keys / "signing.pem").exists(), "to ask makes no key"
