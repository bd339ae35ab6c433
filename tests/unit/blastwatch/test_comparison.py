"""The champion reads again what it was never tested on, from the imported cells."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from blastwatch.comparison import compare, read_again, seen_patients
from blastwatch.decision import POSITIVE, probabilities
from blastwatch.engines import open_engine
from blastwatch.errors import DataError
from blastwatch.images import to_input
from blastwatch.inference import in_batches
from blastwatch.manifest import read_cells
from blastwatch.package import PREDICTIONS, open_package
from blastwatch.seen import write_seen
from tests.packages import make_package
from tests.service_packages import make_servable


@pytest.fixture(scope="module")
def data(cohort):
    return read_cells(cohort / "cells")


@pytest.fixture(scope="module")
def champion(tmp_path_factory):
    return open_package(make_servable(tmp_path_factory.mktemp("champion") / "package"))


@pytest.fixture
def candidate(tmp_path, data):
    """Tested on twelve cells of the cohort; opened before, since its answers are exchanged."""
    package = open_package(make_package(tmp_path / "candidate"))
    rows = data.rows.groupby("label").head(6).reset_index(drop=True)
    groups = [str(number) for number in range(12)]
    answers = pd.DataFrame({"subject": groups, "group": groups, "probability": (rows["label"] == "all").astype(float)})
    answers = answers.assign(logit_hem=-50.0, logit_all=50.0)  # which no comparison reads
    pd.concat([rows[["path", "label", "pixel_sha256"]], answers], axis=1).to_parquet(package.folder / PREDICTIONS)
    return package


def test_unread_cells_are_read_as_the_engine_does(candidate, champion, data):
    found = compare(candidate, champion, data)
    assert (found.read_again, found.left_out, len(found.answers)) == (12, [], 12)
    paths = [data.root / path for path in candidate.predictions()["path"]]
    inputs = np.stack([to_input(path.read_bytes(), champion.info.preprocessing) for path in paths])
    logits = in_batches(open_engine(champion, "openvino-f32").infer_inputs, inputs).logits
    blast = probabilities(logits, champion.info.temperature)[:, POSITIVE]
    truth = (candidate.predictions()["label"] == "all").to_numpy()
    assert found.answers["champion"].tolist() == ((blast >= 0.5) == truth).tolist()
    assert found.answers["candidate"].all()


def test_stored_answers_are_used_by_pixels(candidate, champion, data, tmp_path):
    tested = candidate.predictions()
    known = tested.head(5).assign(path="elsewhere.bmp", probability=1.0)
    other = open_package(make_package(tmp_path / "other"))
    known.to_parquet(other.folder / PREDICTIONS)
    with pytest.raises(DataError, match="never tested on 7 of the candidate's"):
        compare(candidate, other, None)
    known = tested.assign(probability=1.0)
    known.to_parquet(other.folder / PREDICTIONS)
    found = compare(candidate, other, None)
    assert found.read_again == 0
    assert found.answers["champion"].tolist() == (tested["label"] == "all").tolist()


def test_cells_of_patients_that_were_trained_on_need_not_be_there(candidate, tmp_path):
    """All twelve patients are the champion's own: nothing is left, and nothing is read."""
    other = open_package(make_package(tmp_path / "other", trained=[str(number) for number in range(12)]))
    found = compare(candidate, other, None)
    assert (len(found.answers), found.read_again, len(found.left_out)) == (0, 0, 12)


def test_a_patient_is_known_by_every_name_that_the_audit_ties(candidate, tmp_path):
    """Test patient 3 also goes by the name X, under which the champion was trained on it."""
    path = candidate.folder / "evidence/audit.json"
    audit = json.loads(path.read_text())
    audit["groups"] = [[*group, "X"] if group == ["3"] else group for group in audit["groups"]]
    path.write_text(json.dumps(audit))
    other = open_package(make_package(tmp_path / "other", trained=["X", "t7"]))
    assert seen_patients(candidate, other) == ["3"]


@pytest.mark.parametrize("learned", ["candidate", "champion"])
def test_a_patient_is_known_by_an_image_under_any_name(candidate, tmp_path, learned):
    """Another import calls a patient of training otherwise; one of its images is the same to the pixel."""
    other = open_package(make_package(tmp_path / "other"))
    tested = candidate.predictions()
    rows = {"side": ["train", "calibration"], "pixel_sha256": tested["pixel_sha256"].iloc[[4, 7]].tolist()}
    write_seen({"candidate": candidate, "champion": other}[learned].folder, pd.DataFrame(rows))
    assert seen_patients(candidate, other) == [tested["group"].iloc[4]]
    tested.to_parquet(other.folder / PREDICTIONS)
    found = compare(candidate, other, None)
    assert (found.left_out, len(found.answers)) == ([tested["group"].iloc[4]], 11)


def test_calibration_patients_of_the_champion_are_compared(candidate, tmp_path):
    """They moved no label: only its temperature and thresholds were fitted on them."""
    other = open_package(make_package(tmp_path / "other"))
    path = other.folder / "evidence/split.json"
    split = json.loads(path.read_text())
    split["groups"] |= {"calibration": ["3"], "validation": ["4"]}
    path.write_text(json.dumps(split))
    assert seen_patients(candidate, other) == ["4"]


def test_cells_that_are_not_in_the_data_set_are_missed(champion, data):
    with pytest.raises(DataError, match="Expected 1 test cells of the candidate in .* but found 0"):
        read_again(champion, data, {"0" * 64})


def test_a_cell_that_was_changed_since_its_import_is_not_compared_on(candidate, champion, data):
    """Another image lies where one of the cells was."""
    rows, digest = data.rows.copy(), candidate.predictions()["pixel_sha256"].iloc[3]
    rows.loc[rows["pixel_sha256"] == digest, "path"] = rows["path"].iloc[-1]
    with pytest.raises(DataError, match="has other pixels than when it was imported"):
        compare(candidate, champion, dataclasses.replace(data, rows=rows))
