"""`python -m tests.benchmarks.intervals`: 1,000 draws of the bootstrap as weights of patients, against the plain way of
drawing tables of cells and asking scikit-learn, in one run."""

import time

import numpy as np
import pandas as pd
from sklearn import metrics

from blastwatch.intervals import draw_patients
from tests.answers import draw_models
from training.figures import CELLS, PATIENTS, units_of
from training.intervals import intervals

RESAMPLES = 1000
PLAIN = 40  # draws that are timed the plain way


def the_plain_way(table: pd.DataFrame, draws: np.ndarray) -> None:
    """Per draw a table of cells; the figures over cells that scikit-learn has, and means over patients."""
    rows = {name: np.flatnonzero(table["group"] == name) for name in sorted(table["group"].unique())}
    for counts in draws.astype(int):
        parts = [places for places, count in zip(rows.values(), counts, strict=True) for _ in range(count)]
        drawn = table.iloc[np.concatenate(parts)]
        drawn = drawn.assign(draw=np.repeat(np.arange(len(parts)), [len(part) for part in parts]))
        truth, blast = (drawn["label"] == "all").to_numpy(), drawn["probability"].to_numpy()
        said = blast >= 0.5
        metrics.f1_score(truth, said, average="weighted")
        metrics.f1_score(truth, said, average="macro")
        metrics.roc_auc_score(truth, blast)
        metrics.average_precision_score(truth, blast)
        metrics.brier_score_loss(truth, blast)
        drawn.assign(right=said == truth).groupby(["draw", "label"]).agg(r=("right", "mean"), b=("probability", "mean"))


def main() -> None:
    count = len(CELLS) + len(PATIENTS)
    print(f"| cells | patients | {RESAMPLES} draws of {count} figures, s | the plain way, s | ratio |")
    print("|---|---|---|---|---|")
    for patients, cells in ((40, 25), (40, 175)):
        (table,) = draw_models(np.random.default_rng(1), [0.8], patients=patients, cells=cells)
        start = time.perf_counter()
        draws = draw_patients(table, resamples=RESAMPLES, seed=1)
        intervals(units_of(table), (*CELLS, *PATIENTS), draws)
        ours = time.perf_counter() - start
        start = time.perf_counter()
        the_plain_way(table, draws[:PLAIN])
        theirs = (time.perf_counter() - start) * RESAMPLES / PLAIN
        print(f"| {len(table)} | {patients} | {ours:.2f} | {theirs:.1f} | {theirs / ours:.0f} |", flush=True)


if __name__ == "__main__":
    main()
