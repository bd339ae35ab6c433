"""Kill -9 at every step of every action: afterwards it is done or not done, and a second try completes it."""

import shutil
from dataclasses import replace
from datetime import datetime, timedelta

import mlflow
import pytest

from blastwatch import history, promotion
from blastwatch.errors import HistoryBroken, NotPermitted, RegistryBusy, RegistryUnreachable, UsageError
from blastwatch.model_store import ModelStore
from blastwatch.recording import ALIAS_TAG, HEAD_TAG
from blastwatch.registry import Registry
from blastwatch.signing import PROMOTER, TRAINER
from blastwatch.verification import verify
from tests.killing import act, die_at
from tests.packages import make_package

NAME = "blastwatch"
MOST_STEPS = 40


@pytest.fixture
def two_versions(lenient_settings, new_run, tmp_path):
    """Version 1 is champion, version 2 candidate."""
    registry = Registry(lenient_settings)
    for number in (1, 2):
        folder = make_package(tmp_path / f"p{number}", run_id=new_run(), right=0.9, seed=number)
        registry.register(folder)
        if number == 1:
            promotion.promote(registry, "1", reason="first", cells=None).check()
    registry.ledger.close()
    return lenient_settings


def copies(settings, tmp_path):
    """Homes with the same content, one after the other; the artifacts are shared, nobody writes there."""
    for number in range(MOST_STEPS):
        home = tmp_path / f"copy{number}"
        shutil.copytree(settings.home, home, ignore=shutil.ignore_patterns("mlartifacts"))
        yield number, replace(
            settings, home=home, tracking_uri=f"sqlite:///{home / 'mlflow.db'}",
            history_url=f"sqlite:///{home / 'history.db'}",
        )  # fmt: skip


def completed(registry, wanted):
    """Whether the process died when all was done."""
    return registry.store.model().aliases == wanted and not verify(registry, files=False).faults


def in_mlflow(settings):
    return mlflow.MlflowClient(settings.tracking_uri, settings.tracking_uri)


def moved_by_hand(registry):
    """Version 2 was challenger, champion, and was rolled back; then somebody was at the aliases and at a word."""
    promotion.challenge(registry, "2", reason="")
    promotion.promote(registry, "2", reason="", cells=None).check()
    promotion.rollback(registry, reason="")
    client = in_mlflow(registry.settings)
    client.set_registered_model_alias(NAME, "champion", "2")
    client.set_registered_model_alias(NAME, "candidate", "2")
    client.set_registered_model_tag(NAME, ALIAS_TAG + "champion", "{}")


def challenged(registry):
    promotion.challenge(registry, "2", reason="")


CASES = {
    "promote": (None, ("promote", "candidate"), {"champion": "2"}, {2}),
    "challenge": (None, ("challenge", "2"), {"champion": "1", "candidate": "2", "challenger": "2"}, {1}),
    "withdraw": (challenged, ("withdraw",), {"champion": "1", "candidate": "2"}, {1}),
    # Asked for again, aliases are put back again where the first time was interrupted before its end.
    "restore": (moved_by_hand, ("restore",), {"champion": "1"}, {1, 2}),
}
"""What comes before the action, the action, where the aliases are after it, and how many entries of it there may be."""


@pytest.mark.parametrize("case", sorted(CASES))
def test_killed_at_every_step(two_versions, tmp_path, case):
    prepare, call, wanted, entries = CASES[case]
    untouched = Registry(two_versions)
    if prepare is not None:
        prepare(untouched)
    known, before = len(untouched.records()), history.aliases(untouched.records())
    untouched.ledger.close()
    told = set()
    for step, settings in copies(two_versions, tmp_path):
        died = die_at(step, settings, *call)
        registry = Registry(settings)
        told.add(len(registry.records()))
        # What a service would take: the old one or the new one, or it waits for the rest of the action.
        assert history.aliases(registry.records()) in (before, wanted)
        if died and not completed(registry, wanted):
            act(registry, *call)
        assert registry.store.model().aliases == history.aliases(registry.records()) == wanted
        assert words(registry) == history.words(registry.records())
        assert [record.action for record in registry.records()].count(call[0]) in entries
        assert verify(registry, files=False).faults == []
        if not died:
            break
    assert not died and step > 4
    assert told == {known, known + 1}, "some died before the entry was written, some after it"


def words(registry):
    """The words that stand at MLflow's aliases."""
    model = registry.store.model()
    return {alias: registry.word(model, alias) for alias in history.ALIASES if ALIAS_TAG + alias in model.tags}


def test_a_killed_registration_registers_once(two_versions, new_run, tmp_path):
    folder = make_package(tmp_path / "p3", run_id=new_run(), seed=3)
    for step, settings in copies(two_versions, tmp_path):
        died = die_at(step, settings, "register", str(folder))
        registry = Registry(settings)
        act(registry, "register", str(folder))
        assert [entry.version for entry in registry.entries()] == ["3", "2", "1"]
        assert registry.store.model().aliases == {"champion": "1", "candidate": "3"}
        assert verify(registry, files=False).faults == []
        if not died:
            break
    assert not died


def test_a_killed_rollback_is_completed(two_versions, tmp_path):
    promotion.promote(Registry(two_versions), "2", reason="", cells=None).check()
    for step, settings in copies(two_versions, tmp_path):
        died = die_at(step, settings, "rollback")
        registry = Registry(settings)
        if died and not completed(registry, {"champion": "1"}):
            act(registry, "rollback")
        assert registry.store.model().aliases == {"champion": "1"}
        assert verify(registry, files=False).faults == []
        if not died:
            break
    assert not died


def test_an_unfinished_action_is_reported_and_finished_by_the_next(two_versions):
    assert die_at(1, two_versions, "promote", "2")
    registry = Registry(two_versions)
    faults = verify(registry, files=False).faults
    assert (4, True) in [(fault.entry, "interrupted" in fault.fault) for fault in faults]
    assert promotion.promote(registry, "2", reason="again", cells=None).resumed
    assert verify(registry, files=False).faults == []


def test_a_second_writer_waits_and_is_told(two_versions, capsys):
    first, second = Registry(two_versions), Registry(replace(two_versions, lock_seconds=0.2))
    with first.writing("promoter"), pytest.raises(RegistryBusy, match="did not finish within"):
        promotion.challenge(second, "2", reason="")
    assert capsys.readouterr().err == "Waiting for another writer of the registry, for 0.2 s at most.\n"


def test_no_entry_is_written_that_mlflow_cannot_be_told_of(two_versions):
    """On PostgreSQL it would stand between the history and every later writer."""
    long = Registry(replace(two_versions, actor="tom " + "x" * 4500))
    before = long.ledger.rows(), long.store.model()
    with pytest.raises(UsageError, match=r"at most 5000 characters, as MLflow's tags hold, but this one has 5\d{3}"):
        promotion.challenge(long, "2", reason="")
    assert (long.ledger.rows(), long.store.model()) == before
    promotion.challenge(Registry(two_versions), "2", reason='"' * 1000)
    assert verify(Registry(two_versions), files=False).faults == []


@pytest.mark.parametrize(("reason", "said"), [
    ("x" * 1001, "at most 1000 characters but got 1001"), ("f\udcfcr Station 3", r"in UTF-8 .* got '\\udcfc' in it"),
    ("fine\r 4  promote 2", r"without control characters but got '\\r' in it"),
    ("fine\u2028 4  promote 2", r"without control characters but got '\\u2028' in it"),
    ("red \x1b[31m", r"without control characters but got '\\x1b' in it"),
    ("tested \u202eno", r"read as it was signed but got '\\u202e' in it"),
    ("tested \u2066no", r"read as it was signed but got '\\u2066' in it"),
], ids=["long", "no text", "return", "line", "control", "turned", "apart"])  # fmt: skip
def test_a_reason_that_cannot_be_written_down_is_told_before_anything_is_judged(
    two_versions, monkeypatch, reason, said
):
    monkeypatch.setattr(promotion, "evaluate", lambda *_, **__: pytest.fail("it was judged"))
    registry = Registry(two_versions)
    with pytest.raises(UsageError, match=said):
        promotion.promote(registry, "2", reason=reason, cells=None)
    assert len(registry.records()) == 3


def test_another_history_is_refused(two_versions, tmp_path):
    other = replace(two_versions, history_url=f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(HistoryBroken, match="names another database"):
        promotion.challenge(Registry(other), "2", reason="")


@pytest.fixture
def refusing(monkeypatch):
    """Registries whose MLflow raises an error at a write."""

    def make(settings, name, error):
        def refuse(*_):
            raise error

        registry = Registry(settings)
        monkeypatch.setattr(registry.store, name, refuse)
        return registry

    return make


@pytest.mark.parametrize("error", [RegistryUnreachable("No MLflow server answers."), NotPermitted("pat may not.")])
def test_an_action_that_mlflow_was_not_told_of_says_what_became_of_it(two_versions, refusing, error):
    away = refusing(two_versions, "set_alias", error)
    with pytest.raises(type(error)) as raised:
        promotion.promote(away, "candidate", reason="", cells=None)
    assert str(raised.value) == (
        f"Entry 4 (promote 2) is in the history; MLflow was not told: {error} The next registry command that writes "
        "finishes it; to undo it, roll back then."
    )
    registry = Registry(two_versions)
    assert registry.store.model().aliases == {"champion": "1", "candidate": "2"}
    assert promotion.rollback(registry, reason="it said so").version == "1"
    assert [record.action for record in registry.records()[3:]] == ["promote", "rollback"]
    assert registry.store.model().aliases == {"champion": "1"} and verify(registry).faults == []


def test_a_refusal_that_mlflow_was_not_told_of_has_nothing_to_undo(two_versions, refusing):
    away = refusing(two_versions, "set_version_tag", RegistryUnreachable("No MLflow server answers."))
    with pytest.raises(RegistryUnreachable, match=r"Entry 4 \(challenge 2\) is in the history.* finishes it\.$"):
        promotion.challenge(away, "2", reason="")


def test_a_first_entry_that_mlflow_was_not_told_of_is_finished(settings, new_run, tmp_path, refusing):
    away = refusing(settings, "set_alias", RegistryUnreachable("No MLflow server answers."))
    with pytest.raises(RegistryUnreachable, match=r"Entry 1 \(register 1\) is in the history"):
        away.register(make_package(tmp_path / "package", run_id=new_run()))
    registry = Registry(settings)
    assert HEAD_TAG not in registry.store.model().tags
    with registry.writing(TRAINER) as writer:
        assert (writer.finished.action, writer.finished.number) == ("register", 1)
    assert registry.store.model().aliases == {"candidate": "1"} and verify(registry).faults == []


def lose_head(settings, text=None):
    if text is None:
        in_mlflow(settings).delete_registered_model_tag(NAME, HEAD_TAG)
    else:
        in_mlflow(settings).set_registered_model_tag(NAME, HEAD_TAG, text)


@pytest.mark.parametrize("kept", [None, 1], ids=["removed", "set back"])
def test_a_lost_head_is_no_interrupted_action_and_is_told_anew_by_a_restoration(two_versions, monkeypatch, kept):
    registry = Registry(two_versions)
    word = registry.store.version("1").tags["blastwatch.history.000001"]
    promotion.promote(registry, "2", reason="", cells=None).check()
    lose_head(two_versions, word if kept else None)
    moved, set_alias = [], ModelStore.set_alias
    monkeypatch.setattr(
        ModelStore, "set_alias", lambda self, *alias: moved.append(alias) or set_alias(self, *alias)
    )  # fmt: skip
    [fault] = verify(registry).faults
    assert fault.entry == (2 if kept else 1) and "blastwatch registry restore" in fault.fault
    for action in (lambda: promotion.rollback(registry, reason=""), lambda: registry.writing(TRAINER).__enter__()):
        with pytest.raises(HistoryBroken, match="history has 4 entries but the last that MLflow was told of is"):
            action()
    assert moved == [], "no entry is told again, so no service follows a champion of old"
    assert promotion.restore(registry, reason="somebody took the tag away").aliases == {"champion": "2"}
    assert moved == [("champion", "2")] and verify(registry).faults == []
    with registry.writing(PROMOTER) as writer:
        assert writer.finished is None


def test_a_head_that_cannot_be_read_names_its_remedy(two_versions):
    lose_head(two_versions, "garbage")
    registry = Registry(two_versions)
    with pytest.raises(HistoryBroken, match=f"{HEAD_TAG} does not say where .* cannot be read.*registry restore"):
        promotion.rollback(registry, reason="")
    promotion.restore(registry, reason="as it said")
    assert verify(registry).faults == []


def test_a_restoration_believes_no_history_whose_tail_was_cut_before_the_head_was_lost(two_versions):
    registry = Registry(two_versions)
    promotion.promote(registry, "2", reason="", cells=None).check()
    with registry.ledger._engine.begin() as connection:
        connection.exec_driver_sql("delete from history where number = 4")
    lose_head(two_versions)
    with pytest.raises(HistoryBroken, match="not what was signed"):
        promotion.restore(registry, reason="")
    assert registry.store.model().aliases == {"champion": "2"} and len(registry.records()) == 3


def test_a_restoration_believes_no_history_that_was_changed(two_versions):
    registry = Registry(two_versions)
    with registry.ledger._engine.begin() as connection:
        connection.exec_driver_sql("update history set signature = 'AAAA' where number = 1")
    lose_head(two_versions)
    with pytest.raises(HistoryBroken, match="not what was signed"):
        promotion.restore(registry, reason="")


def test_a_clock_that_went_back_puts_no_entry_before_the_one_it_follows(two_versions, monkeypatch):
    registry = Registry(two_versions)
    last = registry.records()[-1].time
    early = (datetime.fromisoformat(last) - timedelta(minutes=4)).isoformat(timespec="microseconds")
    monkeypatch.setattr(history, "now", lambda: early)
    promotion.promote(registry, "2", reason="", cells=None).check()
    assert registry.records()[-1].time == last
    moment, rows = history.parse_time(last), registry.ledger.rows()
    assert history.told(rows, moment)["version"] == "2"
    assert history.told(rows, moment - timedelta(microseconds=1))["version"] == "1"
    assert verify(registry).faults == []


def test_what_stands_as_the_history_says_is_not_restored(two_versions):
    registry = Registry(two_versions)
    before = registry.ledger.rows(), registry.store.model()
    found = promotion.restore(registry, reason="to be sure")
    assert (found.aliases, found.done) == ({"candidate": "2", "champion": "1"}, False)
    assert (registry.ledger.rows(), registry.store.model()) == before
    registry.store.set_alias("staging", "2")  # an alias of somebody's own
    assert not promotion.restore(registry, reason="to be sure").done


@pytest.mark.parametrize("harm", [
    lambda store: store.set_alias("champion", "2"), lambda store: store.delete_alias("candidate"),
    lambda store: store.set_alias("challenger", "1"), lambda store: store.set_tag("blastwatch.alias.champion", "x"),
    lambda store: store.set_tag("blastwatch.alias.candidate", store.model().tags["blastwatch.alias.champion"]),
], ids=["moved", "deleted", "set", "word", "another word"])  # fmt: skip
def test_what_does_not_stand_is_restored_and_written_down(two_versions, harm):
    registry = Registry(two_versions)
    harm(registry.store)
    assert promotion.restore(registry, reason="by hand").done and registry.records()[-1].action == "restore"
    assert verify(registry).faults == [] and not promotion.restore(registry, reason="").done
