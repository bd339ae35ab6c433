"""`python -m tests.benchmarks.capture [--engine openvino-int8]`: what watching costs the service, of its throughput.

The service as it is, with image statistics and the capture of every prediction in SQLite, against the same service
without both (`tests.benchmarks.uncaptured`), with the same engine and package: asked in turns, in the order ab ba, by
callers on the same cores.

Beside the throughput stands the core time of each service's processes, which others on the machine disturb less.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
from pathlib import Path

import psutil

from blastwatch.processes import free_port
from blastwatch.settings import load
from tests.benchmarks.serving import FILES, install, load_on, multipart, request, served
from tests.benchmarks.unwatched import Unwatched
from tests.running import Running
from tests.service_packages import write_cell

OFF = {"BLASTWATCH_FOLLOW_SECONDS": "0", "BLASTWATCH_MAX_LATENCY_MS": "60000"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="openvino-int8")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=6, help="pairs of turns")
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    running: list[Running] = []
    try:
        install(home, asked)
        files = [write_cell(home / f"{number}.bmp", number).read_bytes() for number in range(FILES)]
        settings = load({"BLASTWATCH_HOME": str(home)})
        for kind in (Running, Unwatched):
            running.append(kind(settings, free_port(), BLASTWATCH_ENGINE=asked.engine, **OFF).wait_until_ready())
        compare(asked, running, files)
    finally:
        for server in running:
            server.stop()
        shutil.rmtree(home)


def core_seconds(server: Running) -> float:
    """Core time of all processes of a service until now."""
    family = [psutil.Process(server.process.pid), *server.children()]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def compare(asked: argparse.Namespace, running: list[Running], files: list[bytes]) -> None:
    ports = [server.port for server in running]
    messages = [[request(port, "/v1/predict", multipart("image", [data])) for data in files] for port in ports]
    for port, asks in zip(ports, messages, strict=True):
        load_on(port, asks, asked.callers, 3.0)  # warms up
    rates: list[tuple[float, float]] = []
    spent, answered = [0.0, 0.0], [0, 0]
    for turn in range(asked.rounds):
        order = (0, 1) if turn % 2 == 0 else (1, 0)
        found = {}
        for which in order:
            before = core_seconds(running[which])
            found[which], took = served(ports[which], messages[which], asked.callers, asked.seconds)
            spent[which] += core_seconds(running[which]) - before
            answered[which] += len(took)
        rates.append((found[0], found[1]))
        print(f"watched {found[0]:.1f} cells/s, unwatched {found[1]:.1f}: {found[0] / found[1]:.3f}", flush=True)
    ratios = [watched / unwatched for watched, unwatched in rates]
    cores = len(os.sched_getaffinity(0))
    print(f"\n{platform.machine()}, {cores} cores, {asked.architecture} at {asked.size} px, {asked.engine}")
    print(f"watched over unwatched: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    watched, unwatched = (1000 * seconds / cells for seconds, cells in zip(spent, answered, strict=True))
    print(f"core time a cell: watched {watched:.2f} ms, unwatched {unwatched:.2f} ms: {unwatched / watched:.3f}")


if __name__ == "__main__":
    main()
