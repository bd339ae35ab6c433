"""`python -m tests.benchmarks.years [DATA] [--deals 40] [--first 0] [--stay 3]`: false alarms in years without drift.

DATA as for `tests.benchmarks.shifts`. For each deal of the patients a version gets its reference, and a year is lived
with patients it never saw: a window of 200 cells a day from those who are on the ward, each of whom leaves after a few
days and gives way to another. Whoever is held out may come back in the same year: there are only so many.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from monitoring.scores import EVIDENTLY_DEFAULT, METHODS
from tests.benchmarks.shift_windows import CELLS, PATIENTS, Deal, alarms, dealt, draw, scored
from tests.benchmarks.shifts import add_dealing, dealing_of, measured, synthetic

DAYS = 365


def stays(held: list[str], patients: int, stay: float, random: np.random.Generator) -> list[list[str]]:
    """Who is on the ward each day."""
    present: list[str] = []
    found = []
    for _ in range(DAYS):
        present = [name for name in present if random.random() >= 1 / stay]
        others = [name for name in held if name not in present]
        present += list(random.choice(others, size=patients - len(present), replace=False))
        found.append(list(present))
    return found


def year(
    deal: Deal, plain: pd.DataFrame, given: argparse.Namespace, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each day alarms, ours and Evidently's with its defaults, where one column beyond its threshold counts."""
    pool = deal.model(plain[plain["group"].isin(deal.held)])
    wards = stays(deal.held, given.patients, given.stay, random)
    days = np.stack([draw(pool, 0, ward, 0.0, random) for ward in wards])
    columns, scores = scored(deal, pool, days)
    defaults = np.array([EVIDENTLY_DEFAULT[METHODS[column]] for column in columns])
    return alarms(deal, columns, scores), (scores >= defaults).any(axis=1)


def interval(counts: np.ndarray) -> str:
    """The mean over years, and 95 % of its bootstrap."""
    again = np.random.default_rng(0).choice(counts, (10_000, len(counts))).mean(axis=1)
    low, high = np.quantile(again, (0.025, 0.975))
    return f"{counts.mean():.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--deals", type=int, default=40, help="how often the patients are dealt anew, a year each")
    parser.add_argument("--first", type=int, default=0, help="number of the first deal, which draws all that is drawn")
    parser.add_argument("--stay", type=float, default=3.0, help="days that a patient stays, in the mean")
    parser.add_argument("--patients", type=int, default=PATIENTS, help="on the ward at a time")
    add_dealing(parser)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        plain = measured(given.data or synthetic(Path(scratch)), None, shifts=())
    ours, runs, theirs = [], [], []
    for number in range(given.first, given.first + given.deals):
        random = np.random.default_rng(number)
        deal = dealt(plain, random, given.rate, dealing_of(given))
        found = year(deal, plain, given, random)
        ours.append(int(found[0].sum()))
        runs.append(int((np.diff(found[0].astype(int), prepend=0) > 0).sum()))
        theirs.append(int(found[1].sum()))
    counts = np.array(ours)
    print(f"{len(counts)} years of {DAYS} windows of {CELLS} cells")
    known, answered = (part["group"].nunique() for part in (deal.reference.cells, deal.reference.answered))
    print(f"- {known} patients known to drift, {answered} of them by answers")
    print(f"- {given.patients} patients a window, who stay {given.stay:g} days in the mean")
    print(f"- false alarms a year: {interval(counts)}, stated {DAYS * given.rate:.2f}")
    print(f"- days in a row that alarm counted once: {interval(np.array(runs))}")
    print(f"- none in {np.mean(counts == 0):.0%} of the years, most in one: {counts.max()}")
    print(f"- Evidently's defaults, any column: {np.mean(theirs):.0f} a year")


if __name__ == "__main__":
    main()
