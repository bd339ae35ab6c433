"""`python -m tests.benchmarks.patient_looks [--patients N] [--every N]`: false alarms of a monitor that looks often.

Patients are drawn of independent normal columns, those of the reference and those who come alike. The monitor looks
after every so many of them at the latest that it looks at, and knows what it kept of the look before.
"""

import argparse
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

from monitoring.patient_alarms import State
from monitoring.patient_drift import PATIENTS_PER_FALSE_ALARM, Floats, Unlike
from monitoring.patient_report import followed
from monitoring.patients import MOST_PATIENTS, Came
from monitoring.scores import MEASURED, PROBABILITY

START, HOUR = datetime(2026, 1, 1, tzinfo=UTC), timedelta(hours=1)


def found_by_looks(
    known: pd.DataFrame, came: pd.DataFrame, uniforms: Floats, *, every: int, stored: int = MOST_PATIENTS
) -> list[int]:
    """Places of the patients at whom a column alarmed, of looks after every so many of those who came.

    Args:
        stored: how many of them are not deleted.
    """
    first = pd.Series(pd.date_range(START, periods=len(came), freq=HOUR).as_unit("us"))
    state, unlike, places = State(), Unlike(), []
    for until in [*range(every, len(came), every), len(came)]:
        latest = slice(max(0, until - min(stored, MOST_PATIENTS)), until)
        rows, times = (part.iloc[latest].reset_index(drop=True) for part in (came, first))
        seen = Came(rows=rows, first=times, uniforms=uniforms[latest], few=0, waiting=0, cut=len(rows) == MOST_PATIENTS)
        document, state = followed(known, seen, None, version="", settle=HOUR, state=state, unlike=unlike)
        places = [(datetime.fromisoformat(change["found"]) - START) // HOUR for change in document["changes"]]
    return places


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=int, default=12, help="patients of the reference")
    parser.add_argument("--patients", type=int, default=3000, help="of a stream")
    parser.add_argument("--every", type=int, default=50, help="patients come between two looks")
    parser.add_argument("--stored", type=int, default=MOST_PATIENTS, help="latest patients who are not deleted")
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first stream")
    given = parser.parse_args()
    columns, counts = [*MEASURED, PROBABILITY], []
    for number in range(given.seed, given.seed + given.streams):
        random = np.random.default_rng(number)
        known, came = (
            pd.DataFrame(random.normal(size=(count, len(columns))), columns=columns)
            for count in (given.known, given.patients)
        )
        found = found_by_looks(known, came, random.random(given.patients), every=given.every, stored=given.stored)
        counts.append(np.histogram(found, bins=range(0, given.patients + 1000, 1000))[0])
        total = given.patients * len(counts)
        print(
            f"{total} patients in {len(counts)} streams: {np.sum(counts)} alarms, stated at most "
            f"{total / PATIENTS_PER_FALSE_ALARM:g}; by thousand {np.sum(counts, axis=0).tolist()}",
            flush=True,
        )


if __name__ == "__main__":
    main()
