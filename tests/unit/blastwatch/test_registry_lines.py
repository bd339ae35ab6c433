"""`blastwatch registry` before a person: lines that are what they seem, and no silence of minutes."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from blastwatch import history, promotion
from blastwatch.errors import AliasMoved, AliasNotSet, RegistryError, UsageError
from blastwatch.gate import OFF, at_least, table_of
from blastwatch.outcomes import Promotion
from blastwatch.policy import named
from blastwatch.registry import Registry
from blastwatch.registry_commands import registry
from blastwatch.registry_lines import promoted_line, served_lines, verified_line
from blastwatch.verification import Verification
from tests.policies import lenient

FORGED = '3  2026-11-30T09:00:00+00:00  prof.meyer  promote 2  champion 1 -> 2  "approved'
TOLD = {
    "at": "2026-11-29T00:00:00+00:00", "version": "4", "digest": "a", "since": "2026-11-28", "action": "promote",
    "by": "ana", "why": "", "promoted": {"time": "2026-11-28", "by": "ana", "why": ""}, "data_digest": "d",
    "split_digest": "s", "git_commit": "", "overridden": ["card"], "unsure": [],
}  # fmt: skip
PASSED = {"name": "digests", "passed": True, "value": "ok", "limit": "as sealed"}
UNASKED = {"name": "sensitivity", "passed": True, "value": 0.0, "limit": OFF}
FAILED = {"name": "card", "passed": False, "value": "missing", "limit": "there"}


@pytest.fixture
def run(lenient_settings, monkeypatch):
    """Calls `blastwatch registry` over a home."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(lenient_settings.home))
    monkeypatch.setenv("BLASTWATCH_POLICY", str(lenient_settings.policy))
    return lambda *words: CliRunner().invoke(registry, list(map(str, words)))


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ([PASSED, PASSED], "Gates     2 of 2 passed"),
        ([PASSED, UNASKED, UNASKED], "Gates     1 of 1 passed; off by policy: sensitivity, sensitivity"),
        ([PASSED, UNASKED, FAILED], "Gates     1 of 2 passed; off by policy: sensitivity"),
        (
            [FAILED | {"value": 0.1308, "limit": 0.1, "unit": "ECE", "bound": "at most", "note": "of 80"}],
            "          card: 0.1308 ECE (limit: at most 0.1); of 80",
        ),
    ],
)
def test_a_gate_that_is_off_was_not_passed(gates, said):
    assert said in served_lines(TOLD | {"gates": gates})


def test_no_reason_and_no_name_looks_like_another_entry(run, lenient_settings, register):
    found = Registry(replace(lenient_settings, actor=f"tom\n   {FORGED}"))
    register(found)
    promotion.promote(found, "1", reason=f'fine"\n   {FORGED}', cells=None).check()
    lines = run("history").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"] and r'"fine"\n   3  2026' in lines[1]
    at = run("history", "--at", found.records()[-1].time).stdout.splitlines()
    assert len(at) == 8 and r'"fine"\n   3  2026' in at[1]


def test_what_a_clock_that_ran_ahead_leaves_unsure_is_said(run, lenient_settings, register, monkeypatch):
    found = Registry(lenient_settings)
    with monkeypatch.context() as patched:
        patched.setattr(history, "now", lambda: (datetime.now(UTC) + timedelta(days=2)).isoformat())
        register(found)
    at = run("history", "--at", datetime.now(UTC).isoformat()).stdout
    assert "Nothing served at" in at and at.splitlines()[1].startswith("Unsure ") and at.endswith("wrote: 1\n")
    words = ("restore", "--clock", "--reason", "the first machine")
    assert "the clock of these entries ran ahead: 1. They count as of 20" in run(*words).output
    assert "Nothing was written about clocks." in run(*words).output and len(found.records()) == 2


def test_nothing_that_others_wrote_breaks_a_line(run, lenient_settings, register, client):
    found = Registry(replace(lenient_settings, actor=f"tom\n   {FORGED}"))
    register(found)
    plain = len(run("show", "1").stdout.splitlines())
    client.set_model_version_tag("blastwatch", "1", "blastwatch.data_digest", "abc\noverridden     none")
    shown = run("show", "1").stdout
    assert len(shown.splitlines()) == plain and r"abc\noverridden" in shown
    register(found)
    found.store.set_alias("candidate", "1")
    with pytest.raises(AliasMoved, match=r"tom\\n   3 "):
        found.proven("candidate")
    client.set_model_version_tag("blastwatch", "1", "blastwatch.digest", "abc\ndef")
    assert len(run("list").stdout.splitlines()) == 2
    assert table_of([at_least("card", 0.9, 0.5, "fine\nFAILED  parity")]).count("\n") == 0


@pytest.mark.parametrize(("given_up", "said"), [
    (["candidate", "challenger"], "seconds. It is no longer candidate and challenger; its comparison in shadow ends."),
    (["candidate"], "seconds. It is no longer candidate."), ([], "Services that follow it serve it within seconds."),
])  # fmt: skip
def test_a_promotion_says_what_the_version_is_no_more(given_up, said):
    assert promoted_line(Promotion(version="2", promoted=True, gates=[], given_up=given_up)).endswith(said)


def test_a_version_gives_up_its_aliases_when_it_is_promoted_and_a_rollback_says_where_it_comes_from(
    run, lenient_settings, register
):
    found = Registry(lenient_settings)
    register(found)
    promotion.promote(found, "1", reason="", cells=None).check()
    register(found)
    promotion.challenge(found, "2", reason="")
    result = promotion.promote(found, "2", reason="", cells=None)
    assert result.given_up == ["candidate", "challenger"] and result.to_dict()["given_up"] == result.given_up
    out = run("rollback").stdout
    assert out.endswith("It was version 2 until now. Forward again: blastwatch registry promote 2\n")
    with pytest.raises(AliasNotSet, match="A promotion takes it away. Name a number, or .* registry register DIR"):
        found.entry("candidate")
    with pytest.raises(AliasNotSet, match="registry challenge VERSION. .* shadow report --challenger NUMBER"):
        found.entry("challenger")


@pytest.mark.parametrize(("entries", "versions", "said"), [
    (1, 1, "1 entry and 1 version are"), (3, 1, "3 entries and 1 version are"), (2, 2, "2 entries and 2 versions are"),
])  # fmt: skip
def test_one_of_them_is_one(entries, versions, said):
    assert verified_line(Verification(entries=entries, versions=versions, faults=[])).startswith(said)


def test_several_gates_are_overridden_one_by_one(run, lenient_settings, register):
    register(Registry(lenient_settings))
    error = run("promote", "1", "--override", "reference-cells,latency", "--reason", "x").exception
    assert isinstance(error, UsageError) and "repeat --override for each. The policy allows: audit, split" in str(error)
    assert "two-persons" not in str(error)


def test_a_report_names_the_policy_that_is_known_here():
    gates = [replace(at_least("card", 0.9, 0.5), policy=digest * 16) for digest in "ab"]
    told = table_of(gates, {"a" * 16: "the default policy"}).splitlines()[-2:]
    assert told == ["Judged by the default policy (aaaaaaaaaaaa).", "Judged by policy bbbbbbbbbbbb."]
    assert (named(None), named(Path("p.yaml"))) == ("the default policy", "p.yaml")


def test_a_policy_that_cannot_be_asked_here_is_said_by_verify(run, lenient_settings, register, monkeypatch, tmp_path):
    register(Registry(lenient_settings))
    (tmp_path / "strict").mkdir()
    monkeypatch.setenv("BLASTWATCH_POLICY", str(lenient(tmp_path / "strict", two_person=True)))
    found = run("verify", "--no-files")
    assert found.exit_code == 0 and "rule of two persons was not examined" in found.stderr
    assert "BLASTWATCH_TRUSTED_KEYS" in json.loads(run("verify", "--no-files", "--json").stdout)["unexamined"][0]


@pytest.mark.parametrize(("word", "seconds"), [("list", "30"), ("register", None)])
def test_a_sick_mlflow_is_not_waited_for_in_silence(run, monkeypatch, tmp_path, word, seconds):
    """MLflow alone tries eight times, of 120 s each."""
    names, seen = ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"), []

    def look(*_):
        seen.append(tuple(os.environ.get(name) for name in names))
        raise RegistryError("It answers with errors.")

    for name in names:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Registry, "entries", look)
    monkeypatch.setattr(Registry, "register", look)
    monkeypatch.setattr("blastwatch.registry_commands.is_made", lambda _: True)
    words = (word, tmp_path) if word == "register" else (word,)
    run(*words)
    assert seen == [("2", seconds)] and not {name for name in names if name in os.environ}
    monkeypatch.setenv(names[0], "9")
    run(*words)
    assert seen[1] == ("9", seconds)
