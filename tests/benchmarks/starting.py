"""`python -m tests.benchmarks.starting [--workers 1 2 --rounds 5]`: seconds from `blastwatch serve` until it answers.

By number of workers, until the first of them is ready and until all are, as a ratio to the first number that is given;
in turn, so that a slow minute hits all. The network is an untrained ResNet-50.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from blastwatch.processes import free_port
from blastwatch.settings import Settings, load
from tests.benchmarks.serving import install
from tests.running import Running, until

LIMIT = 300.0  # seconds


def start(settings: Settings, engine: str, workers: int) -> tuple[float, float]:
    """Seconds until one worker answers, and until all do."""
    started = time.perf_counter()
    service = Running(settings, free_port(), workers=workers, BLASTWATCH_ENGINE=engine)
    try:
        service.wait_until_ready()
        first = time.perf_counter() - started
        until(lambda: service.log.read_text().count("Service blastwatch initialized") >= workers, LIMIT)
        return first, time.perf_counter() - started
    finally:
        service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="openvino-int8")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    found: dict[int, list[tuple[float, float]]] = {workers: [] for workers in asked.workers}
    try:
        install(home, asked)
        settings = load({"BLASTWATCH_HOME": str(home)})
        for _ in range(asked.rounds):
            for workers, times in found.items():
                times.append(start(settings, asked.engine, workers))
    finally:
        shutil.rmtree(home)
    print("| workers | first ready, s | all ready, s | times that of the first row (range) |\n|---|---|---|---|")
    for workers, times in found.items():
        ratios = [every / base for (_, every), (_, base) in zip(times, found[asked.workers[0]], strict=True)]
        first, every = (statistics.median(values) for values in zip(*times, strict=True))
        span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {workers} | {first:.1f} | {every:.1f} | {span} |")


if __name__ == "__main__":
    main()
