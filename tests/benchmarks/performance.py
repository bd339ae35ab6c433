"""`python -m tests.benchmarks.performance [--draws N]`: estimated against realised accuracy on drawn windows, how often
the check on labels says what, and the cost of a report over the windows of a month, as Markdown tables.

The version of `tests.answered` is calibrated exactly; harder cells lie nearer together, and one that is too sure
multiplies its logits. All windows: 500 cells, every cell labelled.
"""

import argparse
import statistics

import numpy as np
import pandas as pd

from monitoring.performance import STATES, Limits, performance
from monitoring.performance_report import windows
from tests.answered import accuracy, answers
from tests.benchmarks.turns import in_turns

ROUNDS = 5
LIMITS = Limits(tolerance=0.02, margin=0.05)
CELLS = 500
PLACES = (
    ("as on the reference", 2.0, 1.0, 20),
    ("harder cells", 1.2, 1.0, 20),
    ("much harder cells", 0.6, 1.0, 20),
    ("twice too sure", 1.2, 2.0, 20),
    ("four times too sure", 0.6, 4.0, 20),
    ("half as sure as it may be", 1.2, 0.5, 20),
    ("harder cells of 10 patients", 1.2, 1.0, 10),
    ("harder cells of 5 patients", 1.2, 1.0, 5),
)
HEAD = (
    "the window", "true accuracy", "realised less estimated, points", "its spread",
    "untrusted", "open", "confirmed", "estimate fell", "truth fell",
)  # fmt: skip


def row(name: str, distance: float, sure: float, patients: int, draws: int) -> str:
    base = accuracy(2.0)
    known = {kind: {"accuracy": {"value": base, "low": base, "high": base}} for kind in ("estimated", "realised")}
    random = np.random.default_rng(1)
    gaps, states, fell = [], dict.fromkeys(STATES, 0), {"estimated": 0, "realised": 0}
    for _ in range(draws):
        cells = answers(random, patients=patients, cells=CELLS // patients, distance=distance, sure=sure)
        found = performance(cells, LIMITS, known=known)
        gaps.append(found["realised"]["accuracy"]["value"] - found["estimated"]["accuracy"]["value"])
        states[found["check"]["state"]] += 1
        fell = {kind: count + bool(found["fell"][kind]) for kind, count in fell.items()}
    shares = [states["untrusted"], states["open"], states["confirmed"], fell["estimated"], fell["realised"]]
    parts = " | ".join(f"{100 * share / draws:.0f} %" for share in shares)
    mean = np.mean(gaps)
    return f"| {name} | {accuracy(distance):.3f} | {100 * mean:+.1f} | {100 * np.std(gaps):.1f} | {parts} |"


def cost() -> None:
    """Thirty daily windows of 1,000 cells, against counting the right answers of each day with pandas alone."""
    cells = answers(np.random.default_rng(2), patients=600, cells=50)
    cells["time"] = cells["time"].iloc[0] + pd.to_timedelta(np.arange(len(cells)) * 86.4, unit="s")
    known = {kind: {"accuracy": {"value": 0.9, "low": 0.9, "high": 0.9}} for kind in ("estimated", "realised")}
    both = (
        lambda: windows(cells, LIMITS, known, days=1),
        lambda: (cells["truth"] == cells["label"]).groupby(cells["time"].dt.floor("D")).mean(),
    )
    rounds = in_turns(both, ROUNDS)
    ours = statistics.median(ours for ours, _ in rounds)
    ratio = statistics.median(ours / plain for ours, plain in rounds)
    print(f"\n30 windows of 1,000 cells with all intervals: {ours:.2f} s, {ratio:.0f} times counting alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=300)
    draws = parser.parse_args().draws
    print(f"| {' | '.join(HEAD)} |")
    print("|" + "---|" * len(HEAD))
    for place in PLACES:
        print(row(*place, draws), flush=True)
    cost()


if __name__ == "__main__":
    main()
