"""What a network is worth where the camera changes: the same test cells as they are, under each simulated cause of
drift at full strength (`monitoring.shifts`), and under others that `train.nuisances` does not look at
(`training.unsimulated`).

A figure on patients never seen is one of the camera that took the training cells, too. A network can be right on such
patients and call every cell alike under another white balance; nothing else that an evaluation measures shows it.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.errors import DataError
from blastwatch.images import Pixels, Preprocessing, crop_cell, decode
from blastwatch.intervals import DIFFERENCE, as_interval, draw_patients
from monitoring.shifts import SHIFTS, shift
from training.figures import figures, units_of
from training.intervals import intervals, patients_behind
from training.parameters import EvaluateParameters
from training.sampling import of_each_patient
from training.unsimulated import UNSIMULATED

if TYPE_CHECKING:
    from training.loop import Infer  # which needs torch

BATCH = 32  # cells that the network is asked of at a time
STRENGTH = 1.0  # what a person would see at a glance
COMPARED = "mean_accuracy"
SHOWN = (COMPARED, "auroc", "sensitivity", "specificity")


def camera_figures(
    infer: "Infer",
    tested: pd.DataFrame,
    root: Path,
    preprocessing: Preprocessing,
    temperature: float,
    parameters: EvaluateParameters,
) -> dict[str, Any] | None:
    """Figures of some of the test cells, evenly of all patients, as they are and under each cause.

    Args:
        infer: what the network answers to crops.
        tested: test cells with path, group and label; root: where their images lie, which are shifted as the camera
            took them.
        parameters: `camera_cells` in all; with 0 nothing is looked at.

    Returns:
        cells, patients, strength (of the causes of drift), `plain` (figures with intervals by patient) and `rows`: of
        each cause its name, `simulated` (whether it is a cause of drift, which `train.nuisances` looks at too), its
        figures, and `change`, by how much the mean accuracy over patients differs from that of the same cells as they
        are, on the same draws of patients. None where nothing is looked at.

    Raises:
        DataError: where an image is missing.
    """
    if not parameters.camera_cells:
        return None
    drawn = np.random.default_rng(parameters.seed).permutation(len(tested))
    places = of_each_patient(tested["group"].to_numpy(), parameters.camera_cells, drawn)
    cells = tested.iloc[places].reset_index(drop=True)
    images = _as_taken([root / path for path in cells["path"]], preprocessing.crop)
    draws = draw_patients(cells, resamples=parameters.resamples, seed=parameters.seed)
    every = np.concatenate([np.ones((1, draws.shape[1])), draws])

    def answered(shown: Iterable[Pixels]) -> pd.DataFrame:
        crops = np.stack([crop_cell(image, preprocessing) for image in shown])
        starts = range(0, len(crops), BATCH)
        logits = np.concatenate([infer(crops[start : start + BATCH]) for start in starts])
        return cells.assign(probability=probabilities(logits, temperature)[:, POSITIVE])

    def under(name: str) -> Iterable[Pixels]:
        if name in UNSIMULATED:
            return (UNSIMULATED[name](image) for image in images)
        random = np.random.default_rng(parameters.seed)
        return (shift(image, name, STRENGTH, random=random) for image in images)

    plain = units_of(answered(images))
    known = figures(plain, every, [COMPARED])[COMPARED]
    fewer = patients_behind(plain, COMPARED)
    rows = []
    for name in (*SHIFTS, *UNSIMULATED):
        units = units_of(answered(under(name)))
        change = figures(units, every, [COMPARED])[COMPARED] - known
        rows.append(
            {
                "name": name,
                "simulated": name in SHIFTS,
                "figures": intervals(units, SHOWN, draws),
                "change": as_interval(change, fewer, within=DIFFERENCE, others=units.groups - fewer),
            }
        )
    return {
        "cells": len(cells),
        "patients": int(cells["group"].nunique()),
        "strength": STRENGTH,
        "plain": intervals(plain, SHOWN, draws),
        "rows": rows,
    }


def _as_taken(paths: Sequence[Path], side: int) -> list[Pixels]:
    """The centred square of each image in pixels of the camera, uint8 (side, side, 3)."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise DataError(
            f"Expected the images of the test cells for evaluate.camera_cells but {len(missing)} are missing, the "
            f"first {missing[0]}. Bring them back, or set evaluate.camera_cells=0."
        )
    camera = Preprocessing(crop=side, size=side)
    return [crop_cell(decode(path.read_bytes()), camera) for path in paths]
