"""Answers of a version whose calibration is known exactly, on patients whose cells are alike; no network.

A patient's cells share the label y and an offset u ~ N(0, `OFFSET`^2). A cell shows x ~ N(d (2y - 1) + u, 1), and the
version says P(y | x) over all patients, which is calibrated by construction; its accuracy is
Phi(d / sqrt(1 + OFFSET^2)).
"""

from datetime import UTC, datetime, timedelta
from statistics import NormalDist

import numpy as np
import pandas as pd

OFFSET = 0.8
TOTAL = (1 + OFFSET**2) ** 0.5
FIRST = datetime(2026, 11, 2, tzinfo=UTC)


def accuracy(distance: float) -> float:
    """What a calibrated version reaches on infinitely many patients."""
    return NormalDist().cdf(distance / TOTAL)


def answers(
    random: np.random.Generator, *, patients: int = 40, cells: int = 25, distance: float = 2.0, sure: float = 1.0,
    labelled: float = 1.0, keyed: bool = True, start: datetime = FIRST,
) -> pd.DataFrame:  # fmt: skip
    """The columns of `Store.answers`. `sure` multiplies the logits: above 1 the version is surer than it may be."""
    ill = np.repeat(random.random(patients) < 0.5, cells)
    offset = np.repeat(random.normal(0, OFFSET, patients), cells)
    shown = np.where(ill, distance, -distance) + offset + random.normal(size=len(ill))
    blast = 1 / (1 + np.exp(-sure * 2 * distance * shown / TOTAL**2))
    truth = np.where(ill, "all", "hem").astype(object)
    truth[random.random(len(ill)) >= labelled] = None
    order = random.permutation(len(ill))  # cells of many patients come in turns
    owner = np.repeat(np.arange(patients), cells)[order]
    return pd.DataFrame(
        {
            "id": [f"{number:05d}" for number in range(len(ill))],
            "time": pd.to_datetime([start + timedelta(minutes=number) for number in range(len(ill))], utc=True),
            "patient": [f"patient {number}" for number in owner] if keyed else "",
            "probability": blast[order],
            "label": np.where(blast[order] >= 0.5, "all", "hem"),
            "truth": truth[order],
        }
    )  # fmt: skip
