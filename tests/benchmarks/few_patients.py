"""`python -m tests.benchmarks.few_patients`: false alarms of windows with cells of few patients, or mostly of one.

Cells are drawn (`tests.cohorts.draw_cohort`): 24 patients in the reference, and windows of others without drift. Under
a minute on one core.
"""

import numpy as np
import pandas as pd

from blastwatch.package import DriftReference
from monitoring.calibration import calibrate, scorers_of, thresholds_for
from tests.cohorts import draw_cohort

KNOWN, NEW, EACH = 24, 60, 100
WINDOWS = 300
SHAPES = ((30,), (60,), (100,), (54, 3, 3), (45, 8, 7), (45, 15), (40, 10, 10), (30, 30), (20, 20, 20), (12,) * 5)
"""Cells of each patient in a window."""


def main() -> None:
    random = np.random.default_rng(1)
    cohort = draw_cohort(random, patients=KNOWN + NEW, cells=EACH)
    names = cohort["group"].unique()
    reference = cohort[cohort["group"].isin(names[:KNOWN])].groupby("group").head(40)
    thresholds = calibrate(DriftReference(reference.reset_index(drop=True)))
    both = pd.concat([reference, cohort[cohort["group"].isin(names[KNOWN:])]], ignore_index=True)
    (scorer,) = scorers_of(DriftReference(both))
    members = {name: np.flatnonzero(both["group"] == name) for name in names[KNOWN:]}
    side = np.arange(len(both)) < len(reference)
    print(f"{WINDOWS} windows each without drift, {100 * thresholds['false_alarm_rate']:g} % stated\n")
    print("| cells of each patient | effective number of patients | alarms, % |\n|---|---|---|")
    for shape in SHAPES:
        windows = np.zeros((WINDOWS, len(both)))
        for window in windows:
            for name, count in zip(random.choice(names[KNOWN:], len(shape), replace=False), shape, strict=True):
                window[random.choice(members[name], count, replace=False)] = 1
        scores = scorer(windows, np.tile(side.astype(np.float64), (WINDOWS, 1)))
        limits = thresholds_for(thresholds, sum(shape))
        beyond = scores >= np.array([limits.get(name, np.inf) for name in scorer.columns])
        effective = sum(shape) ** 2 / sum(count**2 for count in shape)
        print(f"| {', '.join(map(str, shape))} | {effective:.1f} | {100 * beyond.any(axis=1).mean():.1f} |", flush=True)


if __name__ == "__main__":
    main()
