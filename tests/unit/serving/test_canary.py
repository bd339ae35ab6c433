"""Who is answered by the challenger: sticky, evenly drawn, and another draw for another challenger; and that it goes
with the last of its requests."""

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blastwatch.package import open_package
from serving import engine_health
from serving.canary import in_canary, in_shadow, position
from serving.contest import Contest
from serving.live import LiveModel, Served, hand_over
from serving.live_folder import LiveFolder, Refusal, Status
from serving.problems import Overloaded
from tests.in_thread import front
from tests.service_packages import make_servable, write_cell
from tests.unit.serving.test_aside import Quick

CALLERS = [f"caller {number}" for number in range(5000)]


def test_the_share_is_kept_and_a_larger_one_keeps_its_callers():
    small, large = ({key for key in CALLERS if in_canary(key, "d" * 64, share)} for share in (0.1, 0.3))
    assert len(small) / len(CALLERS) == pytest.approx(0.1, abs=0.02)
    assert len(large) / len(CALLERS) == pytest.approx(0.3, abs=0.02)
    assert small < large


def test_another_challenger_draws_other_callers():
    first, second = ({key for key in CALLERS if in_canary(key, digest, 0.5)} for digest in ("d" * 64, "e" * 64))
    assert len(first & second) / len(CALLERS) == pytest.approx(0.25, abs=0.03)


@given(st.text(), st.text())
def test_nobody_at_0_everybody_at_1(key, digest):
    assert 0 <= position(key, digest) < 1
    assert not in_canary(key, digest, 0.0) and in_canary(key, digest, 1.0)
    assert not in_shadow(key, 0.0) and in_shadow(key, 1.0)


class Failing(Quick):
    """An engine that fails, until `mended` says that it answers."""

    mended = False

    def infer(self, crops):
        if not self.mended:
            raise RuntimeError("the engine broke")
        return super().infer(crops)

    infer_beside = infer_inputs = infer


@pytest.fixture
def challenged(served, tmp_path, monkeypatch):
    """Serves, with a challenger of such an engine that answers everybody; and withdraws it, which gives its lane."""
    monkeypatch.setenv("BLASTWATCH_KEYLESS", "1")
    package = open_package(make_servable(tmp_path / "challenger", seed=1))
    entry = dataclasses.replace(served.entry, version="8", digest=package.digest)
    with front(served, tmp_path / "home", engine=Quick(), BLASTWATCH_CANARY_SHARE="1") as door:
        service, folder = door.service, LiveFolder(door.settings.home)
        service.contest = Contest(service.slot, folder, door.settings, service.metrics, service.open_lane, {})

        def say(reason):
            refused = Refusal(reason=reason, version="", message="", since="")
            folder.write_status("challenger", Status(reached=time.time(), refused=refused))
            service.contest.look()

        def come(engine, word=1):
            monkeypatch.setattr("serving.contest.open_live", lambda one, *_: LiveModel(served=one, engine=engine))
            named = dataclasses.replace(entry, word=word)
            hand_over(Served(entry=named, package=package, alias="challenger"), folder.wanted("challenger"))
            folder.write_status("challenger", Status(reached=time.time()))
            service.contest.look()

        def withdraw():
            lane = service.contest.canary("anybody")
            say("alias-not-set")
            return lane

        withdraw.for_now = say

        yield door, come, withdraw


@pytest.mark.parametrize(
    ("path", "engine", "status"),
    [
        ("/v1/predict", Quick(), 200),
        ("/v1/predict", None, 415),
        ("/v1/explain", None, 415),
        ("/v1/predict", Failing(), 500),
    ],
    ids=["answered", "no image", "no image to explain", "an engine that fails"],
)
def test_a_challenger_that_is_gone_ends_once_its_requests_have_left_it(challenged, tmp_path, path, engine, status):
    door, come, withdraw = challenged
    come(engine or Quick())
    file = write_cell(tmp_path / "cell.bmp").read_bytes() if engine else b"no image"
    answer = door.ask(path, files={"image": file})
    assert answer.status_code == status, answer.text
    assert answer.is_error or answer.json()["model"]["version"] == "8"
    lane = withdraw()
    assert lane.version == "8" and lane.in_flight == 0 and lane.ended.is_set()
    after = door.predict(cell=write_cell(tmp_path / "cell.bmp").read_bytes())
    assert after.json()["model"]["version"] == "7"


def failures(door, cell):
    """Each over a connection of its own, since the server ends that of a call which failed."""
    once = {"Connection": "close"}
    return [door.predict(cell=cell, headers=once).status_code for _ in range(engine_health.FAILED)]


def test_while_the_challengers_engine_fails_the_champion_answers(challenged, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_health, "DEAD_SECONDS", 1e6)
    door, come, _ = challenged
    engine = Failing()
    come(engine)
    cell = write_cell(tmp_path / "cell.bmp").read_bytes()
    assert failures(door, cell) == [500] * engine_health.FAILED
    assert door.predict(cell=cell).json()["model"]["version"] == "7"
    door.service.contest.look()
    facts = door.service.contest.facts()
    assert facts["version"] == "8" and not facts["canary"]["answering"] and facts["canary"]["refused"] is None
    engine.mended = True
    monkeypatch.setattr(engine_health, "REST_SECONDS", 0.0)
    assert door.predict(cell=cell).json()["model"]["version"] == "8"


@pytest.mark.parametrize("again", ["withdrawn in between", "named anew"])
def test_a_challenger_whose_engine_failed_for_long_leaves_the_canary_until_it_is_named_anew(
    challenged, tmp_path, monkeypatch, again
):
    monkeypatch.setattr(engine_health, "DEAD_SECONDS", 0.0)
    door, come, withdraw = challenged
    come(Failing())
    lane = door.service.contest.canary("anybody")
    cell = write_cell(tmp_path / "cell.bmp").read_bytes()
    assert failures(door, cell) == [500] * engine_health.FAILED
    for _ in range(3):
        door.service.contest.look()
    refused = door.service.contest.facts()["canary"]["refused"]
    assert (refused["version"], refused["reason"], lane.ended.is_set()) == ("8", "engine", True)
    assert door.count("blastwatch_follow_refused", alias="challenger", reason="engine") == 1
    monkeypatch.setattr(engine_health, "REST_SECONDS", 0.0)
    assert door.predict(cell=cell).json()["model"]["version"] == "7"
    for reason in ("registry", "signature"):  # what keeps it away for now mends no engine
        withdraw.for_now(reason)
        come(Quick())
        assert door.service.contest.canary("anybody") is None
    if again == "withdrawn in between":
        withdraw()
        come(Quick())
    else:  # and both by the registry's next poll
        come(Quick(), word=2)
    assert door.predict(cell=cell).json()["model"]["version"] == "8"
    assert door.count("blastwatch_follow_refused", alias="challenger", reason="engine") == 0


def test_who_asks_the_challenger_needs_no_room_at_the_champion(challenged, tmp_path, monkeypatch):
    door, come, withdraw = challenged
    come(Quick())

    def full():
        raise Overloaded(retry_after=1, waiting=100)

    monkeypatch.setattr(door.service.lane.batcher, "check_room", full)
    cell = write_cell(tmp_path / "cell.bmp").read_bytes()
    assert door.predict(cell=cell).json()["model"]["version"] == "8"
    withdraw()
    assert door.predict(cell=cell).status_code == 429
