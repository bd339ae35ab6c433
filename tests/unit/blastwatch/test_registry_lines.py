"""`blastwatch registry` before a person: lines that are what they seem, and no silence of minutes."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from blastwatch import history, promotion
from blastwatch.errors import AliasMoved, RegistryError
from blastwatch.gate import at_least, table_of
from blastwatch.registry import Registry
from blastwatch.registry_commands import registry

FORGED = '3  2026-11-30T09:00:00+00:00  prof.meyer  promote 2  champion 1 -> 2  "approved'


@pytest.fixture
def run(lenient_settings, monkeypatch):
    """Calls `blastwatch registry` over a home."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(lenient_settings.home))
    return lambda *words: CliRunner().invoke(registry, list(map(str, words)))


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
