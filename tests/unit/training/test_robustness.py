"""Figures under simulated cameras: those of the very cells, shifted by hand and answered one by one."""

import numpy as np
import pytest
import torch
from torch import nn

from blastwatch.errors import DataError
from blastwatch.images import Preprocessing, crop_cell, decode, normalise
from blastwatch.intervals import bounds, draw_patients
from blastwatch.manifest import read_cells, read_split
from monitoring.shifts import SHIFTS, shift
from training.network_graph import inferring
from training.pack import open_pack
from training.parameters import EvaluateParameters
from training.robustness import camera_figures
from training.unsimulated import UNSIMULATED

CAMERA = Preprocessing(crop=320, size=320)


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
def root(cohort):
    return read_cells(cohort / "cells").root


@pytest.fixture
def packed(cohort):
    return open_pack(cohort / "pack", read_cells(cohort / "cells"))


@pytest.fixture
def look(network, tested, root, packed):
    """`camera_figures` under some parameters."""

    def run(**knobs):
        infer = inferring(network, {"fit": "gradient"}, packed.preprocessing)
        return camera_figures(infer, tested, root, packed.preprocessing, 1.7, EvaluateParameters(**knobs))

    return run


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


def test_each_figure_is_that_of_the_shifted_cells(look, network, tested, root, packed):
    parameters = EvaluateParameters(resamples=50, camera_cells=10_000)
    found = look(resamples=50, camera_cells=10_000)
    assert (found["cells"], found["patients"]) == (len(tested), tested["group"].nunique())
    assert [row["name"] for row in found["rows"]] == [*SHIFTS, *UNSIMULATED]
    assert [row["name"] for row in found["rows"] if not row["simulated"]] == list(UNSIMULATED)
    crops = packed.crops[packed.rows_of(tested["path"].tolist())]
    plain = accuracies(network, tested, crops, packed)
    assert found["plain"]["mean_accuracy"]["value"] == pytest.approx(np.mean(list(plain.values())))
    order = sorted(tested["group"].unique())
    draws = draw_patients(tested, resamples=50, seed=parameters.seed)
    for row in found["rows"]:
        random = np.random.default_rng(parameters.seed)
        taken = [crop_cell(decode((root / path).read_bytes()), CAMERA) for path in tested["path"]]
        changed = [
            shift(image, row["name"], 1.0, random=random) if row["simulated"] else UNSIMULATED[row["name"]](image)
            for image in taken
        ]
        shown = [crop_cell(image, packed.preprocessing) for image in changed]
        moved = accuracies(network, tested, shown, packed)
        assert row["figures"]["mean_accuracy"]["value"] == pytest.approx(np.mean(list(moved.values())))
        assert row["change"]["value"] == pytest.approx(np.mean([moved[one] - plain[one] for one in plain]))
        changes = {group: moved[one] - plain[one] for one in plain for group in [one[0]]}
        drawn = draws @ np.array([changes[group] for group in order]) / draws.sum(axis=1)
        assert row["change"]["low"] <= drawn.min() + 1e-9 and drawn.max() - 1e-9 <= row["change"]["high"]
        # One patient of a label tells nothing of how patients of it differ.
        alone = tested.groupby("label")["group"].nunique().min() == 1
        assert alone and (row["change"]["low"], row["change"]["high"]) == (-1, 1)
    change = {row["name"]: row["change"]["value"] for row in found["rows"]}
    assert abs(change["white_balance"]) > 0.1 > abs(change["defocus"])


def test_the_change_has_the_interval_of_a_difference_of_both_labels(network, tested, root, packed):
    turn = tested.groupby("group").cumcount() % 3  # three patients of each
    tested = tested.assign(group=tested["group"].astype(str) + turn.map("-{}".format))
    few = tested.groupby("label")["group"].nunique()
    infer = inferring(network, {"fit": "gradient"}, packed.preprocessing)
    asked = EvaluateParameters(resamples=400, camera_cells=10_000)
    found = camera_figures(infer, tested, root, packed.preprocessing, 1.0, asked)
    [row] = [row for row in found["rows"] if row["name"] == "white_balance"]
    crops = [crop_cell(decode((root / path).read_bytes()), CAMERA) for path in tested["path"]]
    random = np.random.default_rng(asked.seed)
    shown = [crop_cell(shift(one, "white_balance", 1.0, random=random), packed.preprocessing) for one in crops]
    plain = accuracies(network, tested, packed.crops[packed.rows_of(tested["path"].tolist())], packed)
    moved = accuracies(network, tested, shown, packed)
    changes = {group: moved[group, label] - plain[group, label] for group, label in plain}
    draws = draw_patients(tested, resamples=400, seed=asked.seed)
    drawn = draws @ np.array([changes[group] for group in sorted(changes)]) / draws.sum(axis=1)
    ends = bounds(
        drawn, few.min(), value=row["change"]["value"], within=(-1, 1), others=tested["group"].nunique() - few.min()
    )
    assert few.min() == 3 and np.ptp(drawn) > 0
    assert (row["change"]["low"], row["change"]["high"]) == pytest.approx(ends)


def test_some_cells_are_taken_evenly_and_none_where_none_are_asked_for(look, tested):
    patients = tested["group"].nunique()
    found = look(resamples=20, camera_cells=2 * patients)
    assert (found["cells"], found["patients"]) == (2 * patients, patients)
    assert look(camera_cells=0) is None


def test_images_that_are_gone_are_named(tested, packed, tmp_path):
    with pytest.raises(DataError, match=r"are missing, the first .*set evaluate\.camera_cells=0"):
        camera_figures(
            lambda _crops: pytest.fail("a cell was asked of"),
            tested,
            tmp_path,
            packed.preprocessing,
            1.0,
            EvaluateParameters(),
        )
