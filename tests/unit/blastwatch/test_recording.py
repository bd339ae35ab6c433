"""Kill -9 at every step of every action: afterwards it is done or not done, and a second try completes it."""

import shutil
from dataclasses import replace

import pytest

from blastwatch import history, promotion
from blastwatch.errors import HistoryBroken, RegistryBusy
from blastwatch.registry import Registry
from blastwatch.verification import verify
from tests.killing import act, die_at
from tests.packages import make_package

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


CASES = {
    "promote": (("promote", "candidate"), {"champion": "2"}),
    "challenge": (("challenge", "2"), {"champion": "1", "candidate": "2", "challenger": "2"}),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_killed_at_every_step(two_versions, tmp_path, case):
    call, wanted = CASES[case]
    before = {"champion": "1", "candidate": "2"}
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
        assert [record.action for record in registry.records()].count(call[0]) == (2 if call[0] == "promote" else 1)
        assert verify(registry, files=False).faults == []
        if not died:
            break
    assert not died and step > 4
    assert told == {3, 4}, "some died before the entry was written, some after it"


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


def test_a_second_writer_waits_and_is_told(two_versions):
    first, second = Registry(two_versions), Registry(replace(two_versions, lock_seconds=0.2))
    with first.writing("promoter"), pytest.raises(RegistryBusy, match="did not finish within"):
        promotion.challenge(second, "2", reason="")


def test_another_history_is_refused(two_versions, tmp_path):
    other = replace(two_versions, history_url=f"sqlite:///{tmp_path / 'other.db'}")
    with pytest.raises(HistoryBroken, match="names another database"):
        promotion.challenge(Registry(other), "2", reason="")
