"""Figures under simulated cameras: those of the very cells, shifted by hand and answered one by one."""

import numpy as np
import pytest
import torch
from torch import nn

from blastwatch.images import normalise
from blastwatch.intervals import draw_patients
from blastwatch.manifest import read_cells, read_split
from monitoring.shifts import SHIFTS, shift
from training.pack import open_pack
from training.parameters import EvaluateParameters
from training.robustness import camera_figures


class Redness(nn.Module):
    """A blast where the cell is redder than some level: under another white balance it calls all cells alike."""

    def __init__(self, level):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))

    def forward(self, images):
        red = images[:, 0].mean(dim=(1, 2)) - images[:, 2].mean(dim=(1, 2)) - self.level
        return torch.stack([-5 * red, 5 * red], dim=1)


@pytest.fixture
def tested(cohort):
    rows = read_split(cohort / "cells", cohort / "split")
    return rows[rows["side"] == "test"].reset_index(drop=True)


@pytest.fixture
def packed(cohort):
    return open_pack(cohort / "pack", read_cells(cohort / "cells"))


@pytest.fixture
def network(tested, packed):
    inputs = normalise(packed.crops[packed.rows_of(tested["path"].tolist())], packed.preprocessing)
    return Redness(float(np.median(inputs[:, 0].mean(axis=(1, 2)) - inputs[:, 2].mean(axis=(1, 2)))))


def accuracies(network, cells, crops, packed):
    """Of each patient, by a loop over its cells."""
    right = {}
    for crop, label, group in zip(crops, cells["label"], cells["group"], strict=True):
        logits = network(torch.from_numpy(normalise(crop[None], packed.preprocessing))).detach().numpy()[0]
        right.setdefault((group, label), []).append((logits[1] >= logits[0]) == (label == "all"))
    return {patient: np.mean(values) for patient, values in right.items()}


def test_each_figure_is_that_of_the_shifted_cells(network, tested, packed):
    parameters = EvaluateParameters(resamples=50, camera_cells=10_000)
    found = camera_figures(network, tested, packed, 1.7, parameters)
    assert (found["cells"], found["patients"]) == (len(tested), tested["group"].nunique())
    assert [row["name"] for row in found["rows"]] == list(SHIFTS)
    crops = packed.crops[packed.rows_of(tested["path"].tolist())]
    plain = accuracies(network, tested, crops, packed)
    assert found["plain"]["mean_accuracy"]["value"] == pytest.approx(np.mean(list(plain.values())))
    order = sorted(tested["group"].unique())
    draws = draw_patients(tested, resamples=50, seed=parameters.seed)
    for row in found["rows"]:
        random = np.random.default_rng(parameters.seed)
        shown = [shift(crop, row["name"], 1.0, random=random) for crop in crops]
        moved = accuracies(network, tested, shown, packed)
        assert row["figures"]["mean_accuracy"]["value"] == pytest.approx(np.mean(list(moved.values())))
        assert row["change"]["value"] == pytest.approx(np.mean([moved[one] - plain[one] for one in plain]))
        changes = {group: moved[one] - plain[one] for one in plain for group in [one[0]]}
        drawn = draws @ np.array([changes[group] for group in order]) / draws.sum(axis=1)
        assert drawn.min() - 1e-9 <= row["change"]["low"] <= row["change"]["high"] <= drawn.max() + 1e-9
    change = {row["name"]: row["change"]["value"] for row in found["rows"]}
    assert abs(change["white_balance"]) > 0.1 > abs(change["defocus"])


def test_some_cells_are_taken_evenly_and_none_where_none_are_asked_for(network, tested, packed):
    patients = tested["group"].nunique()
    found = camera_figures(network, tested, packed, 1.0, EvaluateParameters(resamples=20, camera_cells=2 * patients))
    assert (found["cells"], found["patients"]) == (2 * patients, patients)
    assert camera_figures(network, tested, packed, 1.0, EvaluateParameters(camera_cells=0)) is None
