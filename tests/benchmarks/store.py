"""`python -m tests.benchmarks.store [--predictions N] [--url URL | --postgres]`: what the monitor asks of a full
database, each against reading one prediction in the same run, as a Markdown table; and the size of a prediction.

The database is filled first: a prediction a second, one in ten with a label, ten cells a patient. Without `--url` it is
a SQLite file; with `--postgres` a PostgreSQL server is started for it, which does not wait for the disk (fsync=off).
The drift report is that of a whole day, with Evidently's page; its reference has 1,200 cells of 24 patients. Times are
the median of three calls, those of reading one prediction too; what changes the database, or remembers what it saw, is
called once.
"""

import argparse
import hashlib
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import numpy as np

from blastwatch.package import Package
from blastwatch.processes import free_port
from monitoring.directions import DIRECTIONS, PREFIX
from monitoring.drift import compare
from monitoring.patients import MOST_PATIENTS, Patients
from monitoring.performance import Limits
from monitoring.performance_report import MOST_CELLS, windows
from monitoring.retention import open_retention
from monitoring.statistics import STATISTICS
from monitoring.store import Store, open_store
from tests import postgres
from tests.cohorts import NOON, draw_cohort, drawn_signatures, record, unsealed_package

DIGEST = "d" * 64
LIMITS = Limits(tolerance=0.02, margin=0.05)
KNOWN = {kind: {"accuracy": {"value": 0.9, "low": 0.9, "high": 0.9}} for kind in ("estimated", "realised")}
PER_CALL = 5000
CALLS = 3


def fill(url: str, count: int) -> float:
    """Predictions a second."""
    random = np.random.default_rng(0)
    seconds = 0.0
    with open_store(url) as store:
        for first in range(0, count, PER_CALL):
            rows = range(first, min(first + PER_CALL, count))
            blast = random.random(len(rows))
            values = random.normal(size=(len(rows), len(STATISTICS)))
            embedding = random.normal(size=(len(rows), 32)).astype(np.float32)
            records = [
                record(
                    f"{number:032x}", time=NOON + timedelta(seconds=number), digest=DIGEST,
                    probability=float(blast[place]), label="all" if blast[place] >= 0.5 else "hem",
                    statistics=dict(zip(STATISTICS, values[place].tolist(), strict=True)), embedding=embedding[place],
                    patient=hashlib.sha256(str(number // 10).encode()).hexdigest(),
                )
                for place, number in enumerate(rows)
            ]  # fmt: skip
            start = time.perf_counter()
            store.add(records)
            seconds += time.perf_counter() - start
            store.add_labels([(one.id, "all" if random.random() < one.probability else "hem", NOON)
                              for one in records[::10]])  # fmt: skip
    return count / seconds


def timed(call: Callable[[], object], times: int = CALLS) -> float:
    """Seconds, the median of so many calls."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def drawn_package(folder: Path) -> Package:
    """With a reference, and every direction that drift looks along."""
    random = np.random.default_rng(1)
    reference = draw_cohort(random, patients=24, cells=50)
    moved = {name.removeprefix(PREFIX): random.normal(size=len(STATISTICS)) for name in DIRECTIONS}
    return unsealed_package(folder, reference, causes=drawn_signatures(reference, moved))


def report_a_day(store: Store, package: Package, folder: Path) -> int:
    """Read a day and hold it against the reference; returns the cells."""
    day = store.read(since=NOON, until=NOON + timedelta(days=1), model_digest=package.digest)
    return int(compare(package, day, version="1", folder=folder).document["window"]["cells"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--url")
    parser.add_argument("--postgres", action="store_true")
    asked = parser.parse_args()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = asked.url or f"sqlite:///{scratch}/predictions.db"
        if asked.postgres:
            url = stack.enter_context(postgres.running(free_port())).url
        package = drawn_package(scratch / "package")
        rate = fill(url, asked.predictions)
        with open_store(url) as store, open_retention(url) as retention:
            one = {"model_digest": DIGEST, "since": NOON + timedelta(seconds=10), "until": NOON + timedelta(seconds=11)}
            plain = timed(lambda: store.answers(**one))
            usage = retention.usage()
            who = Patients(store, model_digest=DIGEST, settle=timedelta(minutes=1))
            end = NOON + timedelta(seconds=asked.predictions)
            calls: dict[str, Callable[[], object]] = {
                "count, size and age of all": retention.usage,
                "the share of labels that agree": lambda: store.agreement(model_digest=DIGEST),
                f"the latest {MOST_CELLS} answers": lambda: store.answers(model_digest=DIGEST, limit=MOST_CELLS),
                f"the latest {MOST_CELLS} that have a label": lambda: store.answers(
                    model_digest=DIGEST, limit=MOST_CELLS, labelled=True
                ),
                "their performance by day": lambda: windows(
                    store.answers(model_digest=DIGEST, limit=MOST_CELLS), LIMITS, KNOWN, days=1
                ),
                "a drift report of a day": lambda: report_a_day(store, package, scratch / "drift"),
            }
            once: dict[str, Callable[[], object]] = {
                f"the latest {MOST_PATIENTS} patients": lambda: who.look(end),
                "who of the last day is new among them": lambda: who.look(end + timedelta(minutes=1)),
                "one patient forgotten": lambda: retention.forget(hashlib.sha256(b"7").hexdigest()),
                "10,000 cells deleted by age": lambda: retention.by_age(NOON + timedelta(seconds=10_010)),
            }
            print(f"{asked.predictions} predictions, {usage.bytes / usage.predictions:.0f} bytes each, "
                  f"stored at {rate:.0f} a second; reading one takes {1000 * plain:.1f} ms\n")  # fmt: skip
            print("| what | seconds | times reading one | peak memory until then, MiB |\n|---|---|---|---|")
            for name, call in (calls | once).items():
                seconds = timed(call, 1 if name in once else CALLS)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"| {name} | {seconds:.2f} | {seconds / plain:.0f} | {peak:.0f} |", flush=True)


if __name__ == "__main__":
    main()
