"""What a network is worth where the camera changes: the same test cells as they are and under each simulated cause of
drift at full strength (`monitoring.shifts`).

A figure on patients never seen is one of the camera that took the training cells, too. A network can be right on such
patients and call every cell alike under another white balance; nothing else that an evaluation measures shows it.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.images import Pixels
from blastwatch.intervals import as_interval, draw_patients
from monitoring.shifts import SHIFTS, shift
from training.figures import figures, units_of
from training.intervals import intervals, patients_behind
from training.pack import Packed
from training.parameters import EvaluateParameters
from training.sampling import of_each_patient

if TYPE_CHECKING:
    from torch import nn

STRENGTH = 1.0  # what a person would see at a glance
COMPARED = "mean_accuracy"
SHOWN = (COMPARED, "auroc", "sensitivity", "specificity")


def camera_figures(
    network: "nn.Module", tested: pd.DataFrame, packed: Packed, temperature: float, parameters: EvaluateParameters
) -> dict[str, Any] | None:
    """Figures of some of the test cells, evenly of all patients, as they are and under each cause.

    Args:
        tested: test cells with path, group and label.
        parameters: `camera_cells` in all; with 0 nothing is looked at.

    Returns:
        cells, patients, strength, `plain` (figures with intervals by patient) and `rows`: of each cause its name, its
        figures, and `change`, by how much the mean accuracy over patients differs from that of the same cells as they
        are, on the same draws of patients. None where nothing is looked at.
    """
    if not parameters.camera_cells:
        return None
    places = of_each_patient(
        tested["group"].to_numpy(), parameters.camera_cells, np.random.default_rng(parameters.seed)
    )
    cells = tested.iloc[places].reset_index(drop=True)
    crops = packed.crops[packed.rows_of(cells["path"].tolist())]
    draws = draw_patients(cells, resamples=parameters.resamples, seed=parameters.seed)
    every = np.concatenate([np.ones((1, draws.shape[1])), draws])

    def answered(shown: Pixels) -> pd.DataFrame:
        return cells.assign(probability=_blast(network, shown, packed, temperature))

    plain = units_of(answered(crops))
    known = figures(plain, every, [COMPARED])[COMPARED]
    rows = []
    for name in SHIFTS:
        units = units_of(answered(_under(crops, name, parameters.seed)))
        change = figures(units, every, [COMPARED])[COMPARED] - known
        rows.append(
            {
                "name": name,
                "figures": intervals(units, SHOWN, draws),
                "change": as_interval(change, patients_behind(units, COMPARED)),
            }
        )
    return {
        "cells": len(cells),
        "patients": int(cells["group"].nunique()),
        "strength": STRENGTH,
        "plain": intervals(plain, SHOWN, draws),
        "rows": rows,
    }


def _under(crops: Pixels, name: str, seed: int) -> Pixels:
    random = np.random.default_rng(seed)
    return np.stack([shift(crop, name, STRENGTH, random=random) for crop in crops])


def _blast(network: "nn.Module", crops: Pixels, packed: Packed, temperature: float) -> NDArray[np.float64]:
    from training.loop import logits_of_crops  # which needs torch

    return probabilities(logits_of_crops(network, crops, packed.preprocessing), temperature)[:, POSITIVE]
