"""What drift knows of patients: statistics of all, answers to those whom what answered them had not seen."""

import json

import numpy as np
import pandas as pd
import pytest

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.inference import Outputs
from blastwatch.manifest import read_cells, read_split
from blastwatch.package import METRICS, Package
from monitoring.reference import reference_columns
from monitoring.statistics import STATISTICS, image_statistics
from monitoring.store import EMBEDDING
from tests.trainings import leave_out_of_fold
from tests.unit.training.test_export import facts
from training import packaging
from training.ood import fit_ood
from training.pack import open_pack
from training.parameters import PackageParameters, Parameters


class Maker(packaging._Maker):
    """Its network says of a cell what its pixels' sum draws."""

    def _infer(self, rows, engine=packaging.REFERENCE):
        seeds = [int(crop.astype(np.int64).sum()) for crop in self._crops(rows)]
        drawn = np.stack([np.random.default_rng(seed).normal(size=66) for seed in seeds]).astype(np.float32)
        return Outputs(logits=drawn[:, :2], embeddings=drawn[:, 2:])


@pytest.fixture
def made(cohort, tmp_path, monkeypatch):
    """The maker of a package that was calibrated so, its reference and its thresholds."""
    monkeypatch.setattr(packaging, "MOST_TRAINED", 30)

    def make(calibrated_on):
        folder = tmp_path / "package"
        (folder / "evidence").mkdir(parents=True)
        (folder / METRICS).write_text(json.dumps({"calibration": {"on": calibrated_on}}))
        packed = open_pack(cohort / "pack", read_cells(cohort / "cells"))
        rows = read_split(cohort / "cells", cohort / "split").sort_values("path", ignore_index=True)
        knobs = Parameters(package=PackageParameters(drift_resamples=100, false_alarm_rate=0.01))
        maker = Maker(Package(folder, facts(preprocessing=packed.preprocessing), ""), rows, packed, knobs, tmp_path)
        return maker, *maker.write_reference()

    return make


def trained_rows(maker, reference):
    """The reference as it is read, its part of patients trained on, and all cells of those."""
    known = maker.package.reference()
    pd.testing.assert_frame_equal(known.cells, reference, check_dtype=False)
    rows = maker._side("train")
    return known, known.cells[known.cells["group"].isin(rows["group"].astype(str))], rows


def test_of_patients_trained_on_alike_many_cells_are_measured(made):
    maker, reference, drift = made("calibration")
    known, own, rows = trained_rows(maker, reference)
    each = 30 // rows["group"].nunique()
    assert tuple(own.columns) == reference_columns() and set(own["group"].value_counts()) == {each}
    assert own[["probability", *EMBEDDING]].isna().all(axis=None)
    measured = pd.DataFrame([image_statistics(crop, maker.packed.preprocessing) for crop in maker._crops(rows)])
    expected = {tuple(row) for row in measured[list(STATISTICS)].to_numpy()}
    assert {tuple(row) for row in own[list(STATISTICS)].to_numpy()} <= expected
    held_out = maker._side("validation", "calibration")
    assert len(known.answered) == len(held_out) and not set(known.answered["group"]) & set(own["group"])
    assert drift["cells"] == len(known.cells) and drift["answered_groups"] == held_out["group"].nunique()
    assert drift["groups"] == drift["answered_groups"] + rows["group"].nunique()


def test_answers_out_of_fold_are_part_of_it(made, tmp_path, cohort):
    rows = read_split(cohort / "cells", cohort / "split")
    paths = rows.loc[rows["side"] == "train", "path"].tolist()[::-1]  # whatever order they were written in
    logits = np.random.default_rng(0).normal(size=(len(paths), 2))
    leave_out_of_fold(tmp_path, paths, logits)
    maker, reference, drift = made("out-of-fold")
    known, own, rows = trained_rows(maker, reference)
    assert len(known.answered) == len(known.cells) and drift["answered_groups"] == drift["groups"]
    said = pd.Series(probabilities(logits, maker.package.info.temperature)[:, POSITIVE], index=paths)
    projected = maker.package.projection()(maker._infer(rows).embeddings)
    stains = [image_statistics(crop, maker.packed.preprocessing)["od_red"] for crop in maker._crops(rows)]
    every = pd.DataFrame({"od_red": stains, "probability": said.loc[rows["path"]].to_numpy(), "e00": projected[:, 0]})
    asked = own[list(every)].astype(float)
    assert set(asked.round(5).itertuples(index=False)) <= set(every.astype(float).round(5).itertuples(index=False))


@pytest.mark.parametrize("calibrated_on", ["calibration", "out-of-fold"])
def test_who_sets_the_limit_of_the_out_of_distribution_score(made, tmp_path, cohort, monkeypatch, calibrated_on):
    rows = read_split(cohort / "cells", cohort / "split")
    trained = set(rows.loc[rows["side"] == "train", "group"].astype(str))
    paths = rows.loc[rows["side"] == "train", "path"].tolist()
    leave_out_of_fold(tmp_path, paths, np.zeros((len(paths), 2)))
    given = []

    def fit(embeddings, groups, projection, others, *, rate):
        given.extend((set(groups), others))
        return fit_ood(embeddings, groups, projection, others, rate=rate)

    monkeypatch.setattr(packaging, "fit_ood", fit)
    made(calibrated_on)
    groups, others = given
    held_out = set(rows.loc[rows["side"].isin(("validation", "calibration")), "group"].astype(str))
    if calibrated_on == "calibration":
        assert (groups, others) == (held_out, None)
    else:
        assert (groups, set(others)) == (held_out | trained, trained)
