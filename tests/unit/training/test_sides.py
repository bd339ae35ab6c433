"""Which side of the split serves for what: the test side chooses nothing and goes into nothing, and no patient stands
on two of them."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file
from torchvision import models

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import LeakFound
from blastwatch.golden import read_golden
from blastwatch.inference import Outputs
from blastwatch.manifest import (
    COLUMNS,
    IMPORT,
    MANIFEST,
    SPLIT,
    SPLIT_FACTS,
    columns_digest,
    manifest_digest,
    read_cells,
    read_split,
    split_digest,
    write_json,
)
from blastwatch.network import save_weights
from blastwatch.package import WEIGHTS, Package
from tests.trainings import small_network
from tests.unit.training.test_export import facts
from training import packaging
from training.pack import FACTS, open_pack
from training.parameters import ImageParameters, Parameters, TrainParameters
from training.training_run import CURVES, run_training

GRADIENT = TrainParameters(architecture="resnet18", epochs=3, batch_size=24, precision="fp32")
LOGISTIC = replace(GRADIENT, fit="logistic", weights="file", weights_file="small.pth")
SWAPPED = dict(zip(CLASS_NAMES, reversed(CLASS_NAMES), strict=True))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Every network is one of a few thousand weights."""
    monkeypatch.setattr(models, "get_model", lambda *_, **__: small_network())


@pytest.fixture
def copied(cohort, tmp_path):
    """Gives the places of a copy of the cohort."""

    def copy(name):
        places = {part: tmp_path / name / part for part in ("cells", "split", "pack")}
        for part, place in places.items():
            shutil.copytree(cohort / part, place)
        return places

    return copy


@pytest.fixture
def train(settings, tmp_path, monkeypatch):
    """Trains in these places and returns the curves and the weights."""

    torch.save(small_network().state_dict(), tmp_path / LOGISTIC.weights_file)
    monkeypatch.chdir(tmp_path)

    def training(parameters, places):
        out = tmp_path / "out"
        run_training(Parameters(image=ImageParameters(size=32), train=parameters), settings, **places, out=out)
        return pd.read_csv(out / CURVES), load_file(out / WEIGHTS)

    return training


def swap_labels(places, side):
    """Give every cell of a side the other label, and seal what names the manifest again."""
    rows = read_split(places["cells"], places["split"])
    swapped = set(rows.loc[rows["side"] == side, "path"])
    manifest = pd.read_parquet(places["cells"] / MANIFEST)
    chosen = manifest["path"].isin(swapped)
    manifest.loc[chosen, "label"] = manifest.loc[chosen, "label"].map(SWAPPED)
    manifest.to_parquet(places["cells"] / MANIFEST, index=False)
    digest = manifest_digest(manifest)
    change(places["cells"] / IMPORT, digest=digest, rows_digest=columns_digest(manifest, COLUMNS))
    for path in (places["split"] / SPLIT_FACTS, places["pack"] / FACTS):
        change(path, data_digest=digest)


def change(path, **values):
    write_json(path, json.loads(path.read_text()) | values)


@pytest.mark.parametrize("parameters", [GRADIENT, LOGISTIC], ids=["gradient", "logistic"])
def test_labels_of_test_patients_choose_nothing_in_a_training(copied, train, parameters):
    places = copied("untouched")
    curves, weights = train(parameters, places)
    tested, validated = copied("test"), copied("validation")
    swap_labels(tested, "test")
    assert read_cells(tested["cells"]).digest != read_cells(places["cells"]).digest
    other_curves, other_weights = train(parameters, tested)
    pd.testing.assert_frame_equal(other_curves, curves, check_exact=True)
    assert other_weights.keys() == weights.keys()
    assert all(other_weights[name].equal(tensor) for name, tensor in weights.items())
    swap_labels(validated, "validation")  # which are what the best epoch is chosen by
    assert (train(parameters, validated)[0]["validation_loss"] != curves["validation_loss"]).all()


def part_a_subject(places, *, by, group):
    """Put one training cell of a subject with several on the test side, in the group of that name, and seal it."""
    rows = pd.read_parquet(places["split"] / SPLIT)
    training = rows[rows["side"] == "train"]
    row = training.index[training["subject"].duplicated()][0]
    rows.loc[row, ["side", "group"]] = ["test", group or rows.loc[row, "group"]]
    rows.to_parquet(places["split"] / SPLIT, index=False)
    change(places["split"] / SPLIT_FACTS, digest=split_digest(rows), by=by)
    return rows.loc[row, "subject"]


@pytest.mark.parametrize("group", ["", "a group of its own"])
def test_a_split_that_says_by_group_and_parts_a_subject_is_not_trained_on(copied, train, settings, tmp_path, group):
    places = copied("parted")
    subject = part_a_subject(places, by="group", group=group)
    before = sorted(settings.home.rglob("*"))
    with pytest.raises(LeakFound, match=f"the first {subject}\\b" if group else "expected all groups on one side"):
        train(GRADIENT, places)
    assert not (tmp_path / "out").exists() and sorted(settings.home.rglob("*")) == before
    assert runs_of(settings) == []


def test_a_split_that_says_that_it_parts_patients_is_trained_on(copied, train, settings):
    places = copied("parted")
    part_a_subject(places, by="image", group="")
    assert len(train(LOGISTIC, places)[0]) == len(runs_of(settings)) == 1


def runs_of(settings):
    client = MlflowClient(settings.tracking_uri)
    return list(client.search_runs([one.experiment_id for one in client.search_experiments()]))


@pytest.fixture
def maker(cohort, tmp_path, monkeypatch):
    """Puts a package together whose engines all answer by the pixels, and the cells that each was asked."""
    packed = open_pack(cohort / "pack", read_cells(cohort / "cells"))
    rows = read_split(cohort / "cells", cohort / "split").sort_values("path", ignore_index=True)
    asked = []

    class Maker(packaging._Maker):
        def _infer(self, rows, engine=packaging.REFERENCE):
            asked.append((engine, set(rows["side"])))
            drawn = [np.random.default_rng(int(crop.astype(int).sum())).normal(size=66) for crop in self._crops(rows)]
            return Outputs(logits=np.float32(drawn)[:, :2], embeddings=np.float32(drawn)[:, 2:])

        def _rate(self, rows, engine):
            return 1.0

    save_weights(small_network(), tmp_path / WEIGHTS)
    package = Package(tmp_path, facts(preprocessing=packed.preprocessing), "")
    monkeypatch.setattr(packaging, "export_onnx", lambda network, size, path: None)
    return Maker(package, rows, packed, Parameters(), tmp_path), asked


def sides_of(maker, crops):
    """Sides of the cells that these crops show."""
    sides = maker.rows.set_index("path")["side"]
    shown = {crop.tobytes(): sides[path] for path, crop in zip(maker.packed.paths, maker.packed.crops, strict=True)}
    return {shown[crop.tobytes()] for crop in crops}


def test_int8_takes_its_ranges_from_calibration_patients(maker, monkeypatch):
    made, _ = maker
    given = []
    monkeypatch.setattr(packaging, "quantize", lambda graph, crops, shape, out: given.extend(crops))
    made.write_graphs()
    assert sides_of(made, given) == {"calibration"}
    assert np.array_equal(given, made._crops(made.parity.ranges))  # which are not compared on where there are enough


def test_golden_cells_are_of_calibration_patients(maker):
    made, _ = maker
    known = made._side(*packaging.REFERENCE_SIDES)
    made._write_golden(known.assign(probability=np.linspace(0, 1, len(known))))
    crops, logits = read_golden(made.package)
    assert sides_of(made, crops) == {"calibration"} and len(logits) == made.knobs.golden_cells


def test_engines_are_compared_on_patients_not_trained_on_and_corrected_on_none_that_are_tested(maker):
    made, asked = maker
    assert set(made.precision()) == set(packaging.COMPARED)
    # So few calibration cells are all compared on, and none of those is corrected on.
    compared, corrected = {"calibration", "test"}, {"train", "validation"}
    for engine in packaging.COMPARED:
        own = [sides for name, sides in asked if name == engine]
        # What all engines are held against is asked first.
        assert own == [compared, corrected] * (2 if engine == packaging.REFERENCE else 1)
