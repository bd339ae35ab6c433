"""Rate limits: against a bucket computed in fractions, over several processes, in bounded memory, by real requests."""

import errno
import math
import os
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from monitoring.store import StoreError
from serving import rate as module
from serving.drawing import MOST
from serving.in_flight import InFlight
from serving.keys import KeyFolder
from serving.problems import Overloaded, Problem
from serving.rate import RateLimiter, address_of
from tests.in_thread import front
from tests.service_packages import write_cell

ROOT = Path(__file__).parents[3]

GREEDY = """
import sys, time
from pathlib import Path
from serving.rate import RateLimiter
limiter = RateLimiter(Path(sys.argv[1]), rate=200, burst=50)
print("ready", flush=True)
sys.stdin.readline()
start = time.monotonic()
taken = 0
while time.monotonic() < start + 0.4:
    taken += limiter.take("key lab") == 0
print(taken, start, time.monotonic())
"""


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    rate=st.sampled_from((0.5, 1.0, 4.0, 64.0)),
    burst=st.integers(1, 8),
    calls=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=40),
)
def test_it_is_the_token_bucket(tmp_path_factory, rate, burst, calls):
    """Times are eighths of a second and rates powers of two, so that both computations are exact."""
    limiter = RateLimiter(tmp_path_factory.mktemp("rate"), rate=rate, burst=burst)
    level, now = Fraction(burst), 100.0
    for eighths, cells in calls:
        now += eighths / 8
        level = min(Fraction(burst), level + Fraction(eighths, 8) * Fraction(rate))
        wait = limiter.take("a", at=now)
        assert (wait == 0) == (level >= 1)
        if wait:
            assert wait == (1 - level) / Fraction(rate)
        else:
            limiter.charge("a", cells - 1, at=now)
            level -= cells
    limiter.close()


def test_what_is_given_back_can_be_taken_again_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SETS", 1)
    limiter = RateLimiter(tmp_path, rate=1, burst=3)
    assert limiter.take("a", at=9.0) == 0
    limiter.charge("a", 4, at=9.0)
    assert limiter.take("a", at=9.0) == 3
    limiter.give_back("a", 5)
    assert [limiter.take("a", at=9.0) for _ in range(4)] == [0, 0, 0, 1]
    limiter.give_back("a", 2)  # long after: the bucket is full and takes no more
    assert [limiter.take("a", at=99.0) for _ in range(4)] == [0, 0, 0, 1]
    for number in range(8):
        limiter.charge(f"busy {number}", 200, at=99.0)
    limiter.give_back("a", 1)  # who had to make room takes none of the others' places
    assert [limiter.take(f"busy {number}", at=99.0) for number in range(8)] == [198] * 8
    limiter.close()


def test_several_processes_are_one_limit(tmp_path):
    children = [
        subprocess.Popen(
            [sys.executable, "-c", GREEDY, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for child in children:
        assert child.stdout.readline() == "ready\n"
    said = []
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60)[0].split() for child in children]
    taken = [int(words[0]) for words in said]
    elapsed = max(float(words[2]) for words in said) - min(float(words[1]) for words in said)
    assert 50 < sum(taken) <= 50 + 200 * elapsed + 1
    assert sum(taken) > 50 + 200 * 0.2  # and it does let in what it may


def test_the_memory_is_bounded_and_a_busy_caller_stays_known(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SETS", 1)
    limiter = RateLimiter(tmp_path, rate=1, burst=2)
    size = (path := next(tmp_path.glob("rate-*"))).stat().st_size
    limiter.charge("busy", 100, at=5.0)
    assert all(limiter.take(f"caller {number}", at=5.0) == 0 for number in range(500))
    assert limiter.take("busy", at=5.0) == 99
    assert path.stat().st_size == size == 8 * 16
    limiter.close()


@pytest.mark.parametrize("size", [None, 100, module.SETS * 128])
def test_the_whole_file_has_its_room_on_the_disk(tmp_path, size):
    """Also one that is there and has holes."""
    path = tmp_path / f"rate-{module._BOOT.read_text().strip()}"
    if size is not None:
        path.touch()
        os.truncate(path, size)
        assert path.stat().st_blocks == 0
    RateLimiter(tmp_path, rate=1, burst=1).close()
    assert path.stat().st_size == 512 * 1024 <= 512 * path.stat().st_blocks


def test_a_full_disk_ends_the_start_and_keeps_no_file_open(tmp_path, monkeypatch):
    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        RateLimiter(tmp_path, rate=1, burst=1)
    assert not [file for file in psutil.Process().open_files() if Path(file.path).is_relative_to(tmp_path)]


def test_a_file_of_an_earlier_boot_goes(tmp_path):
    (tmp_path / "rate-earlier").write_bytes(b"x" * 4096)
    RateLimiter(tmp_path, rate=1, burst=1).close()
    assert [path.name for path in tmp_path.iterdir()] == [f"rate-{module._BOOT.read_text().strip()}"]


@pytest.mark.parametrize(
    ("host", "caller"),
    [("10.0.0.7", "10.0.0.7"), ("2001:db8::1", "2001:db8::/64"), ("2001:db8::9:8:7:6", "2001:db8::/64"),
     ("2001:db8:0:1::1", "2001:db8:0:1::/64"), ("::ffff:10.0.0.7", "10.0.0.7"), ("unix", "unix")],
)  # fmt: skip
def test_whom_an_address_stands_for(host, caller):
    assert address_of(host) == caller


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (1, 0), (math.nan, 1)])
def test_a_limit_that_is_none(tmp_path, rate, burst):
    with pytest.raises(ValueError, match="Expected a positive rate"):
        RateLimiter(tmp_path, rate=rate, burst=burst)


def test_real_requests_are_limited_by_key_and_guesses_by_address(served, tmp_path):
    keys = KeyFolder(tmp_path / "home" / "api-keys")
    first, second = keys.add("first"), keys.add("second")
    cell = write_cell(tmp_path / "cell.bmp").read_bytes()
    # A token comes back each 50 s: none does while the test runs.
    with front(served, tmp_path / "home", BLASTWATCH_RATE_LIMIT="0.02", BLASTWATCH_RATE_BURST="3") as door:
        assert [door.ask("/v1/model", first).status_code for _ in range(4)] == [200, 200, 200, 429]
        refused = door.ask("/v1/model", first)
        assert refused.json()["type"] == "/problems/rate-limited"
        assert 1 <= int(refused.headers["retry-after"]) <= 50
        batch = door.ask("/v1/predict_batch", second, files=[("images", cell)] * 4)
        assert len(batch.json()["results"]) == 4  # let in with three tokens, and now one in debt
        assert 90 <= int(door.ask("/v1/model", second).headers["retry-after"]) <= 100
        assert [door.ask("/v1/model", "bw_guess").status_code for _ in range(4)] == [401, 401, 401, 429]
        assert [door.ask(path).status_code for path in ("/", "/metrics", "/docs.json")] == [200, 200, 200]
        assert door.count("blastwatch_kept_out_requests_total", problem="rate-limited") == 4
        assert door.count("blastwatch_requests_total", route="/v1/model", outcome="limited") == 4
        assert door.count("blastwatch_requests_total", outcome="overloaded") == 0


def test_a_caller_beyond_its_limit_and_a_service_with_too_many_cells_are_counted_apart(served, tmp_path, monkeypatch):
    """Both are told 429, and nothing else than the outcome says which. Who is turned away since too many cells wait,
    before a body is read, has not used up any of the limit; a heat map's was."""

    def full():
        raise Overloaded(retry_after=2, waiting=9)

    lab = KeyFolder(tmp_path / "home" / "api-keys").add("lab")
    with front(served, tmp_path / "home", BLASTWATCH_RATE_LIMIT="0.02", BLASTWATCH_RATE_BURST="4") as door:
        monkeypatch.setattr(door.service.lane.batcher, "check_room", full)
        monkeypatch.setattr(door.service._drawing, "_asked", MOST)
        cell = write_cell(tmp_path / "cell.bmp").read_bytes()
        paths = ("/v1/predict", "/v1/predict", "/v1/predict_batch", "/v1/explain", "/v1/predict", "/v1/explain")
        answers = [door.ask(path, lab, files={"image": cell}) for path in paths]
        assert [door.ask("/v1/model", lab).status_code for _ in range(2)] == [200] * 2
        answers += [door.ask(path, lab, files={"image": cell}) for path in paths[-2:]]
        assert {answer.status_code for answer in answers} == {429}
        assert [answer.json()["type"].rpartition("/")[2] for answer in answers] == 6 * ["overloaded"] + 2 * [
            "rate-limited"
        ]
        counted = {
            (route, outcome): door.count("blastwatch_requests_total", route=f"/v1/{route}", outcome=outcome)
            for route in ("predict", "predict_batch", "explain")
            for outcome in ("overloaded", "limited", "refused", "failed", "ok")
        }
        assert {key: count for key, count in counted.items() if count} == {
            ("predict", "overloaded"): 3, ("predict_batch", "overloaded"): 1, ("explain", "overloaded"): 2,
            ("predict", "limited"): 1, ("explain", "limited"): 1,
        }  # fmt: skip


def test_a_batch_that_is_turned_away_once_its_files_were_read_pays_for_all_of_them(served, tmp_path, monkeypatch):
    lab = KeyFolder(tmp_path / "home" / "api-keys").add("lab")
    with front(served, tmp_path / "home", BLASTWATCH_RATE_LIMIT="0.02", BLASTWATCH_RATE_BURST="1") as door:
        room = [Overloaded(retry_after=1, waiting=9), None, Overloaded(retry_after=1, waiting=9)]

        def check():
            if error := room.pop(0):
                raise error

        monkeypatch.setattr(door.service.lane.batcher, "check_room", check)
        files = [("images", write_cell(tmp_path / "cell.bmp").read_bytes())] * 2
        asked = [door.ask("/v1/predict_batch", lab, files=files) for _ in range(3)]
        assert room == [] and [answer.json()["type"].rpartition("/")[2] for answer in asked] == [
            "overloaded", "overloaded", "rate-limited",
        ]  # fmt: skip
        assert 50 < int(asked[2].headers["retry-after"]) <= 100  # it owes one of two cells


def test_a_heat_map_that_finds_no_room_is_paid_since_it_was_read(served, tmp_path, monkeypatch):
    """Else whoever has all of the places could have any number of bodies read for nothing."""
    lab = KeyFolder(tmp_path / "home" / "api-keys").add("lab")
    cell = write_cell(tmp_path / "cell.bmp").read_bytes()
    with front(served, tmp_path / "home", BLASTWATCH_RATE_LIMIT="0.02", BLASTWATCH_RATE_BURST="3") as door:
        monkeypatch.setattr(door.service._drawing, "_asked", MOST)
        said = [door.ask("/v1/explain", lab, files={"image": cell}).json()["type"] for _ in range(5)]
    assert [kind.rpartition("/")[2] for kind in said] == 3 * ["overloaded"] + 2 * ["rate-limited"]


def test_no_room_for_a_body_is_paid_only_once_it_has_begun(served, tmp_path, monkeypatch):
    """One without a declared length is refused when its first bytes are here."""

    def full(_count, _path, size):
        if size:
            raise Problem("overloaded", "Full.")

    lab = KeyFolder(tmp_path / "home" / "api-keys").add("lab")
    multipart = {"Content-Type": "multipart/form-data; boundary=b"}
    with front(served, tmp_path / "home", BLASTWATCH_RATE_LIMIT="0.02", BLASTWATCH_RATE_BURST="1") as door:
        monkeypatch.setattr(InFlight, "check", full)
        bodies = [b"--b", b"--b", iter([b"--b"]), b"--b"]
        asked = [door.ask("/v1/predict", lab, content=body, headers=multipart) for body in bodies]
    said = [answer.json()["type"].rpartition("/")[2] for answer in asked]
    assert said == 3 * ["overloaded"] + ["rate-limited"]


def test_a_label_that_was_not_stored_and_files_that_were_not_kept_are_paid(served, tmp_path, monkeypatch):
    def away(*_arguments):
        raise StoreError("away")

    def full(*_arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    lab = KeyFolder(tmp_path / "home" / "api-keys").add("lab")
    with front(served, tmp_path / "home", BLASTWATCH_RATE_LIMIT="0.02", BLASTWATCH_RATE_BURST="2") as door:
        monkeypatch.setattr(door.service, "store_label", away)
        monkeypatch.setattr("starlette.formparsers.MultiPartParser.parse", full)
        label = {"json": {"id": "0", "label": "all"}}
        files = {"files": {"images": b"x"}}
        asked = [door.ask("/v1/labels", lab, **label), door.ask("/v1/predict_batch", lab, **files)]
        assert [answer.json()["type"] for answer in asked] == ["/problems/store-unavailable", "/problems/no-room"]
        assert door.ask("/v1/model", lab).json()["type"] == "/problems/rate-limited"


HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
    fcntl.lockf(file, fcntl.LOCK_UN)
    print("let go", flush=True)
    sys.stdin.readline()
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    print("had again", flush=True)
"""


def test_it_waits_for_whoever_holds_the_lock_and_lets_it_go(tmp_path):
    """Else two workers would count one call, or one that died in between would hold up all others."""
    limiter = RateLimiter(tmp_path, rate=1, burst=2)
    [path] = tmp_path.glob("rate-*")
    taken = threading.Event()
    taking = threading.Thread(target=lambda: (limiter.take("a"), taken.set()))
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        taking.start()
        assert not taken.wait(0.3)
        for word in ("let go", "had again"):
            other.stdin.write("\n")
            other.stdin.flush()
            assert other.stdout.readline() == f"{word}\n"
            assert taken.wait(5)
    taking.join()
    limiter.close()
