"""Answers of simulated models to cells of simulated patients: tables with the columns `PREDICTION_COLUMNS`.

A cell's margin (its logit) for a model is

    m = sign * distance + patient + patient and model + cell + cell and model

with sign +1 for `all`, and every other part normal: some patients are hard for every model and some for one, and so are
cells. Patients are ill and healthy in turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from blastwatch.package import PREDICTION_COLUMNS


@dataclass(frozen=True)
class Spread:
    """Standard deviations of the parts of a margin, in units of the spread between cells; seed: of a shift that all
    cells of a model share towards its right answers, as two trainings of one recipe differ."""

    patient: float = 0.6
    patient_model: float = 0.3
    cell: float = 0.8
    cell_model: float = 0.6
    seed: float = 0.0


USUAL = Spread()


def draw_models(
    random: np.random.Generator,
    distances: Sequence[float],
    *,
    patients: int,
    cells: int,
    spread: Spread = USUAL,
) -> list[pd.DataFrame]:
    """One table per distance, all of the same cells; patients' numbers of cells vary around `cells`."""
    counts = np.maximum(2, random.poisson(cells, patients))
    patient = np.repeat(np.arange(patients), counts)
    sign = np.where(patient % 2 == 1, 1.0, -1.0)
    total = len(patient)
    shared = spread.patient * random.normal(size=patients)[patient] + spread.cell * random.normal(size=total)
    names = pd.Series([f"P{number:03d}" for number in range(patients)])[patient].to_numpy()
    paths = [f"{name}/{number}.bmp" for number, name in enumerate(names)]
    tables = []
    for distance in distances:
        own = spread.patient_model * random.normal(size=patients)[patient] + spread.cell_model * random.normal(
            size=total
        )
        margin = sign * (distance + spread.seed * random.normal()) + shared + own
        table = pd.DataFrame(
            {
                "path": paths,
                "subject": names,
                "group": names,
                "label": np.where(sign > 0, "all", "hem"),
                "pixel_sha256": [f"{number:064x}" for number in range(total)],
                "logit_hem": -margin / 2,
                "logit_all": margin / 2,
                "probability": 1 / (1 + np.exp(-2 * margin)),
            }
        )
        tables.append(table[list(PREDICTION_COLUMNS)])
    return tables


def draw_answers(seed: int, *, patients: int = 12, cells: int = 10, distance: float = 0.8) -> pd.DataFrame:
    """One model's answers, `cells` of every patient."""
    (table,) = draw_models(np.random.default_rng(seed), [distance], patients=patients, cells=8 * cells)
    return table.groupby("group").head(cells).reset_index(drop=True)
