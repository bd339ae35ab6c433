"""What `blastwatch registry history` says of gates that nobody was judged by, and where nothing happened yet."""

import json

import pytest
from click.testing import CliRunner

from blastwatch import promotion
from blastwatch.entry import Entry
from blastwatch.gate import OFF
from blastwatch.registry_commands import _told, registry

TOLD = {
    "at": "2026-11-29T00:00:00+00:00", "version": "4", "digest": "a", "since": "2026-11-28", "action": "promote",
    "by": "ana", "why": "", "promoted": {"time": "2026-11-28", "by": "ana", "why": ""}, "data_digest": "d",
    "split_digest": "s", "git_commit": "", "overridden": ["card"],
}  # fmt: skip
PASSED = {"name": "digests", "passed": True, "value": "ok", "limit": "as sealed"}
UNASKED = {"name": "sensitivity", "passed": True, "value": 0.0, "limit": OFF}
FAILED = {"name": "card", "passed": False, "value": "missing", "limit": "there"}


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ([PASSED, PASSED], "Gates     2 of 2 passed"),
        ([PASSED, UNASKED, UNASKED], "Gates     1 of 1 passed; off by policy: sensitivity, sensitivity"),
        ([PASSED, UNASKED, FAILED], "Gates     1 of 2 passed; off by policy: sensitivity"),
    ],
)
def test_a_gate_that_is_off_was_not_passed(gates, said):
    assert said in _told(TOLD | {"gates": gates})


def test_an_empty_history_says_so_and_prints_nothing(settings, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    found = CliRunner().invoke(registry, ["history"])
    assert (found.exit_code, found.stdout) == (0, "") and "blastwatch registry register" in found.stderr
    asked = CliRunner().invoke(registry, ["history", "--json"])
    assert asked.stdout.strip() == "[]" and asked.stderr == ""


@pytest.mark.parametrize(("gone", "said"), [
    (["3", "2"], "Version 1 is the champion again (stepped over versions 3, 2, deleted in MLflow). Services"),
    (["2"], "Version 1 is the champion again (stepped over version 2, deleted in MLflow). Services"),
    ([], "Version 1 is the champion again. Services"),
])  # fmt: skip
def test_a_rollback_says_what_it_stepped_over(monkeypatch, gone, said):
    entry = Entry(version="1", digest="a", run_id="", created="", synthetic=True, registered_by="tester")
    done = promotion.Rollback(entry=entry, stepped_over=gone)
    monkeypatch.setattr(promotion, "rollback", lambda *_, **__: done)
    assert CliRunner().invoke(registry, ["rollback"]).stdout.startswith(said)
    printed = json.loads(CliRunner().invoke(registry, ["rollback", "--json"]).stdout)
    assert (printed["version"], printed["stepped_over"]) == ("1", gone)
