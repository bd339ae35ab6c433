"""`python -m tests.benchmarks.reading [--threads 1 2 4 8 16 --rounds 5]`: images a process reads in threads.

Decoded, cropped, measured and digested as the service does it, as a ratio to one thread in the same round. Between its
steps a thread needs Python's lock, and more threads than get it in turn take it from one another.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blastwatch.package import open_package
from serving.predictor import prepare
from tests.benchmarks.serving import FILES
from tests.service_packages import make_servable, write_cell

IMAGES = 400  # a round


def timed(read: Callable[[int], object], threads: int) -> tuple[float, float]:
    """Images a second, and milliseconds of core time an image."""
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, range(threads)))  # starts them
        wall, core = time.perf_counter(), time.process_time()
        list(pool.map(read, range(IMAGES)))
        return IMAGES / (time.perf_counter() - wall), 1000 * (time.process_time() - core) / IMAGES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        package = open_package(make_servable(Path(home) / "package", size=224))
        files = [write_cell(Path(home) / f"{number}.bmp", number).read_bytes() for number in range(FILES)]

        def read(number: int) -> object:
            return prepare(files[number % FILES], package)

        rounds = [[timed(read, threads) for threads in asked.threads] for _ in range(asked.rounds)]
    print("| threads | images/s | times the first row (range) | core ms an image |\n|---|---|---|---|")
    for place, threads in enumerate(asked.threads):
        rates, cores = zip(*(turn[place] for turn in rounds), strict=True)
        ratios = [turn[place][0] / turn[0][0] for turn in rounds]
        span = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {threads} | {statistics.median(rates):.0f} | {span} | {statistics.median(cores):.1f} |")


if __name__ == "__main__":
    main()
