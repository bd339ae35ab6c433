"""The commands of `blastwatch registry`: what they print, where, and the exit code that a script goes by."""

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from blastwatch import cli, promotion
from blastwatch.addresses import unproxied
from blastwatch.entry import Entry
from blastwatch.errors import RegistryError
from blastwatch.gate import GATES
from blastwatch.outcomes import Rollback
from blastwatch.policy import load_policy
from blastwatch.registry import Registry
from blastwatch.registry_commands import registry
from blastwatch.signing import pem_of
from blastwatch.verification import verify
from tests.keys import add_key, private_of
from tests.packages import make_package
from tests.policies import lenient


def test_an_empty_history_says_so_and_prints_nothing(settings, monkeypatch):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    found = CliRunner().invoke(registry, ["history"])
    assert (found.exit_code, found.stdout) == (0, "") and "blastwatch registry register" in found.stderr
    assert f"{settings.home}/mlflow.db (BLASTWATCH_HOME)" in found.stderr
    asked = CliRunner().invoke(registry, ["history", "--json"])
    assert asked.stdout.strip() == "[]" and asked.stderr == ""


@pytest.mark.parametrize("words", [
    "show 1", "check 1", "verify", "promote 1", "rollback", "challenge 1", "challenge --withdraw", "restore",
    "history --at 2026-01-02",
])  # fmt: skip
def test_no_command_that_registers_nothing_makes_a_registry_or_a_key(tmp_path, monkeypatch, words):
    """A home that was mistyped would look like a real one from then on."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "home"))
    found = CliRunner().invoke(registry, words.split())
    assert isinstance(found.exception, RegistryError)
    assert f"There is no registry in sqlite:///{tmp_path}/home/mlflow.db (BLASTWATCH_HOME)" in str(found.exception)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(("gone", "said"), [
    (["3", "2"], "Version 1 is the champion again (stepped over versions 3, 2, deleted in MLflow). Services"),
    (["2"], "Version 1 is the champion again (stepped over version 2, deleted in MLflow). Services"),
    ([], "Version 1 is the champion again. Services"),
])  # fmt: skip
def test_a_rollback_says_what_it_stepped_over(settings, monkeypatch, gone, said):
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    entry = Entry(version="1", digest="a", run_id="", created="", synthetic=True, registered_by="tester")
    done = Rollback(entry=entry, stepped_over=gone, before="4", forward=not gone)
    monkeypatch.setattr(promotion, "rollback", lambda *_, **__: done)
    out = CliRunner().invoke(registry, ["rollback"]).stdout
    assert out.startswith(said) and "It was version 4 until now." in out
    assert out.endswith("registry promote 4\n") is not gone, "it may have been deleted too"
    printed = json.loads(CliRunner().invoke(registry, ["rollback", "--json"]).stdout)
    assert (printed["version"], printed["stepped_over"]) == ("1", gone)


@pytest.fixture
def run(lenient_settings, monkeypatch, capfd):
    """Runs `blastwatch registry` as a shell does; gives exit code, standard output and standard error."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(lenient_settings.home))
    monkeypatch.setenv("BLASTWATCH_POLICY", str(lenient_settings.policy))
    monkeypatch.setenv("BLASTWATCH_ACTOR", lenient_settings.actor)
    for name, value in (cli.QUIET | unproxied({})).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["blastwatch", "registry", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        return code, *capfd.readouterr()

    return call


@pytest.fixture
def versions(lenient_settings, new_run, tmp_path):
    """The registry of a champion, version 1, and a worse candidate, version 2."""
    found = Registry(lenient_settings)
    for number, right in enumerate((0.9, 0.6), start=1):
        found.register(make_package(tmp_path / f"p{number}", run_id=new_run(), right=right, seed=number))
    promotion.promote(found, "1", reason="", cells=None).check()
    return found


def test_no_key_is_made_in_another_home_than_the_registrys(run, versions, tmp_path, monkeypatch):
    """With history and MLflow on a server nothing else of a home has to be there, and what a new key signed would stand
    in everybody's history."""
    settings, before = versions.settings, versions.ledger.rows()
    monkeypatch.setenv("BLASTWATCH_HOME", str(tmp_path / "mistyped"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.tracking_uri)
    for history in ("", settings.history_url):  # under home, and on a server
        monkeypatch.setenv("BLASTWATCH_HISTORY_URL", history)
        for words in ("promote 2", "rollback", "challenge 2", "challenge --withdraw", "restore"):
            code, _, error = run(*words.split())
            assert code != 0 and "Name the BLASTWATCH_HOME that is meant" in error, error
    assert not (tmp_path / "mistyped" / "keys").exists()
    assert versions.ledger.rows() == before


def test_a_refused_promotion_ends_with_its_exit_code_and_nobody_is_called_champion(run, versions):
    code, out, err = run("promote", "2")
    assert code == 3 and "FAILED" in out
    assert "Error: Version 2 was not promoted. non-inferiority: " in err
    code, printed, said = run("promote", "2", "--json")
    found = json.loads(printed)
    assert code == 3 and (found["version"], found["promoted"]) == ("2", False)
    assert [gate["name"] for gate in found["gates"] if not gate["passed"]] == ["non-inferiority"]
    assert "is the champion" not in out + err + printed + said
    assert versions.store.model().aliases == {"champion": "1", "candidate": "2"}


def test_a_promotion_ends_with_0_and_says_who_is_champion(run, versions):
    words = ("promote", "2", "--reason", "the scanner", "--override", "non-inferiority", "--json")
    code, out, err = run(*words)
    assert (code, json.loads(out)["promoted"]) == (0, True)
    assert "Version 2 is the champion." in err and err.rstrip().endswith("It is no longer candidate.")
    assert versions.proven("champion").overridden == ["non-inferiority"]


def test_a_registry_with_a_changed_file_ends_a_verification_with_its_exit_code(run, versions):
    assert run("verify")[:2] == (0, "3 entries and 2 versions are what was signed, and so are the aliases.\n")
    next(versions.store.download("1", None).rglob("card.md")).write_text("x")
    code, out, err = run("verify")
    assert (code, out) == (3, "") and "card.md was changed" in err
    code, out, err = run("verify", "--json")
    found = json.loads(out)
    assert code == 3 and not found["intact"] and "card.md was changed" in found["faults"][0]["fault"]
    code, out, _ = run("verify", "--no-files", "--json")
    assert code == 0 and json.loads(out) == {
        "entries": 3,
        "versions": 2,
        "faults": [],
        "unexamined": [],
        "intact": True,
    }


def test_a_challenge_is_taken_back(run, versions):
    assert run("challenge", "2", "--reason", "watch it")[:2] == (0, "Version 2 is the challenger.\n")
    assert versions.proven("challenger").version == "2"
    for words in ((), ("2", "--withdraw")):
        code, out, err = run("challenge", *words)
        assert (code, out) == (2, "") and "or --withdraw, and not both" in err
    code, out, _ = run("challenge", "--withdraw", "--reason", "enough", "--json")
    assert code == 0 and json.loads(out)["aliases"] == ["candidate"]
    assert (versions.records()[-1].action, versions.records()[-1].why) == ("withdraw", "enough")
    run("challenge", "2")
    assert run("challenge", "--withdraw")[:2] == (0, "Version 2 is no longer the challenger.\n")


def test_a_restoration_prints_where_the_aliases_are(run, versions):
    run("promote", "2", "--reason", "x", "--override", "non-inferiority")
    run("rollback")
    versions.store.set_alias("champion", "2")
    versions.store.set_alias("candidate", "1")
    assert run("verify", "--no-files")[0] == 3
    assert run("restore", "--reason", "by hand")[:2] == (
        0,
        "candidate: none (was version 1)\nchampion: version 1 (was version 2)\n",
    )
    assert versions.records()[-1].why == "by hand" and verify(versions).intact
    code, out, err = run("restore", "--json")
    assert code == 0 and (json.loads(out)["aliases"], json.loads(out)["changed"]) == ({"champion": "1"}, {})
    assert "Nothing to restore" in err and len(versions.records()) == 6, "the second one had nothing to do"


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["verify"], 1), (["verify", "--json"], 1), (["show", "champion"], 1), (["check", "1"], 1),
        (["list"], 0), (["history"], 0), (["list", "--json"], 0), (["history", "--json"], 0),
    ],
)  # fmt: skip
def test_where_no_registry_is_a_look_makes_none_and_says_where_it_looked(run, monkeypatch, tmp_path, words, ends):
    home = tmp_path / "elsewhere"
    monkeypatch.setenv("BLASTWATCH_HOME", str(home))
    code, out, err = run(*words)
    assert code == ends and not home.exists()
    if ends == 0 and "--json" in words:
        assert (out.strip(), err) == ("[]", "")
    else:
        assert out == "" and f"{home}/mlflow.db (BLASTWATCH_HOME)" in err and "registry register DIR" in err


def test_an_empty_registry_is_not_intact(run, lenient_settings):
    """Nothing in it was signed, and it is hardly the one that was meant."""
    for words in (("verify",), ("verify", "--json")):
        code, out, err = run(*words)
        assert (code, out) == (1, "") and f"Neither an entry nor a version is in {lenient_settings.tracking_uri}" in err


def left(registry):
    """All that a command could have written."""
    model = registry.store.model()
    return registry.ledger.rows(), model.aliases, model.tags, [version.tags for version in registry.store.versions()]


def test_the_gates_are_seen_without_a_move(run, versions):
    before = left(versions)
    code, out, err = run("check", "candidate")
    assert code == 3 and "Error: Version 2 does not pass. non-inferiority: " in err
    assert [line for line in out.splitlines() if line.startswith("FAILED")] == [
        line for line in out.splitlines() if "non-inferiority: " in line
    ]
    code, printed, _ = run("check", "2", "--json")
    found = json.loads(printed)
    assert code == 3 and (found["version"], found["passed"], len(found["gates"])) == ("2", False, len(GATES))
    assert left(versions) == before
    assert out.splitlines()[-1] == (
        f"Judged by {versions.settings.policy} ({load_policy(versions.settings.policy).digest[:12]})."
    )
    assert run("promote", "2")[1] == out, "the table is that of a promotion"


def test_a_version_that_passes_is_not_promoted_by_a_check(run, versions, lenient_settings, tmp_path):
    """The champion itself is asked too; and a policy is tried on a version before it is promoted under it."""
    before = left(versions)
    code, out, err = run("check", "1")
    assert code == 0 and "FAILED" not in out and "Version 1 passes all 8 gates that the policy judges. Nothing" in err
    lenient(tmp_path, non_inferiority={"margin": None})
    code, printed, err = run("check", "models:/blastwatch@candidate", "--json")
    assert code == 0 and json.loads(printed)["passed"] and "passes all 7 gates" in err
    assert left(versions) == before


def test_a_check_knows_no_version_that_is_not_there(run, versions):
    assert run("check", "7")[0] == 1 and run("check", "production")[0] == 2


def test_a_check_beside_a_forged_champion_is_none(run, versions):
    """It would be held against the wrong one."""
    versions.store.set_alias("champion", "2")
    code, out, err = run("check", "2")
    assert (code, out) == (1, "") and "behind the registry's back. Put it back: blastwatch registry restore" in err


def test_the_history_names_the_gates_that_a_refusal_failed(run, versions):
    run("promote", "2", "--reason", "it looks good")
    lines = run("history")[1].splitlines()
    assert lines[-1].endswith('refuse to promote 2  failed: non-inferiority  "it looks good"')
    assert not [line for line in lines[:-1] if "failed" in line]


@pytest.mark.parametrize("report", ["x", "[1]", '[{"name": "card"}]', "1"])
def test_a_refusal_whose_report_was_changed_names_what_to_do(run, versions, report):
    run("promote", "2")
    with versions.ledger._engine.begin() as connection:
        connection.exec_driver_sql("update history set gates = ? where number = 4", (report,))
    code, _, err = run("history")
    assert code == 3 and "report of entry 4 of the history cannot be read" in err and "registry verify" in err


def test_a_champion_that_was_moved_behind_the_back_is_marked(run, versions):
    plain = run("list")[1]
    assert "the history says" not in plain + run("show", "champion")[1]
    assert json.loads(run("show", "champion", "--json")[1])["moved"] == {}
    versions.store.set_alias("champion", "2")
    marked = "candidate, champion (the history says 1: restore)"
    assert marked in run("list")[1] and f"aliases        {marked}\n" in run("show", "champion")[1]
    assert json.loads(run("show", "champion", "--json")[1])["moved"] == {"champion": "1"}
    assert "Put it back: blastwatch registry restore" in run("verify", "--no-files")[2]
    versions.store.set_alias("challenger", "1")
    assert "challenger (the history says none: restore)" in run("show", "1")[1]
    run("restore")
    assert run("list")[1] == plain


def test_a_version_is_shown_in_words(run, versions):
    lines = dict(line.split(maxsplit=1) for line in run("show", "1")[1].splitlines())
    assert (lines["aliases"], lines["metrics"], lines["synthetic"]) == ("champion", "weighted_f1 0.900", "yes")
    assert (lines["overridden"], lines["git_commit"]) == ("-", "-")
    assert not {"word", "moved"} & lines.keys() and not {"[", "{", "None"} & set(" ".join(lines.values()).split())


def test_a_key_that_is_not_trusted_is_one_line(run, versions, lenient_settings):
    """As on the day when a team brings its own keys and leaves the embedded one out."""
    (lenient_settings.keys / "promoter" / "embedded.pem").unlink()
    add_key(lenient_settings.keys, "promoter", "pat")
    said = run("verify", "--no-files")[2].partition("Error: The registry is not what its history says:\n")[2]
    first, *others = said.splitlines()
    assert first.startswith("  entries 1 to 3: Signed by the key ") and first.endswith("there as ROLE/NAME.pem.")
    assert others and not [line for line in others if "entries" in line or first.partition(": ")[2] == line.strip()]
    found = json.loads(run("verify", "--no-files", "--json")[1])
    assert [fault["entry"] for fault in found["faults"][:3]] == [1, 2, 3], "where a program reads, one by one"


def test_a_team_trusts_what_was_signed_before_by_the_key_of_old(versions, lenient_settings, tmp_path):
    """The way of docs/promotion.md from one machine to several persons."""
    trusted = tmp_path / "trusted"
    add_key(trusted, "promoter", "pat")
    team = Registry(replace(lenient_settings, trusted_keys=trusted, signing_key=private_of(trusted, "pat")))

    def signed(ref):
        return next(gate for gate in promotion.judge(team, ref, cells=None).gates if gate.name == "signature").passed

    assert not verify(team, files=False).intact and not signed("2")
    embedded = (lenient_settings.keys / "promoter" / "embedded.pem").read_bytes()
    (trusted / "promoter" / "before.pem").write_bytes(embedded)
    (lenient_settings.keys / "signing.pem").unlink()
    assert verify(team, files=False).intact and signed("2") and team.proven("champion").version == "1"
    promotion.promote(team, "2", reason="ours", cells=None, override=["non-inferiority"]).check()
    assert verify(team).intact


def test_a_new_key_is_made_once(run, tmp_path):
    file = tmp_path / "pat.pem"
    code, out, _ = run("key", "--new", file)
    assert (code, out) == (0, pem_of(file)) and "PUBLIC KEY" in out
    code, out, err = run("key", "--new", file)
    assert (code, out) == (2, "") and "is there already" in err


def test_a_public_key_is_written_where_it_is_trusted(run, tmp_path):
    """Not by the shell, which empties the file of the first one before the second command is refused."""
    file, trusted = tmp_path / "pat.pem", tmp_path / "trusted" / "promoter" / "pat.pem"
    code, out, err = run("key", "--new", file, "--out", trusted)
    assert (code, out) == (0, "")
    assert f"The private half is in {file}:" in err and f"The public half is in {trusted}:" in err
    assert trusted.read_text() == pem_of(file) and trusted.stat().st_mode & 0o777 == 0o644
    for again in (("--new", file), ("--new", tmp_path / "other.pem"), ()):
        code, out, err = run("key", *again, "--out", trusted)
        assert (code, out) == (2, "") and "is there already" in err
    assert trusted.read_text() == pem_of(file) and not (tmp_path / "other.pem").exists()


def test_a_public_key_that_was_emptied_is_written_anew(run, tmp_path):
    trusted = tmp_path / "pat.pem"
    trusted.write_text("")
    assert run("key", "--out", trusted)[:2] == (0, "") and "PUBLIC KEY" in trusted.read_text()


def test_one_file_does_not_hold_both_halves(run, tmp_path, lenient_settings):
    (tmp_path / "link.pem").symlink_to(tmp_path / "both.pem")
    private = lenient_settings.keys / "signing.pem"
    for words in (("--new", tmp_path / "both.pem", "--out", tmp_path / "link.pem"), ("--out", private)):
        code, out, err = run("key", *words)
        assert (code, out) == (2, "") and "Expected another file for the public key" in err
    assert not (tmp_path / "both.pem").exists() and not private.exists()


@pytest.mark.parametrize("unwritable", ["--new", "--out"])
def test_a_key_whose_half_cannot_be_written_is_not_made(run, tmp_path, unwritable):
    files = {"--new": tmp_path / "pq.pem", "--out": tmp_path / "public.pem", unwritable: Path("/proc/x/pq.pem")}
    code, out, err = run("key", *(word for pair in files.items() for word in pair))
    assert (code, out) == (2, "") and "Expected files that can be written" in err and "/proc/x" in err
    assert list(tmp_path.glob("*.pem")) == []


def test_verify_says_a_trusted_key_that_cannot_be_read(run, versions, lenient_settings):
    """What it signed would look like a fault of the history; to look at the rest it is left out, and that is said."""
    (lenient_settings.keys / "promoter" / "kim.pem").write_text("")
    code, out, err = run("verify", "--no-files")
    assert (code, out) == (2, "") and "Error: Expected a public key" in err and "kim.pem" in err
    assert run("list")[0] == 0 and Registry(lenient_settings).proven("champion").version == "1"


def test_the_history_names_the_key_beside_whoever_goes_by_another_name(run, people, register, monkeypatch):
    tom, pat = people
    register(tom)
    register(Registry(replace(pat.settings, actor="sam")))
    assert " (key of " not in run("history")[1], "without a team's keys one key is everybody's"
    keys = pat.settings.trusted_keys
    monkeypatch.setenv("BLASTWATCH_TRUSTED_KEYS", str(keys))
    first, second = run("history")[1].splitlines()
    assert "  tom  register 1" in first and "  sam (key of pat)  register 2" in second
    (keys / "promoter" / "pat.pem").unlink()
    assert "  sam  register 2" in run("history")[1], "whose key it is nobody knows any more"
