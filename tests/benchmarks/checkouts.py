"""`python -m tests.benchmarks.checkouts FOLDER [--callers 1 8 32]`: the service of another checkout beside this one.

What a change of the service gains, seen where minutes differ more than the change does: both services run side by side,
each with a home of its own, and are asked in turns; before each turn the bare loop of `tests.benchmarks.serving` runs.
The engine of the loop is this checkout's. `git worktree add FOLDER COMMIT` makes the other one.
"""

import argparse
import contextlib
import dataclasses
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from blastwatch.engines import open_engine
from blastwatch.processes import free_port
from blastwatch.settings import load
from tests.benchmarks.serving import BATCH_CALL, FILES, bare, install, multipart, request, served
from tests.running import Running
from tests.service_packages import write_cell

HERE = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Turn:
    """One turn of a service: cells a second, the same to the loop's before it, ms of core time a cell, median ms."""

    rate: float
    ratio: float
    core: float
    median: float


@contextlib.contextmanager
def started(checkout: Path, asked: argparse.Namespace) -> Iterator[Running]:
    home = Path(tempfile.mkdtemp())
    try:
        install(home, asked)
        wanted = {"BLASTWATCH_ENGINE": asked.engine, "BLASTWATCH_MAX_LATENCY_MS": "60000"}
        settings = load({"BLASTWATCH_HOME": str(home)})
        service = Running(settings, free_port(), **wanted, PYTHONPATH=str(checkout))
        try:
            service.wait_until_ready().wait_until_following()
            yield service
        finally:
            service.stop()
    finally:
        shutil.rmtree(home)


def core_seconds(service: Running) -> float:
    times = [part.cpu_times() for part in (psutil.Process(service.process.pid), *service.children())]
    return sum(each.user + each.system for each in times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--engine", default="openvino-int8")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args(namespace=argparse.Namespace(architecture="resnet50", size=224))
    if not (asked.other / "serving").is_dir():
        parser.error(f"Expected a checkout of the project in {asked.other} but it has no folder `serving`.")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        package = install(folder, asked)
        files = [write_cell(folder / f"{number}.bmp", number).read_bytes() for number in range(FILES)]
        engine = open_engine(package, asked.engine)
        services = [stack.enter_context(started(place, asked)) for place in (asked.other.resolve(), HERE)]
        ways = [(f"{callers} callers", callers, 1) for callers in asked.callers]
        ways.append((f"batch calls of {BATCH_CALL}, 2 callers", 2, BATCH_CALL))
        found: dict[tuple[str, int], list[Turn]] = {}

        def turn(which: int, callers: int, each: int) -> Turn:
            port = services[which].port
            path, field = ("/v1/predict", "image") if each == 1 else ("/v1/predict_batch", "images")
            messages = [
                request(port, path, multipart(field, files[at : at + each])) for at in range(0, len(files), each)
            ]
            loop, before = bare(engine, package, files, asked.seconds / 2), core_seconds(services[which])
            rate, took = served(port, messages, callers, asked.seconds)
            core = (core_seconds(services[which]) - before) / len(took) / each
            return Turn(rate * each, rate * each / loop, 1000 * core, 1000 * statistics.median(took))

        for which in (0, 1):
            turn(which, 8, 1)  # warms up
        for number in range(asked.rounds):
            for name, callers, each in ways:
                for which in (0, 1) if number % 2 == 0 else (1, 0):
                    found.setdefault((name, which), []).append(turn(which, callers, each))
    report([name for name, *_ in ways], found)


def report(ways: list[str], found: dict[tuple[str, int], list[Turn]]) -> None:
    print("| | cells/s, other | this | this to other (range) | of the loop, other | this | core time, this to other |")
    print("|---" * 7 + "|")
    for name in ways:
        old, new = found[name, 0], found[name, 1]
        times = [after.rate / before.rate for before, after in zip(old, new, strict=True)]
        cores = [after.core / before.core for before, after in zip(old, new, strict=True)]
        rates = " | ".join(f"{statistics.median(row.rate for row in rows):.1f}" for rows in (old, new))
        loops = " | ".join(f"{statistics.median(row.ratio for row in rows):.3f}" for rows in (old, new))
        span = f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f})"
        print(f"| {name} | {rates} | {span} | {loops} | {statistics.median(cores):.3f} |")
    for which, word in enumerate(("other", "this")):
        medians = [f"{name} {statistics.median(row.median for row in found[name, which]):.1f}" for name in ways]
        print(f"\n{word}, median ms: {', '.join(medians)}")


if __name__ == "__main__":
    main()
