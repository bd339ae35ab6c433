"""When a challenger reads and answers, and when it stops: withdrawn, refused, promoted, or left by an earlier run."""

import dataclasses
import os
import time
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from blastwatch.entry import Entry
from blastwatch.package import open_package
from blastwatch.settings import load
from serving.contest import Contest, open_contest, unasked
from serving.lane import Lane, Slot
from serving.live import Served, hand_over, open_live
from serving.live_folder import LiveFolder, Refusal, Status
from serving.memory import RETRY_SECONDS
from serving.metrics import ServiceMetrics
from tests.cohorts import record
from tests.service_packages import make_servable


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    return open_package(make_servable(tmp_path_factory.mktemp("second") / "package", seed=1))


class Stage:
    """A champion's slot and a contest; the follower's part is played by the test."""

    def __init__(self, home, served, second, **shares):
        variables = {f"BLASTWATCH_{name.upper()}_SHARE": str(share) for name, share in shares.items()}
        self.settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_THREADS": "1", **variables})
        self.folder = LiveFolder(home)
        self.metrics = ServiceMetrics(CollectorRegistry())
        self.slot = Slot("champion", self.lane(open_live(served, self.settings)))
        self.second = second
        self.entry = Entry(
            version="8", digest=second.digest, run_id="", created="", synthetic=True, registered_by="tester"
        )  # fmt: skip
        self.contest = Contest(self.slot, self.folder, self.settings, self.metrics, self.lane, os.environ)
        self.offered = []
        if self.contest.shadow is not None:
            self.contest.shadow.close()  # no child is wanted here
            self.contest.shadow = SimpleNamespace(
                follow=lambda challenger: setattr(self, "shadowed", challenger),
                offer=lambda record, file: self.offered.append((record.id, file)),
                facts=lambda: {}, close=lambda: None, refused=None,
            )  # fmt: skip

    def lane(self, live):
        return Lane(live, self.settings)

    def challenge(self, package=None, entry=None):
        served = Served(entry=entry or self.entry, package=package or self.second, alias="challenger")
        hand_over(served, self.folder.wanted("challenger"))
        self.say()

    def say(self, reason=None):
        refusal = Refusal(reason=reason, version="8", message="", since="") if reason else None
        self.folder.write_status("challenger", Status(reached=time.time(), refused=refusal))

    def look(self):
        self.contest.look()
        return self.contest.canary("anybody")

    def refused(self, reason):
        return self.metrics.registry.get_sample_value(
            "blastwatch_follow_refused", {"alias": "challenger", "reason": reason}
        )


@pytest.fixture
def stage(tmp_path, served, second):
    made = []

    def make(**shares):
        made.append(Stage(tmp_path, served, second, **shares))
        return made[-1]

    yield make
    for one in made:
        one.contest.close()
        one.slot.lane.close()


def test_a_challenger_comes_answers_and_is_withdrawn(stage):
    here = stage(canary=1, shadow=1)
    assert here.look() is None and here.shadowed is None
    here.challenge()
    lane = here.look()
    assert (lane.version, lane.predictor.model["alias"]) == ("8", "challenger")
    assert here.shadowed.digest == here.entry.digest
    assert here.contest.facts()["canary"] == {"share": 1.0, "answering": True, "refused": None}
    here.say("unreachable")
    assert here.look() is lane
    here.say("alias-not-set")
    assert here.look() is None and here.shadowed is None
    assert lane.ended.is_set() and here.refused("alias-not-set") == 0
    here.say()  # the same version again
    assert here.look().version == "8"


def test_a_challenger_of_another_model_is_none(stage):
    """Left behind under another BLASTWATCH_MODEL_NAME, while the follower has not yet put its own in its place."""
    here = stage(canary=1, shadow=1)
    served = Served(entry=here.entry, package=here.second, alias="challenger", source={"model": "b", "registry": "c"})
    hand_over(served, here.folder.wanted("challenger"))
    here.say()
    assert here.look() is None and here.shadowed is None


def test_a_package_that_challenges_under_another_number_answers_under_that(stage):
    """It was registered anew: one digest, two versions."""
    here = stage(canary=1)
    here.challenge()
    first = here.look()
    here.challenge(entry=dataclasses.replace(here.entry, version="9"))
    lane = here.look()
    assert (lane.version, lane.predictor.model["version"], here.contest.facts()["version"]) == ("9", "9", "9")
    assert first.ended.is_set()
    assert here.look() is lane


def test_a_request_in_flight_keeps_its_lane(stage):
    here = stage(canary=1)
    here.challenge()
    lane = here.look()
    assert lane.enter()
    here.say("alias-not-set")
    assert here.look() is None and not lane.ended.is_set()
    lane.leave()
    assert lane.ended.is_set()


@pytest.mark.parametrize("reason", ["signature", "alias-moved", "corrupt", "golden"])
def test_what_the_follower_refuses_stops_both(stage, reason):
    here = stage(canary=1, shadow=1)
    here.challenge()
    assert here.look() is not None
    here.say(reason)
    assert here.look() is None and here.shadowed is None
    assert here.refused(reason) == 1
    assert here.contest.facts()["refused"]["reason"] == reason


def test_the_champion_challenges_nobody(stage, served):
    here = stage(canary=1, shadow=1)
    here.challenge()
    assert here.look() is not None
    lane = here.lane(open_live(Served(entry=here.entry, package=here.second, alias="champion"), here.settings))
    here.slot.swap(lane).close()
    assert here.look() is None and here.shadowed is None


def test_what_an_earlier_service_left_is_not_believed(stage, tmp_path, served, second):
    before = Stage(tmp_path, served, second, shadow=1)
    before.challenge()
    time.sleep(0.01)
    here = stage(canary=1)
    assert here.look() is None
    here.say()
    assert here.look() is not None
    before.slot.lane.close()


def test_a_challenger_that_fails_its_golden_cells_answers_nobody_and_is_tried_once(stage, tmp_path, monkeypatch):
    here = stage(canary=1)
    wrong = make_servable(tmp_path / "wrong", seed=2)
    (wrong / "network.onnx").write_bytes((here.second.folder / "network.onnx").read_bytes())
    (wrong / "digests.json").unlink()
    from blastwatch.package import seal

    seal(wrong)
    package = open_package(wrong)
    here.challenge(package, dataclasses.replace(here.entry, digest=package.digest))
    assert here.look() is None
    assert here.contest.facts()["canary"]["refused"]["reason"] == "golden"
    assert (here.refused("golden"), here.refused("corrupt")) == (1, 0)  # an alert hears of it
    tried = []
    monkeypatch.setattr("serving.contest.open_live", lambda *_: tried.append(1))
    assert here.look() is None and not tried


def test_what_the_shadow_or_an_error_refuses_is_told_to_metrics_too(stage, monkeypatch):
    here = stage(canary=1, shadow=1)
    here.contest.shadow.refused = {"version": "8", "reason": "flips", "since": ""}

    def without_room(*_):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("serving.contest.open_live", without_room)
    here.challenge()
    assert here.look() is None
    assert [here.refused(reason) for reason in ("flips", "not-opened", "golden")] == [1, 1, 0]
    here.contest.shadow.refused = None
    here.say("signature")
    here.look()
    assert [here.refused(reason) for reason in ("flips", "not-opened", "signature")] == [0, 0, 1]


def test_who_answered_decides_what_is_counted(stage):
    here = stage(canary=1, shadow=1)
    here.challenge()
    lane = here.look()
    here.contest.answered(here.slot.lane, record("a"), b"image")
    here.contest.answered(lane, record("b"), b"image")
    assert here.offered == [("a", b"image")]
    count = here.metrics.registry.get_sample_value
    assert count("blastwatch_canary_answers_total", {"label": "hem", "decision": "refer"}) == 1


def test_a_share_of_the_callers(stage):
    here = stage(canary=0.5)
    here.challenge()
    here.contest.look()
    drawn = [here.contest.canary(f"caller {number}") is not None for number in range(400)]
    assert 150 < sum(drawn) < 250
    assert drawn == [here.contest.canary(f"caller {number}") is not None for number in range(400)]


def test_without_a_share_there_is_no_contest(tmp_path):
    for variables in ({}, {"BLASTWATCH_SHADOW_SHARE": "1", "BLASTWATCH_MODEL_ALIAS": "challenger"}):
        settings = load({"BLASTWATCH_HOME": str(tmp_path), **variables})
        opened = open_contest(
            Slot(settings.model_alias, SimpleNamespace()), LiveFolder(tmp_path), settings,
            ServiceMetrics(CollectorRegistry()), lambda live: None, {},
        )  # fmt: skip
        assert opened is None


@pytest.mark.parametrize("share", ["SHADOW", "CANARY"])
def test_a_service_that_follows_nothing_says_that_its_challenger_is_not_asked(share):
    assert unasked(load({})) is None
    assert "stays on the version that it has" in unasked(load({f"BLASTWATCH_{share}_SHARE": "0.5"}))


def test_a_challenger_without_room_is_tried_again_later_and_another_package_never(stage, monkeypatch):
    here = stage(canary=1)
    at = SimpleNamespace(now=time.monotonic())
    monkeypatch.setattr("serving.contest.time.monotonic", lambda: at.now)
    real = here.contest._settings
    here.contest._settings = dataclasses.replace(real, memory_limit=1.0)
    here.challenge()
    assert here.look() is None and here.refused("too-large") == 1
    here.contest._settings = real
    assert here.look() is None
    at.now += RETRY_SECONDS + 1
    assert here.look() is not None
    here.say("signature")
    assert here.look() is None
    monkeypatch.setattr(
        "serving.shadow.take_over_or_fetch",
        lambda *_: Served(entry=here.entry, package=here.slot.lane.served.package, alias=""),
    )
    here.say()
    at.now += 1
    assert here.look() is None and here.refused("corrupt") == 1
