"""What a finding starts: when, with what, once, and never a promotion."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.errors import BlastwatchError, DataError, NotPermitted
from blastwatch.policy import FINDINGS, RetrainingPolicy
from blastwatch.registry import Registry
from blastwatch.settings import load
from blastwatch.signing import PROMOTER, TRAINER
from monitoring.metrics import MonitorMetrics
from monitoring.retraining import Findings, Retraining
from tests.running import until

ROOT = Path(__file__).parents[3]
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
DRIFTED, CALM = (SimpleNamespace(drifted=drifted, document={"drifted": drifted}) for drifted in (True, False))
TELL = (
    "import json, os, sys; told = dict(os.environ); "
    "json.dump(told, open(sys.argv[1], 'w')); print('trained'); sys.exit(int(sys.argv[2]))"
)


def performance(*, estimated=None, realised=None):
    return {"now": {"latest": {"fell": {"estimated": estimated}}, "labelled": {"fell": {"realised": realised}}}}


class Watched:
    """A monitor's retraining whose looks are hours apart."""

    def __init__(self, home, command, **changed):
        rules = {"findings": ("drift", "realised"), "after_hours": 2.0, "pause_days": 1.0} | changed
        self.policy = RetrainingPolicy(command=tuple(command), **rules)
        self.settings = load({"BLASTWATCH_HOME": str(home)})
        self.again()

    def again(self):
        """The monitor is started anew; the one before knows its process, and leaves none behind."""
        self.earlier = getattr(self, "retraining", None)
        self.retraining = Retraining(self.settings, self.policy)

    def look(self, hours, report=DRIFTED, version="1", *, others=False, verdict=True, **fell):
        patients = {"drifted": others}
        findings = Findings(report=report, verdict=verdict, patients=patients, performance=performance(**fell))
        return self.retraining.look(version, findings, at=NOON + timedelta(hours=hours))

    def wait(self):
        until(lambda: not self.retraining.running(), 20)

    def wait_for_runner(self):
        until(lambda: self.retraining._process.poll() is not None, 20)

    def gauges(self):
        metrics = MonitorMetrics(CollectorRegistry())
        metrics.tell_retraining(self.retraining)
        value = metrics.registry.get_sample_value
        return value("blastwatch_retraining_running"), value("blastwatch_retraining_failed")


@pytest.fixture
def said(tmp_path):
    return tmp_path / "said.json"


@pytest.fixture
def watched(tmp_path, said):
    """Starts a Python that writes down its environment and ends with a code."""
    return lambda code=0, **changed: Watched(
        tmp_path / "home", [sys.executable, "-c", TELL, str(said), str(code)], **changed
    )


def test_every_finding_is_counted_from_none_on():
    """Of a series that begins with 1 Prometheus sees no increase: the first start would stand in no panel."""
    value = MonitorMetrics(CollectorRegistry()).registry.get_sample_value
    assert all(value("blastwatch_retraining_started_total", {"finding": finding}) == 0 for finding in FINDINGS)


def test_a_finding_that_has_stood_starts_the_command_and_tells_it_why(watched, said):
    one = watched()
    assert one.look(0) is None and one.look(1) is None
    started = one.look(2)
    assert (started.finding, started.version, started.since) == ("drift", "1", NOON.isoformat())
    one.wait()
    told = json.loads(said.read_text())
    facts = json.loads(Path(told["BLASTWATCH_FINDING"]).read_text())
    assert told["BLASTWATCH_UNATTENDED"] == "1" and Path(started.log).read_text() == "trained\n"
    assert (facts["finding"], facts["report"]) == ("drift", {"drifted": True})
    one.look(3, CALM)
    assert (one.retraining.last.exit_code, one.gauges()) == (0, (0.0, 0.0))
    assert one.retraining.document()["last"]["running"] is False


def test_what_went_away_meanwhile_starts_nothing(watched):
    one = watched()
    for hours in range(1, 20):  # of three looks one is calm
        assert one.look(hours, CALM if hours % 3 == 0 else DRIFTED) is None


def test_looks_without_a_new_prediction_change_nothing(watched):
    one = watched()
    assert one.look(0, None) is None and one.look(4, None) is None
    assert one.look(5) is None and one.look(6, None) is None and one.look(7, None).finding == "drift"
    one.wait()


def test_a_drift_without_a_verdict_left_stands_no_longer(watched):
    one = watched()
    assert one.look(0) is None and one.look(1, None, verdict=False) is None
    assert one.look(4, None) is None and one.look(5) is None and one.look(6) is None
    assert one.look(7).since == (NOON + timedelta(hours=5)).isoformat()
    one.wait()


def test_a_start_by_a_clock_that_was_years_ahead_holds_nothing_off(watched, said):
    one = watched()
    ahead = 24 * 1000
    assert one.look(ahead) is None and one.look(ahead + 3) is not None
    one.wait()
    assert one.look(0) is None  # the clock is right again, and the finding has stood for no hour by it
    assert one.look(1) is None and one.look(3) is not None
    one.wait()
    assert one.look(4) is None and one.look(7) is None  # that start does hold off


def test_two_monitors_of_one_home_start_one_command_together(watched):
    one, other = watched(), watched()
    for monitor in (one, other):
        monitor.look(0)
    started = one.look(2)
    one.wait()
    assert other.look(3) is None and other.retraining.last == started
    assert other.look(25) is None and other.look(26) is not None
    other.wait()


def test_what_no_file_tells_of_is_not_started(watched, said, monkeypatch):
    """A full disk must not start the command at every look."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    one = watched()
    one.look(0)
    with monkeypatch.context() as patched:
        patched.setattr("monitoring.retraining.private_file.replace", full)
        with pytest.raises(BlastwatchError, match="No space left"):
            one.look(2)
    assert not one.retraining.running() and not said.exists()
    assert one.look(3) is not None
    one.wait()
    assert said.exists()


def test_another_version_begins_anew(watched):
    one = watched()
    one.look(0)
    assert one.look(3, version="2") is None and one.look(4, version="2") is None
    assert one.look(5, version="2").version == "2"
    one.wait()


def test_an_accuracy_that_fell_counts_where_the_policy_names_it(watched):
    one = watched()
    for hours in (0, 3, 6):
        assert one.look(hours, CALM, estimated=True) is None
    one.look(7, CALM, realised=True)
    assert one.look(9, CALM, realised=True).finding == "realised"
    one.wait()


def test_other_patients_count_where_the_policy_names_them(watched):
    one = watched(findings=("patients",))
    assert one.look(0) is None and one.look(3) is None
    one.look(4, CALM, others=True)
    assert one.look(6, CALM, others=True).finding == "patients"
    one.wait()


def test_it_rests_from_one_start_to_the_next_also_after_a_restart(watched):
    one = watched(3)
    one.look(0)
    assert one.look(2) is not None
    one.wait()
    assert one.look(3) is None
    assert (one.retraining.last.exit_code, one.gauges()) == (3, (0.0, 1.0))
    one.again()
    for hours in range(4, 26):
        assert one.look(hours) is None
    assert one.gauges() == (0.0, 1.0)
    assert one.look(26) is not None
    one.wait()
    one.look(27)
    assert one.gauges() == (0.0, 1.0)
    one.look(28, CALM, version="2")  # another version came: nobody has to do anything about it any more
    assert one.gauges() == (0.0, 0.0)


def test_a_command_that_outlives_the_monitor_is_known_to_the_next_one(tmp_path):
    release = tmp_path / "release"
    code = f"import os, time\nwhile not os.path.exists({str(release)!r}): time.sleep(0.05)"
    one = Watched(tmp_path / "home", [sys.executable, "-c", code], after_hours=0.0, pause_days=0.0)
    assert one.look(0) is not None and one.look(1) is None
    one.again()
    assert one.look(2) is None and one.gauges() == (1.0, 0.0)
    release.touch()
    one.wait()
    last = one.retraining.document()["last"]
    assert (last["running"], last["exit_code"], last["ended_at"]) == (False, None, "")
    assert one.look(3) is not None
    one.wait()
    assert not one.earlier.running()


def test_how_it_ended_while_the_monitor_was_away_is_told_by_the_next_one(watched):
    one = watched(3)
    one.look(0)
    assert one.look(2) is not None
    began = datetime.now(UTC)
    one.wait()
    one.again()
    one.look(3)
    last = one.retraining.document()["last"]
    assert (last["running"], last["exit_code"], one.gauges()) == (False, 3, (0.0, 1.0))
    assert abs(datetime.fromisoformat(last["ended_at"]) - began) < timedelta(seconds=20)
    one.again()
    one.look(4)
    assert one.retraining.last.exit_code == 3 and one.gauges() == (0.0, 1.0)


AWAY = """
import sys, time
from pathlib import Path
from tests.unit.monitoring.test_retraining import Watched
one = Watched(Path(sys.argv[1]), [sys.executable, "-c", sys.argv[2]], after_hours=0.0)
one.look(0)
print(one.retraining._process.pid, flush=True)
time.sleep(60)
"""
SLOW = "import time; print('epoch 1', flush=True); time.sleep(60)"


def test_what_was_ended_with_its_monitor_is_told_as_failed(tmp_path):
    """As where a container ends: SIGKILL to all in it."""
    home = tmp_path / "home"
    words = [sys.executable, "-c", AWAY, str(home), SLOW]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ) as monitor:
        group = int(monitor.stdout.readline())
        monitor.kill()
    one = Watched(home, [sys.executable, "-c", SLOW])
    one.look(1, CALM)
    assert one.gauges() == (1.0, 0.0)  # of the two only the monitor has ended
    until(lambda: "epoch 1" in Path(one.retraining.last.log).read_text(), 20)
    os.killpg(group, signal.SIGKILL)
    one.wait()
    for hours in (2, 10, 20):
        assert one.look(hours) is None and one.gauges() == (0.0, 1.0)
    last = one.retraining.document()["last"]
    assert (last["exit_code"], last["ended_at"]) == (None, (NOON + timedelta(hours=2)).isoformat())
    assert last["problem"].startswith("it was ended before it had come to its end")


def test_a_command_whose_runner_is_killed_runs_on(tmp_path):
    one = Watched(tmp_path / "home", [sys.executable, "-c", SLOW], after_hours=0.0)
    started = one.look(0)
    until(lambda: "epoch 1" in Path(started.log).read_text(), 20)
    (command,) = psutil.Process(one.retraining._process.pid).children()
    one.retraining._process.kill()
    one.wait_for_runner()
    one.look(1)
    assert one.gauges() == (1.0, 0.0) and one.retraining.last.problem == ""
    command.kill()
    one.wait()
    one.look(2)
    assert one.gauges() == (0.0, 1.0)


def test_a_monitor_that_was_slower_does_not_write_over_the_next_start(watched):
    one, other = watched(), watched()
    one.look(0)
    one.look(2)
    one.wait()
    other.again()  # it knows the first start, and nobody has noted yet how that ended
    one.look(30)
    one.wait()
    assert other.look(31) is None
    assert other.retraining.last.started_at == (NOON + timedelta(hours=30)).isoformat()
    assert other.retraining.last.exit_code == 0


def test_a_start_of_an_older_blastwatch_says_nothing_of_its_end(watched, tmp_path):
    folder = tmp_path / "home" / "retraining"
    folder.mkdir(parents=True)
    log = str(folder / "20261124T120000Z.log")
    (folder / "last.json").write_text(json.dumps(START | {"started_at": NOON.isoformat(), "log": log}))
    one = watched()
    assert one.look(1) is None and one.gauges() == (0.0, 0.0)
    Path(log).with_suffix(".ended.json").write_text('{"exit_code": "none"}')
    with pytest.raises(DataError, match="ended.json how the command ended .* Remove the file"):
        one.look(2)


def test_a_command_that_cannot_be_run_is_said_and_not_tried_at_every_look(tmp_path):
    one = Watched(tmp_path / "home", ["no-such-program", "x"], after_hours=0.0)
    started = one.look(0)
    assert started.problem.startswith("'no-such-program' cannot be run: ") and one.gauges() == (0.0, 1.0)
    assert one.look(1) is None and one.look(23) is None
    assert one.look(24) is not None


def test_without_a_command_nothing_is_started_said_or_written(tmp_path):
    one = Watched(tmp_path / "home", [], after_hours=0.0)
    assert one.look(0) is None and one.look(50) is None and one.retraining.document() is None
    assert one.gauges() == (0.0, 0.0) and not (tmp_path / "home").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "retraining").write_text("a file where the folder should be")
    one = Watched(tmp_path / "home", ["true"], after_hours=0.0)
    with pytest.raises(BlastwatchError, match="cannot be written: .* Make room"):
        one.look(0)


START = {"finding": "drift", "version": "1", "since": "", "log": ""}


@pytest.mark.parametrize("content", ["", "[]", '{"finding": "drift"}'] + [
    json.dumps(START | {"started_at": moment}) for moment in ("yesterday", "2026-11-24T12:00:00", None)
])  # fmt: skip
def test_a_file_that_cannot_be_read_is_said_where_a_command_might_be_started(watched, tmp_path, content):
    (tmp_path / "home" / "retraining").mkdir(parents=True)
    (tmp_path / "home" / "retraining" / "last.json").write_text(content)
    with pytest.raises(DataError, match="last.json .* Remove the file"):
        watched()
    idle = Watched(tmp_path / "home", [])
    assert idle.look(0) is None and idle.retraining.document() is None


def test_what_a_finding_started_promotes_nothing(settings):
    unattended = load({"BLASTWATCH_HOME": str(settings.home), "BLASTWATCH_UNATTENDED": "1"})
    with pytest.raises(NotPermitted, match="promote it by hand"), Registry(unattended).writing(PROMOTER):
        raise AssertionError("nobody writes")
    with Registry(unattended).writing(TRAINER) as writer:
        assert writer.records == []


def test_a_process_that_the_command_leaves_behind_does_not_count(tmp_path):
    """Only the command itself holds the lock."""
    leave = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(5)'])"
    one = Watched(tmp_path / "home", [sys.executable, "-c", leave], after_hours=0.0)
    one.look(0)
    one.again()
    began = time.monotonic()
    one.wait()
    assert time.monotonic() - began < 4 and not one.earlier.running()
