"""The shadow never makes anybody wait, and a child that crashes, hangs or talks nonsense is counted and replaced."""

import contextlib
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.settings import load
from monitoring.shadow_store import open_shadow_store
from serving import shadow as module
from serving import shadow_child
from serving.canary import in_shadow
from serving.live import hand_over
from serving.metrics import ServiceMetrics
from serving.shadow import Challenger, Shadow
from serving.shadow_child import ChildFailed, ChildRefused, ShadowChild, processor_seconds, runnable
from tests.cohorts import record
from tests.running import until

DIGEST = "e" * 64
NINE = Challenger("9", DIGEST, Path("handover.json"))
ROOT = str(Path(__file__).parents[3])


WORKER = """
import os, sys, time
from pathlib import Path
from serving.shadow_child import ShadowChild

named = {"words": tuple(sys.argv[3:])} if sys.argv[3:] else {}
child = ShadowChild(Path(sys.argv[1]), sys.argv[2], os.environ, stopped=lambda: False, **named)
print(child.pid, flush=True)
if named:
    child.wait_until_ready()
    print("asking", flush=True)
    child.ask(b"x")
time.sleep(600)
"""
"""A worker with a child that it never ends; where words are given, it asks that for a cell."""


def words(mode):
    return (sys.executable, "-m", "tests.shadow_children", mode)


wait_for = functools.partial(until, seconds=20)


def reading_children():
    """The children of this process that read cells; other tests may have left some of their own."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one
            found += [child] if "tests.shadow_children" in child.cmdline() else []
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(shadow_child, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(shadow_child, "CELL_SECONDS", 0.5)
    monkeypatch.setattr(shadow_child, "START_SECONDS", 2.0)
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)


class Watched:
    """A shadow with a child of one kind, and its counters."""

    def __init__(self, home, mode, share="1", **variables):
        self.settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_SHADOW_SHARE": share, **variables})
        self.metrics = ServiceMetrics(CollectorRegistry())
        environment = {**os.environ, "PYTHONPATH": ROOT}
        self.shadow = Shadow(self.settings, self.metrics, environment, child_words=words(mode))

    def begin(self, challenger=NINE):
        self.shadow.follow(challenger)
        return self

    def count(self, outcome):
        return self.metrics.registry.get_sample_value("blastwatch_shadow_cells_total", {"outcome": outcome}) or 0

    @property
    def restarts(self):
        return self.metrics.registry.get_sample_value("blastwatch_shadow_restarts_total")

    def rows(self):
        self.shadow.close()
        with open_shadow_store(self.settings.predictions_url) as store:
            return store.read(champion="d", challenger=DIGEST)


@pytest.fixture
def watch(tmp_path):
    made = []

    def make(mode, **options):
        made.append(Watched(tmp_path, mode, **options))
        return made[-1]

    yield make
    for one in made:
        one.shadow.close()
    assert not reading_children()


def test_what_both_said_is_stored_and_counted(watch):
    seen = watch("good").begin()
    for number in range(20):
        seen.shadow.offer(record(str(number)), b"x" * (number * 5))
    wait_for(lambda: seen.count("compared") == 20)
    assert seen.shadow.facts() == {"share": 1.0, "reading": True, "refused": None}
    assert (seen.count("flipped"), seen.count("shed"), seen.count("failed"), seen.restarts) == (20, 0, 0, 0)
    rows = seen.rows().set_index("id")
    assert len(rows) == 20
    first = rows.loc["10"]
    assert (first["champion_label"], first["challenger_label"], first["challenger_version"]) == ("hem", "all", "9")
    assert (first["champion_probability"], first["challenger_probability"]) == (0.25, 0.5)


def test_what_either_version_learned_from_is_not_compared(watch):
    """The champion says so of the first, the challenger of the second."""
    watched = watch("seen").begin()
    for number in range(4):
        watched.shadow.offer(record(str(number), seen=number == 0), b"x")
    wait_for(lambda: watched.count("compared") == 2)
    assert sorted(watched.rows()["id"]) == ["2", "3"]
    assert (watched.count("seen"), watched.count("failed"), watched.count("shed")) == (2, 0, 0)


def test_a_share_is_drawn_by_the_predictions_id(watch):
    seen = watch("good", share="0.3").begin()
    offered = [record(str(number)) for number in range(400)]
    for one in offered:
        seen.shadow.offer(one, b"x")
    drawn = sum(in_shadow(one.id, 0.3) for one in offered)
    wait_for(lambda: seen.count("compared") + seen.count("shed") == drawn)
    assert 80 < drawn < 160


def test_the_challengers_own_answers_are_not_compared_with_themselves(watch):
    seen = watch("good").begin()
    seen.shadow.offer(record("a", digest=DIGEST), b"x")
    seen.shadow.offer(record("b"), b"x")
    wait_for(lambda: seen.count("compared"))
    assert seen.count("compared") == 1


def test_a_full_queue_sheds_and_offering_takes_no_time(watch, monkeypatch):
    monkeypatch.setattr(module, "QUEUE_BYTES", 1000)
    seen = watch("slow").begin()
    wait_for(lambda: seen.shadow.facts()["reading"])
    started = time.perf_counter()
    for number in range(1000):
        seen.shadow.offer(record(str(number)), b"x" * 100)
    assert time.perf_counter() - started < 1
    assert 985 <= seen.count("shed") <= 990
    assert seen.shadow._waiting_bytes <= 1000
    seen.shadow.offer(record("larger than the queue"), b"x" * 2000)
    wait_for(lambda: seen.count("compared") >= 2)


@pytest.mark.parametrize(("limit", "read"), [("LONGEST_WAIT", 0), ("LONGEST_WAY", 2)])
def test_a_cell_that_waited_too_long_is_not_stored(watch, monkeypatch, limit, read):
    """Its patient may be forgotten since, and would come back."""
    asked, ask = [], ShadowChild.ask
    monkeypatch.setattr(ShadowChild, "ask", lambda self, data: asked.append(data) or ask(self, data))
    monkeypatch.setattr(module, limit, -1.0)
    seen = watch("good").begin()
    for number in range(2):
        seen.shadow.offer(record(str(number)), b"x" * 100)
    wait_for(lambda: seen.count("shed") == 2)
    assert (seen.count("compared"), seen.restarts, seen.shadow._waiting_bytes) == (0, 0, 0)
    assert len(asked) == read and len(seen.rows()) == 0


@pytest.mark.parametrize(
    "mode",
    ["crash", "sleep", "spin", "strange", "beyond", "negative", "huge", "garbage", "mute", "unready"],
)
def test_a_child_that_fails_is_started_again(watch, mode):
    seen = watch(mode).begin()
    started = time.perf_counter()
    for number in range(10):
        seen.shadow.offer(record(str(number)), b"x")
    assert time.perf_counter() - started < 0.5
    wait_for(lambda: seen.restarts >= 2, seconds=40)
    if mode == "crash":  # at every second cell
        wait_for(lambda: seen.count("compared") == seen.count("failed") == 5)
    else:
        assert seen.count("failed") >= (0 if mode in ("garbage", "mute", "unready") else 2)
        assert seen.count("compared") == 0


def test_a_comparison_that_is_lost_on_its_way_to_the_database_counts_as_failed_alone(watch, tmp_path):
    (tmp_path / "folder.db").mkdir()
    seen = watch("good", BLASTWATCH_PREDICTIONS_URL=f"sqlite:///{tmp_path / 'folder.db'}").begin()
    for number in range(5):
        seen.shadow.offer(record(str(number)), b"x")
    wait_for(lambda: seen.shadow._queue.empty())
    seen.shadow._writer.close(timeout=0.1)
    wait_for(lambda: seen.count("failed") == 5)
    assert (seen.count("compared"), seen.count("flipped"), seen.count("shed")) == (0, 0, 0)
    assert seen.metrics.registry.get_sample_value("blastwatch_shadow_probability_difference_count") == 0


@pytest.mark.parametrize("mode", ["nan", "reject"])
def test_what_is_no_probability_is_never_compared(watch, mode):
    seen = watch(mode).begin()
    for number in range(5):
        seen.shadow.offer(record(str(number)), b"x")
    wait_for(lambda: seen.count("failed") == 5)
    assert (seen.count("compared"), seen.restarts) == (0, 0)


def test_a_child_that_ends_while_nothing_is_asked_is_started_again(watch):
    seen = watch("good").begin()
    wait_for(lambda: seen.shadow.facts()["reading"])
    reading_children()[0].kill()
    wait_for(lambda: seen.restarts == 1)
    wait_for(lambda: seen.shadow.facts()["reading"])
    seen.shadow.offer(record("a"), b"x")
    wait_for(lambda: seen.count("compared") == 1)


def test_a_refused_challenger_is_not_tried_again_until_there_is_another(watch, monkeypatch):
    real, started = module.ShadowChild, []
    monkeypatch.setattr(module, "ShadowChild", lambda *given, **named: started.append(1) or real(*given, **named))
    seen = watch("refuse").begin()
    wait_for(lambda: seen.shadow.refused)
    time.sleep(0.7)
    assert len(started) == 1
    assert seen.shadow.refused["reason"] == "golden"
    seen.shadow.offer(record("a"), b"x")
    assert seen.count("shed") == 0 and seen.shadow._queue.empty()
    seen.begin(Challenger("10", "f" * 64, Path("handover.json")))
    wait_for(lambda: (seen.shadow.refused or {}).get("version") == "10")


def test_a_copy_that_was_damaged_is_fetched_anew_once(watch, tmp_path, served, monkeypatch):
    """The child still finds it damaged after the worker has found it whole, and so it stays refused."""
    taken, real = [], module.take_over_or_fetch
    monkeypatch.setattr(module, "take_over_or_fetch", lambda *given: taken.append(1) or real(*given))
    handover = hand_over(served, tmp_path / "live" / "challenger.json")
    seen = watch("damaged").begin(Challenger("7", served.package.digest, handover))
    wait_for(lambda: seen.shadow.refused)
    time.sleep(0.5)
    assert seen.shadow.refused["reason"] == "corrupt" and len(taken) == 1


def test_a_copy_that_cannot_be_had_anew_stays_refused(watch):
    """The handover is missing, so nobody knows what to fetch."""
    seen = watch("damaged").begin()
    wait_for(lambda: seen.shadow.refused)
    assert seen.shadow.refused["reason"] == "corrupt"


def test_a_challenger_that_is_withdrawn_reads_no_more(watch):
    seen = watch("good").begin()
    wait_for(lambda: seen.shadow.facts()["reading"])
    seen.shadow.follow(None)
    wait_for(lambda: not seen.shadow.facts()["reading"])
    seen.shadow.offer(record("a"), b"x")
    wait_for(lambda: not reading_children())
    seen.begin()
    seen.shadow.offer(record("b"), b"x")
    wait_for(lambda: seen.count("compared") == 1)


def test_a_child_without_a_core_is_not_taken_for_a_hung_one(tmp_path, monkeypatch):
    """One that is runnable all the time and gets no time is waited for."""
    monkeypatch.setattr(shadow_child, "runnable", lambda _pid: True)
    looks = []
    child = ShadowChild(
        tmp_path, DIGEST, {**os.environ, "PYTHONPATH": ROOT}, words=words("sleep"),
        stopped=lambda: looks.append(1) or len(looks) > 40,
    )  # fmt: skip
    try:
        child.wait_until_ready()
        with pytest.raises(shadow_child.Stopped):
            child.ask(b"x")
        assert len(looks) > 40
    finally:
        child.close()


def test_a_real_challenger_reads_what_the_service_would(tmp_path, served, cell, monkeypatch):
    """The real child: the same answer as the worker's own way, at the lowest priority, and it ends with its socket."""
    from blastwatch.engines import open_engine
    from serving.predictor import Judge, prepare

    monkeypatch.setattr(shadow_child, "START_SECONDS", 120.0)
    monkeypatch.setattr(shadow_child, "CELL_SECONDS", 30.0)
    handover = hand_over(served, tmp_path / "live" / "challenger.json")
    environment = {**os.environ, "BLASTWATCH_HOME": str(tmp_path), "PYTHONPATH": ROOT}
    child = ShadowChild(handover, served.package.digest, environment, stopped=lambda: False)
    try:
        assert child.wait_until_ready()["priority"] in ("idle", "nice")
        said = child.ask(cell.read_bytes())
        assert child.ask(b"no image") is None
        assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE or os.getpriority(os.PRIO_PROCESS, child.pid) == 19
        assert processor_seconds(child.pid) > 0
        process = psutil.Process(child.pid)
        child._wire.close()
        process.wait(20)
    finally:
        child.close()
    prepared = prepare(cell.read_bytes(), served.package)
    outputs = open_engine(served.package, "openvino-f32", threads=1).infer(prepared.crop[None])
    wanted = Judge(served.package)(prepared, outputs.logits[0], outputs.embeddings[0])
    assert said.probability == pytest.approx(wanted.probability, abs=1e-6)
    assert (said.label, said.decision) == (wanted.label, wanted.decision)


@pytest.mark.parametrize("doing", ["loads", "hangs"])
def test_a_real_child_ends_soon_after_a_worker_that_was_killed(tmp_path, served, doing):
    """Whether it loads or hangs in a cell, though it takes no other end; and nothing of it comes into the log."""
    handover = hand_over(served, tmp_path / "live" / "challenger.json")
    parts = [] if doing == "loads" else [sys.executable, "-m", "tests.shadow_children", "hang"]
    with (tmp_path / "log").open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(handover), served.package.digest, *parts], stdout=subprocess.PIPE,
            stderr=log, text=True, env={**os.environ, "BLASTWATCH_HOME": str(tmp_path), "PYTHONPATH": ROOT},
        )  # fmt: skip
    child = psutil.Process(int(worker.stdout.readline()))
    # The library whose engine it will be: then it has begun to load.
    wait_for(lambda: any("openvino" in part.path for part in child.memory_maps()), seconds=60)
    if doing == "hangs":
        assert worker.stdout.readline() == "asking\n"
        time.sleep(0.5)
    child.terminate()
    worker.kill()
    worker.wait()
    worker.stdout.close()
    try:
        with contextlib.suppress(psutil.NoSuchProcess):
            wait_for(lambda: child.status() == psutil.STATUS_ZOMBIE, seconds=20)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_another_package_than_the_one_named_is_refused(tmp_path, served, monkeypatch):
    monkeypatch.setattr(shadow_child, "START_SECONDS", 120.0)
    handover = hand_over(served, tmp_path / "live" / "challenger.json")
    environment = {**os.environ, "BLASTWATCH_HOME": str(tmp_path), "PYTHONPATH": ROOT}
    child = ShadowChild(handover, "0" * 64, environment, stopped=lambda: False)
    try:
        with pytest.raises(ChildRefused, match="another one is named") as caught:
            child.wait_until_ready()
        assert caught.value.reason == "corrupt"
    finally:
        child.close()


def test_a_process_that_is_gone():
    assert processor_seconds(2**22 + 1) == 0.0
    assert not runnable(2**22 + 1)
    assert runnable(os.getpid())
    assert issubclass(ChildFailed, Exception)
