"""Who is answered by the challenger: sticky, evenly drawn, and another draw for another challenger; and that it goes
with the last of its requests."""

import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blastwatch.package import open_package
from serving.canary import in_canary, in_shadow, position
from serving.contest import Contest
from serving.live import LiveModel, Served, hand_over
from serving.live_folder import LiveFolder, Refusal, Status
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
    def infer(self, crops):
        raise RuntimeError("the engine broke")

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

        def come(engine):
            monkeypatch.setattr("serving.contest.open_live", lambda one, _: LiveModel(served=one, engine=engine))
            hand_over(Served(entry=entry, package=package, alias="challenger"), folder.wanted("challenger"))
            folder.write_status("challenger", Status(reached=time.time()))
            service.contest.look()

        def withdraw():
            lane = service.contest.canary("anybody")
            refused = Refusal(reason="alias-not-set", version="", message="", since="")
            folder.write_status("challenger", Status(reached=time.time(), refused=refused))
            service.contest.look()
            return lane

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
