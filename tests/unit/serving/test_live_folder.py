"""The small files between the follower and the workers."""

import pytest

from blastwatch import errors
from serving.live_folder import REASONS, LiveFolder, Refusal, Status, mark, reason_of


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (errors.RegistryUnreachable, "unreachable"),
        (errors.AliasNotSet, "alias-not-set"),
        (errors.AliasMoved, "alias-moved"),
        (errors.SignatureInvalid, "signature"),
        (errors.TooLarge, "too-large"),
        (errors.GoldenMismatch, "golden"),
        (errors.FlipsTooOften, "flips"),
        (errors.EngineBroken, "engine"),
        (errors.PackageError, "corrupt"),
        (errors.VersionNotFound, "registry"),
    ],
)
def test_every_refusal_has_a_bounded_reason(kind, reason):
    assert reason_of(kind("why")) == reason
    assert reason in REASONS


def test_a_status_comes_back_as_it_was_written(tmp_path):
    folder = LiveFolder(tmp_path)
    assert folder.read_status("champion") == Status()
    refused = Refusal(reason="golden", version="3", message="why", since="2026-11-25T08:00:00+00:00")
    for status in (Status(reached=12.5, refused=refused), Status(reached=13.0)):
        folder.write_status("champion", status)
        assert folder.read_status("champion") == status
    folder.status("champion").write_text("{")
    assert folder.read_status("champion") == Status()


def test_a_mark_tells_that_a_file_was_replaced_or_touched(tmp_path):
    folder = LiveFolder(tmp_path)
    assert mark(folder.nudge) is None
    folder.nudged()
    first = mark(folder.nudge)
    folder.nudged()
    assert mark(folder.nudge) != first


def test_one_holds_the_lock_of_the_follower(tmp_path):
    folder = LiveFolder(tmp_path)
    held = folder.try_follower_lock(["champion", "challenger"])
    assert held is not None
    assert folder.try_follower_lock(["other"]) is None and folder.followed() == ["champion", "challenger"]
    held.close()
    again = folder.try_follower_lock(["other"])
    assert folder.followed() == ["other"]
    assert again is not None
    again.close()
