"""More patients to calibrate on: those in training, as fits answered them that had not seen them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blastwatch.digests import file_digest
from blastwatch.errors import DataError, LeakFound, UsageError
from blastwatch.manifest import read_cells, read_split
from blastwatch.settings import load
from tests.trainings import leave_out_of_fold
from training.calibration import fit_temperature, patient_weights
from training.evaluation import fit, read_trained, run_evaluation
from training.fold_answers import network_table
from training.loop import answering, predict_logits
from training.network_graph import inferring
from training.out_of_fold import OUT_OF_FOLD, calibrating_cells, out_of_fold_logits, write_out_of_fold
from training.pack import open_pack
from training.parameters import EvaluateParameters, ImageParameters, Parameters, TrainParameters
from training.training_run import run_training

PROBE = TrainParameters(architecture="efficientnet_lite0_stages", weights="imagenet", fit="logistic", precision="fp32")
BY_BOTH = EvaluateParameters(resamples=100, permutations=100, calibrate_on="out-of-fold")


@pytest.fixture(scope="module")
def work(cohort, tmp_path_factory):
    """Where a probe was trained, with the places of its data."""
    folder = tmp_path_factory.mktemp("out-of-fold")
    places = {name: cohort / name for name in ("cells", "split", "pack")}
    train(PROBE, folder, places, folder / "train")
    return folder, places


def train(parameters, folder, places, out):
    run_training(
        Parameters(image=ImageParameters(size=32), train=parameters),
        load({"BLASTWATCH_HOME": str(folder / "home")}),
        **places,
        out=out,
    )


def asked(work, calibrate_on, trained=None):
    folder, places = work
    packed, rows = open_pack(places["pack"], read_cells(places["cells"])), read_split(places["cells"], places["split"])
    found = read_trained(folder / "train")
    network, infer = found.network, inferring(found.network, found.facts["parameters"], packed.preprocessing)
    asked = calibrating_cells(answering(infer, packed), rows, trained or folder / "train", calibrate_on)
    return asked, network, packed, rows


def test_calibration_cells_are_answered_by_the_network_and_training_cells_by_others(work):
    (held, logits, proven), network, packed, rows = asked(work, "out-of-fold")
    plain, plain_logits, plainly_proven = asked(work, "calibration")[0]
    assert plainly_proven and not proven
    assert set(plain["side"]) == {"calibration"} and set(held["side"]) == {"calibration", "train"}
    assert len(held) == rows["side"].isin(("calibration", "train")).sum() and not held["path"].duplicated().any()
    np.testing.assert_array_equal(logits[: len(plain)], plain_logits)
    own = held[held["side"] == "train"]
    told = pd.read_parquet(work[0] / "train" / OUT_OF_FOLD).set_index("path").loc[own["path"]]
    np.testing.assert_array_equal(logits[len(plain) :], told[["logit_hem", "logit_all"]])
    fitted = predict_logits(network, packed, packed.rows_of(own["path"].tolist()))
    margins = [part[:, 1] - part[:, 0] for part in (fitted, logits[len(plain) :])]
    sides = np.where(own["label"] == "all", 1, -1)
    assert (margins[0] * sides).mean() > (margins[1] * sides).mean()  # less sure of whom it had not seen


def test_all_of_them_decide_and_nothing_is_called_proven(work, tmp_path):
    folder, places = work
    metrics = run_evaluation(BY_BOTH, **places, trained=folder / "train", out=tmp_path).metrics
    (held, logits, _), _, packed, rows = asked(work, "out-of-fold")
    expected = fit(held, logits, BY_BOTH)
    assert metrics["calibration"]["temperature"] == expected.temperature
    assert metrics["calibration"]["on"] == "out-of-fold"
    for name, row in metrics["conformal"]["classes"].items():
        assert row["calibration_patients"] == held.loc[held["label"] == name, "group"].nunique()
        assert row["aimed_error"] == expected.conformal.aimed[name] and row["guaranteed_error"] == 1.0
        assert expected.conformal.guaranteed[name] < 1
    table, found = network_table(folder / "train", rows, packed, BY_BOTH)
    assert found.temperature == expected.temperature
    pd.testing.assert_frame_equal(table.reset_index(drop=True), pd.read_parquet(tmp_path / "test_predictions.parquet"))


@pytest.mark.parametrize(
    ("start", "side"), [({"source": "unknown", "name": "w.pth"}, None), (None, "train"), (None, "validation")]
)
def test_nothing_is_called_proven_of_patients_whom_the_network_may_have_seen(work, tmp_path, start, side):
    """They answer for the next patient only as long as they are as new to the network."""
    folder, places = work
    packed, rows = open_pack(places["pack"], read_cells(places["cells"])), read_split(places["cells"], places["split"])
    facts = json.loads((folder / "train/train.json").read_text())
    (tmp_path / "train.json").write_text(json.dumps(facts | ({"initial_weights": start} if start else {})))
    if side:
        group = rows.loc[rows["side"] == "calibration", "group"].iloc[0]
        rows.loc[rows.index[rows["side"] == side][0], "group"] = group
    found = read_trained(folder / "train")
    answer = answering(inferring(found.network, found.facts["parameters"], packed.preprocessing), packed)
    held, logits, proven = calibrating_cells(answer, rows, tmp_path, "calibration")
    assert not proven
    assert fit(held, logits, BY_BOTH, proven=proven).conformal.guaranteed == {"hem": 1.0, "all": 1.0}


def test_answers_that_are_not_there_or_of_another_split(work, tmp_path):
    with pytest.raises(UsageError, match=r"train\.fit=logistic leaves it"):
        asked(work, "out-of-fold", trained=tmp_path)
    leave_out_of_fold(tmp_path, ["a", "b"], np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"training cells of this split .* Train again on this split"):
        asked(work, "out-of-fold", trained=tmp_path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"source": "unknown", "name": "other.safetensors"}, "other.safetensors may have"),
        ({"source": "pretrained", "name": "own.safetensors", "subjects": "ours"}, "own.safetensors have"),
        ({"source": "pretrained", "name": "far.safetensors", "subjects": ["elsewhere"]}, "far.safetensors may have"),
    ],
)
def test_weights_that_have_seen_training_patients_calibrate_on_none_of_them(work, tmp_path, start, message):
    folder, places = work
    trained = Path(shutil.copytree(folder / "train", tmp_path / "train"))
    rows = read_split(places["cells"], places["split"])
    if start.get("subjects") == "ours":
        start = start | {"subjects": rows.loc[rows["side"] == "train", "subject"].tolist()[:1]}
    facts = json.loads((trained / "train.json").read_text())
    (trained / "train.json").write_text(json.dumps(facts | {"initial_weights": start}))
    with pytest.raises(LeakFound, match=message):
        asked(work, "out-of-fold", trained=trained)
    assert asked(work, "calibration", trained=trained)[0][2] is (start["name"] == "own.safetensors")


def test_a_training_of_the_whole_network_leaves_none(work):
    """Nor those of a probe that was trained in the same folder before."""
    folder, places = work
    out = folder / "other"
    out.mkdir()
    (out / OUT_OF_FOLD).write_bytes((folder / "train" / OUT_OF_FOLD).read_bytes())
    train(TrainParameters(architecture="resnet18", epochs=1, precision="fp32"), folder, places, out)
    assert not (out / OUT_OF_FOLD).exists()


def test_what_a_training_leaves_is_noted(work):
    folder = work[0] / "train"
    facts = json.loads((folder / "train.json").read_text())
    assert facts["weights_sha256"] == file_digest(folder / "weights.safetensors")
    assert facts["out_of_fold_sha256"] == file_digest(folder / OUT_OF_FOLD)


def test_a_training_that_cannot_be_written_to_its_end_leaves_none(work):
    """Neither its weights under the facts of an earlier one, nor answers of that one beside them."""
    folder, places = work
    out = Path(shutil.copytree(folder / "train", folder / "full"))
    (out / "curves.csv").unlink()
    (out / "curves.csv").mkdir()
    before = file_digest(out / "weights.safetensors")
    with pytest.raises(IsADirectoryError):
        train(TrainParameters(architecture="resnet18", epochs=1, precision="fp32"), folder, places, out)
    assert file_digest(out / "weights.safetensors") != before
    assert not (out / OUT_OF_FOLD).exists()
    with pytest.raises(DataError, match=r"train\.json is missing\. Make it with: blastwatch train"):
        read_trained(out)


def test_answers_of_another_training_are_refused(work, tmp_path):
    folder, places = work
    trained = Path(shutil.copytree(folder / "train", tmp_path / "train"))
    rows = read_split(places["cells"], places["split"])
    paths = rows.loc[rows["side"] == "train", "path"].tolist()
    write_out_of_fold(trained, paths, np.full((len(paths), 2), [-9.0, 9.0]))
    with pytest.raises(DataError, match=r"as train\.json there notes\) but found others .*Train again"):
        asked(work, "out-of-fold", trained=trained)
    facts = json.loads((trained / "train.json").read_text())
    of_before = {name: value for name, value in facts.items() if not name.endswith("_sha256")}
    whole = of_before | {"parameters": facts["parameters"] | {"fit": "gradient"}}
    for other in (of_before | {"weights_sha256": facts["weights_sha256"]}, whole):
        (trained / "train.json").write_text(json.dumps(other))
        with pytest.raises(DataError, match=r"that training left none, and these are another's"):
            asked(work, "out-of-fold", trained=trained)
    (trained / "train.json").write_text(json.dumps(of_before))  # what is not there cannot be checked
    assert len(asked(work, "out-of-fold", trained=trained)[0][0]) > len(paths)


def test_answers_are_found_by_path(tmp_path):
    leave_out_of_fold(tmp_path, ["b", "a"], np.array([[2.0, 20.0], [1.0, 10.0]]))
    assert out_of_fold_logits(tmp_path, pd.DataFrame({"path": ["a", "b"]}))[:, 0].tolist() == [1.0, 2.0]


def test_each_patient_who_calibrates_weighs_the_same():
    random = np.random.default_rng(1)
    small = [f"{label}{number}" for label in ("s", "h") for number in range(12) for _ in range(5)]
    labels = np.array([1] * 360 + [0] * 60)
    sure = np.where(np.arange(420) < 300, np.where(random.random(420) < 0.55, 1, -1), 1)  # of the one with many cells
    half = np.where(labels == 1, 1, -1) * sure * random.normal(2, 1.5, 420)
    held = pd.DataFrame({"label": np.where(labels == 1, "all", "hem"), "group": ["big"] * 300 + small})
    logits = np.stack([-half, half], axis=1)
    found = fit(held, logits, EvaluateParameters())
    weights = patient_weights(labels, held["group"].to_numpy())
    assert found.likeliest == pytest.approx(fit_temperature(logits, labels, weights))
    assert found.temperature == pytest.approx(found.likeliest, rel=0.02)
    assert found.temperature < 0.8 * fit_temperature(logits, labels, np.ones(len(labels)))
