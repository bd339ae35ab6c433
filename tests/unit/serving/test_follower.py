"""What the follower fetches, what it refuses, and how often it tries."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest

from blastwatch.errors import (
    AliasMoved,
    AliasNotSet,
    NotPermitted,
    PackageError,
    PolicyError,
    RegistryError,
    RegistryUnreachable,
    SignatureInvalid,
    VersionNotFound,
)
from blastwatch.history import MOVE_SECONDS
from serving import follower
from serving.follower import FIRST_RETRY, Pursued, fetch
from serving.live import Served, hand_over, read_handover, source_written
from serving.live_folder import LiveFolder


class FakeRegistry:
    """Gives an entry or raises an error, and counts what it was asked for."""

    def __init__(self, settings, served):
        self.settings, self.package = settings, served.package
        self.says = served.entry
        self.fails = None
        self.fetched = []

    def proven(self, alias):
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def size_of(self, entry):
        return 1000

    def fetch_entry(self, entry, *, fresh=False):
        self.fetched.append(fresh)
        if self.fails:
            raise self.fails
        return self.package


@pytest.fixture
def clock(monkeypatch):
    at = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(follower.time, "monotonic", lambda: at.now)
    return at


@pytest.fixture
def folder(settings):
    return LiveFolder(settings.home)


@pytest.fixture
def registry(settings, served):
    return FakeRegistry(settings, served)


@pytest.fixture
def pursued(registry, folder, clock):
    return Pursued("champion", registry, folder)


def wanted(folder):
    return read_handover(folder.wanted("champion"))[0].version


def refused(folder):
    status = folder.read_status("champion")
    return status.refused and status.refused.reason


def test_an_old_word_that_was_put_back_is_not_believed(pursued, registry, folder, clock, served):
    registry.says = dataclasses.replace(served.entry, version="8", word=12)
    pursued.look()
    registry.says = dataclasses.replace(served.entry, version="7", word=9)
    for _ in range(2):
        pursued.look()
        clock.now += MOVE_SECONDS + 1
    assert (wanted(folder), refused(folder)) == ("8", "alias-moved")
    again = Pursued("champion", registry, folder)  # a follower that was started anew remembers
    again.look()
    clock.now += MOVE_SECONDS + 1
    again.look()
    assert wanted(folder) == "8"
    registry.says = dataclasses.replace(served.entry, version="7", word=13)  # a rollback says it anew
    again.look()
    assert (wanted(folder), refused(folder)) == ("7", None)


def test_what_was_written_down_and_removed_is_believed_no_longer(pursued, registry, folder, served):
    """After the registry was set back to a backup; nothing needs to be started anew."""
    registry.says = dataclasses.replace(served.entry, version="8", word=12)
    pursued.look()
    registry.says = dataclasses.replace(served.entry, version="7", word=9)
    pursued.look()
    assert wanted(folder) == "8"
    folder.wanted("champion").unlink()
    pursued.look()
    assert wanted(folder) == "7" and folder.read_status("champion").refused is None


def test_what_the_alias_names_is_fetched_once_and_written_down(pursued, registry, folder):
    pursued.look()
    pursued.look()
    assert (wanted(folder), registry.fetched, refused(folder)) == ("7", [True], None)
    assert folder.read_status("champion").reached > 0


def test_a_follower_that_is_started_again_does_not_fetch_again(registry, folder, served, clock):
    hand_over(served, folder.wanted("champion"))
    Pursued("champion", registry, folder).look()
    assert registry.fetched == []


def test_what_another_model_left_is_replaced(registry, folder, served, clock):
    """Its words are of another history, and its version may have the same number and package."""
    before = dataclasses.replace(served, entry=dataclasses.replace(served.entry, word=12))
    hand_over(before, folder.wanted("champion"))
    registry.settings = dataclasses.replace(registry.settings, model_name="blood-b")
    registry.says = dataclasses.replace(served.entry, word=2)
    Pursued("champion", registry, folder).look()
    assert refused(folder) is None and source_written(folder.wanted("champion"))["model"] == "blood-b"


def test_what_cannot_be_fetched_is_tried_again_later_and_later(pursued, registry, folder, clock, caplog):
    registry.fails = PackageError("changed")
    for _ in range(5):
        pursued.look()
    assert (len(registry.fetched), refused(folder)) == (1, "corrupt")
    clock.now += FIRST_RETRY + 1
    pursued.look()
    clock.now += FIRST_RETRY + 1
    pursued.look()
    assert len(registry.fetched) == 2
    assert not folder.wanted("champion").exists()
    assert caplog.text.count("Not followed (corrupt), version 7") == 1
    registry.says = dataclasses.replace(registry.says, version="8")  # another promotion is looked at at once
    registry.fails = None
    pursued.look()
    assert (wanted(folder), refused(folder)) == ("8", None)


def test_an_alias_that_was_moved_by_hand_is_refused_after_the_time_a_promotion_takes(pursued, registry, folder, clock):
    pursued.look()
    registry.says = AliasMoved("moved")
    pursued.look()
    assert (refused(folder), pursued.settling) == (None, True)
    clock.now += MOVE_SECONDS
    pursued.look()
    assert (refused(folder), pursued.settling, wanted(folder)) == ("alias-moved", False, "7")


def test_a_version_that_nobody_signed_is_refused(pursued, registry, folder):
    registry.says = SignatureInvalid("nobody")
    pursued.look()
    assert refused(folder) == "signature"


def test_a_registry_that_is_away_is_said_once_and_again_when_it_answers(pursued, registry, folder, caplog):
    caplog.set_level("INFO")
    pursued.look()
    reached = folder.read_status("champion").reached
    entry, registry.says = registry.says, RegistryUnreachable("no answer")
    pursued.look()
    pursued.look()
    assert (refused(folder), pursued.reachable) == ("unreachable", False)
    assert folder.read_status("champion").reached == reached
    registry.says = entry
    pursued.look()
    assert (refused(folder), pursued.reachable) == (None, True)
    assert caplog.text.count("Not followed (unreachable)") == 1
    assert caplog.text.count("is followed again") == 1


@pytest.mark.parametrize(("error", "read"), [
    (RegistryError("MLflow refused (INTERNAL_ERROR)"), False), (NotPermitted("another account"), False),
    (AliasNotSet("none"), True), (VersionNotFound("deleted"), True), (SignatureInvalid("nobody"), True),
])  # fmt: skip
def test_a_registry_that_says_nothing_of_the_version_was_not_reached(
    pursued, registry, folder, monkeypatch, error, read
):
    monkeypatch.setattr(follower.time, "time", lambda: 5000.0)
    pursued.look()
    monkeypatch.setattr(follower.time, "time", lambda: 6000.0)
    registry.says = error
    pursued.look()
    assert folder.read_status("champion").reached == (6000 if read else 5000)
    assert refused(folder) is not None


def test_a_policy_that_cannot_be_read_ends_no_follower(pursued, registry, folder):
    """It is read where an alias was moved past the registry: the policy says whether that is followed."""
    pursued.look()
    registry.says = PolicyError("The promotion policy cannot be read")
    pursued.look()
    assert (wanted(folder), refused(folder)) == ("7", "registry")


def test_a_version_whose_files_cannot_be_read_was_still_named_by_the_registry(pursued, registry, folder, monkeypatch):
    monkeypatch.setattr(follower.time, "time", lambda: 5000.0)
    registry.fails = RegistryError("The files of version 7 cannot be read")
    pursued.look()
    assert (folder.read_status("champion").reached, refused(folder)) == (5000, "registry")


def test_a_version_larger_than_the_disk_is_not_fetched(pursued, registry, folder, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    pursued.look()
    assert (refused(folder), registry.fetched) == ("too-large", [])


def test_a_local_copy_that_was_changed_is_fetched_again(registry, served):
    (registry.settings.packages / served.entry.digest).mkdir(parents=True)

    def fetch_entry(entry, *, fresh=False):
        registry.fetched.append(fresh)
        if not fresh:
            raise PackageError("changed")
        return registry.package

    registry.fetch_entry = fetch_entry
    assert fetch(registry, served.entry) is served.package
    assert registry.fetched == [False, True]


def test_served_is_what_was_proven(pursued, folder, served):
    pursued.look()
    assert read_handover(folder.wanted("champion")) == (
        served.entry, "champion", Served(entry=served.entry, package=served.package, alias="").package.folder.resolve(),
    )  # fmt: skip
