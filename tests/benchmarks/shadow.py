"""`python -m tests.benchmarks.shadow`: what the shadow costs the callers, as ratios in one run.

A real `blastwatch serve` for each of the two kinds, both running all the time: shadow share 0, and shadow share 1 with
a challenger. They are asked in turns, so that whatever else the machine does hits both. First by one caller, the
service inferring on all cores but one, which is free for the shadow; then by eight, the service inferring on every
core. Image files of 450 x 450 pixels fill the shadow's queue after 110, so it takes a while until cells are shed:
`--seconds` must be longer than that.
"""

import argparse
import concurrent.futures
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
from mlflow import MlflowClient

from blastwatch.processes import free_port
from blastwatch.settings import load
from tests.running import Running, until
from tests.service_packages import crown, write_cell

CALLERS = 8
OUTCOMES = ("compared", "flipped", "shed", "failed")


@contextmanager
def pair(work: Path, threads: int) -> Iterator[tuple[Running, Running]]:
    """A service without shadow and one with it. Workers of one home share a follower, so each has a home of its own."""
    with ExitStack() as stack:
        off, on = (start(stack, work / name, share, threads) for name, share in (("off", 0), ("on", 1)))
        until(lambda: httpx.get(f"{on.url}/v1/model").json()["challenger"]["shadow"]["reading"], 300)
        yield off, on


def start(stack: ExitStack, home: Path, share: int, threads: int) -> Running:
    settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "bench"})
    variables = {"BLASTWATCH_SHADOW_SHARE": str(share), "BLASTWATCH_THREADS": str(threads)}
    service = Running(settings, free_port(), BLASTWATCH_MAX_LATENCY_MS="60000", **variables)
    stack.callback(service.stop)
    return service.wait_until_ready()


def medians(client: httpx.Client, service: Running, cell: bytes, cells: int) -> float:
    """Milliseconds of one caller's median call."""
    times = []
    for _ in range(cells):
        started = time.perf_counter()
        answer = client.post(f"{service.url}/v1/predict", files={"image": cell}, timeout=60)
        times.append(time.perf_counter() - started)
        assert answer.status_code == 200, answer.text
    return statistics.median(times) * 1000


def saturate(service: Running, cell: bytes, seconds: float) -> float:
    """Answers a second to `CALLERS` callers at once."""
    end = time.monotonic() + seconds

    def call() -> int:
        with httpx.Client(timeout=60) as client:
            count = 0
            while time.monotonic() < end:
                assert client.post(f"{service.url}/v1/predict", files={"image": cell}).status_code == 200
                count += 1
            return count

    with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
        started = time.perf_counter()
        total = sum(pool.map(lambda _: call(), range(CALLERS)))
        return total / (time.perf_counter() - started)


def counted(service: Running) -> dict[str, float]:
    found = service.metrics()
    return {word: found.get(("blastwatch_shadow_cells_total", word), 0.0) for word in OUTCOMES}


def show_counts(before: dict[str, float], after: dict[str, float]) -> None:
    print("  shadow: " + ", ".join(f"{word} {after[word] - before[word]:.0f}" for word in after))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cells", type=int, default=40, help="calls of each service in each round")
    parser.add_argument("--seconds", type=float, default=60, help="of each saturated round")
    parser.add_argument("--work", type=Path, help="folder that keeps the registry for the next run")
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, {asked.architecture} at {asked.size} px")
    with ExitStack() as stack:
        work = asked.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        prepare(work, asked)
        cell = write_cell(work / "cell.bmp").read_bytes()
        with pair(work, max(1, cores - 1)) as (off, on):
            ask_alone(off, on, cell, asked)
        with pair(work, cores) as (off, on):
            ask_at_once(off, on, cell, asked)


def ask_alone(off: Running, on: Running, cell: bytes, asked: argparse.Namespace) -> None:
    """One caller, a core left for the shadow."""
    with httpx.Client() as client:
        for service in (off, on):
            medians(client, service, cell, 5)
        before, ratios = counted(on), []
        for turn in range(asked.rounds):
            order = (off, on) if turn % 2 == 0 else (on, off)
            found = {}
            for service in order:
                found[service] = medians(client, service, cell, asked.cells)
                if service is on:
                    settle(on)
            ratios.append(found[on] / found[off])
            print(f"  round {turn + 1}: off {found[off]:.1f} ms, on {found[on]:.1f} ms", flush=True)
    print(f"one caller: median with shadow share 1 is {statistics.median(ratios):.3f} times that with 0")
    show_counts(before, counted(on))


def ask_at_once(off: Running, on: Running, cell: bytes, asked: argparse.Namespace) -> None:
    """More callers than there are cores, every core inferring."""
    rates, counts, answered = [], dict.fromkeys(OUTCOMES, 0.0), 0.0
    for turn in range(max(2, asked.rounds // 3)):
        found = {}
        for service in (off, on) if turn % 2 == 0 else (on, off):
            before = counted(service)
            found[service] = saturate(service, cell, asked.seconds)
            if service is on:
                after = counted(service)
                counts = {word: counts[word] + after[word] - before[word] for word in OUTCOMES}
                answered += found[service] * asked.seconds
                settle(on)
        rates.append(found[on] / found[off])
        print(f"  round {turn + 1}: off {found[off]:.1f}/s, on {found[on]:.1f}/s", flush=True)
    print(f"{CALLERS} callers: throughput with shadow share 1 is {statistics.median(rates):.3f} times that with 0")
    show_counts(dict.fromkeys(OUTCOMES, 0.0), counts)
    print(f"  of about {answered:.0f} answers while no core was free; the rest waited in the queue")


def settle(service: Running) -> None:
    """Wait until the shadow has read what waits, so that the other service's turn is its own."""
    last = -1.0
    while (seen := sum(counted(service).values())) != last:
        last = seen
        time.sleep(1)


def prepare(work: Path, asked: argparse.Namespace) -> None:
    """A home with a champion and a challenger, and a copy of it."""
    if (work / "off").exists():
        return
    work.mkdir(parents=True, exist_ok=True)
    home = work / "on"
    home.mkdir()
    MlflowClient(f"sqlite:///{home / 'mlflow.db'}").search_registered_models()
    settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "bench"})
    options = {"architecture": asked.architecture, "size": asked.size}
    crown(settings, work / "champion", **options)
    crown(settings, work / "challenger", alias="challenger", seed=1, **options)
    shutil.copytree(home, work / "off")


if __name__ == "__main__":
    main()
