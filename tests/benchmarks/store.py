"""`python -m tests.benchmarks.store [--predictions N] [--url URL]`: what the monitor asks of a full database, each
against reading one prediction in the same run, as a Markdown table; and the size of a prediction.

The database is filled first: one prediction in ten has a label, ten cells a patient. Without `--url` it is a SQLite
file.
"""

import argparse
import hashlib
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np

from monitoring.performance import Limits
from monitoring.performance_report import MOST_CELLS, windows
from monitoring.retention import open_retention
from monitoring.statistics import STATISTICS
from monitoring.store import open_store
from tests.cohorts import NOON, record

DIGEST = "d" * 64
LIMITS = Limits(tolerance=0.02, margin=0.05)
KNOWN = {kind: {"accuracy": {"value": 0.9, "low": 0.9, "high": 0.9}} for kind in ("estimated", "realised")}
PER_CALL = 5000


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


def timed(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--url")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        url = asked.url or f"sqlite:///{scratch}/predictions.db"
        rate = fill(url, asked.predictions)
        with open_store(url) as store, open_retention(url) as retention:
            one = {"model_digest": DIGEST, "since": NOON + timedelta(seconds=10), "until": NOON + timedelta(seconds=11)}
            plain = min(timed(lambda: store.answers(**one)) for _ in range(5))
            usage = retention.usage()
            calls: dict[str, Callable[[], object]] = {
                "count, size and age of all": retention.usage,
                "the share of labels that agree": lambda: store.agreement(model_digest=DIGEST),
                f"the latest {MOST_CELLS} answers": lambda: store.answers(model_digest=DIGEST, limit=MOST_CELLS),
                "their performance by day": lambda: windows(
                    store.answers(model_digest=DIGEST, limit=MOST_CELLS), LIMITS, KNOWN, days=1
                ),
                "one patient forgotten": lambda: retention.forget(hashlib.sha256(b"7").hexdigest()),
                "10,000 cells deleted by age": lambda: retention.by_age(NOON + timedelta(seconds=10_010)),
            }
            print(f"{asked.predictions} predictions, {usage.bytes / usage.predictions:.0f} bytes each, "
                  f"stored at {rate:.0f} a second; reading one takes {1000 * plain:.1f} ms\n")  # fmt: skip
            print("| what | seconds | times reading one |\n|---|---|---|")
            for name, call in calls.items():
                seconds = timed(call)
                print(f"| {name} | {seconds:.2f} | {seconds / plain:.0f} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\npeak memory of the process: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
