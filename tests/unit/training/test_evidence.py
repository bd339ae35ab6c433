"""What is packaged is of one training: its cells, its split, its pixels, and one whole evaluation of its weights."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from blastwatch.digests import file_digest
from blastwatch.errors import DataError, LeakFound
from blastwatch.images import Preprocessing
from blastwatch.manifest import AUDIT, IMPORT, SPLIT, SPLIT_FACTS, read_cells, split_digest, write_json
from blastwatch.network import build, save_weights
from tests.trainings import leave_untrained
from training import evaluation, packaging, plots, tracking
from training.audit import read_audit
from training.commands import evaluate
from training.evaluation import run_evaluation
from training.evidence import NOTED, write_metrics
from training.pack import open_pack, write_pack
from training.packaging import build_package
from training.parameters import EvaluateParameters, Parameters, load_parameters

MEASURED = EvaluateParameters(resamples=40, permutations=100, camera_cells=0, error=0.2)


@pytest.fixture(scope="module")
def whole(cohort, tmp_path_factory):
    """Folders of a training and its evaluation beside the cohort, as `blastwatch package` takes them."""
    work = tmp_path_factory.mktemp("whole")
    leave_untrained(cohort, work / "train")
    places = {name: cohort / name for name in ("cells", "split", "pack")}
    metrics = run_evaluation(MEASURED, **places, trained=work / "train", out=work / "evaluate").metrics
    (work / "evaluate/report.html").write_text("a report")
    write_metrics(metrics, work / "evaluate")
    return {**places, "audit": cohort / "audit", "train": work / "train", "evaluate": work / "evaluate"}


@pytest.fixture
def copied(whole, tmp_path):
    """Gives a copy of one of the folders, and the folders with it."""

    def copy(name):
        folder = Path(shutil.copytree(whole[name], tmp_path / name))
        return folder, whole | {name: folder}

    return copy


def refused(places, error, match):
    """Packaging stops, with nothing made."""
    out = places["train"].parent / "package"
    with pytest.raises(error, match=match):
        build_package(Parameters(), **{f"{name}_folder": folder for name, folder in places.items()}, out=out)
    assert not out.exists()


def edit(path, **changed):
    write_json(path, json.loads(path.read_text()) | changed)


class ReachedGraphs(Exception):
    """Everything that was to be checked was found right, and the evidence is written."""


def test_what_belongs_together_is_packaged_with_the_parameters_of_its_training_and_evaluation(
    whole, tmp_path, monkeypatch
):
    said = {}

    def reached(maker):
        said.update(maker.package.evidence("params"))
        raise ReachedGraphs

    monkeypatch.setattr(packaging._Maker, "write_graphs", reached)
    today = load_parameters(None, ["image.crop=160", "evaluate.error=0.05", "evaluate.resamples=50", "train.epochs=9",
                                   "package.golden_cells=4"])  # fmt: skip
    with pytest.raises(ReachedGraphs):
        build_package(today, **{f"{name}_folder": folder for name, folder in whole.items()}, out=tmp_path / "out")
    assert said["image"] == {"crop": 320, "size": 32} and said["train"]["epochs"] == 4
    assert said["evaluate"] == asdict(MEASURED)
    assert said["package"]["golden_cells"] == 4


@pytest.mark.parametrize("when", ["copied", "sealed"])
def test_a_training_that_ends_while_another_is_packaged_is_found(copied, monkeypatch, when):
    """Before its weights are copied, or when its answers to training patients are read, minutes later."""
    folder, places = copied("train")

    def ends():
        (folder / "weights.safetensors").write_bytes(b"others")
        edit(folder / "train.json", run_id="another", weights_sha256=file_digest(folder / "weights.safetensors"))

    def read(*arguments):
        if when == "copied":
            ends()
        return read_audit(*arguments)

    def made(*_):
        if when == "sealed":
            ends()
        return pd.DataFrame(), {}

    monkeypatch.setattr(packaging, "read_audit", read)
    monkeypatch.setattr(packaging._Maker, "write_graphs", lambda maker: None)
    monkeypatch.setattr(packaging._Maker, "write_reference", made)
    monkeypatch.setattr(packaging._Maker, "precision", lambda maker: {})
    monkeypatch.setattr(packaging, "quality_limits", lambda reference: {})
    monkeypatch.setattr(packaging, "model_card", lambda *_, **__: "a card")
    refused(places, DataError, "to stay as they were while they were packaged, but others came")


@pytest.mark.parametrize("size", [{"crop": 160}, {"size": 48}])
def test_cells_packed_with_another_crop_or_size_are_neither_measured_nor_packaged(whole, cohort, tmp_path, size):
    shape = {"crop": 320, "size": 32} | size
    write_pack(read_cells(cohort / "cells"), Preprocessing(**shape), tmp_path / "pack")
    other = whole | {"pack": tmp_path / "pack"}
    refused(other, DataError, r"image\.crop=320, image\.size=32, .* another \((160, 32|320, 48), ")
    with pytest.raises(DataError, match=r"image\.crop=320"):
        run_evaluation(
            MEASURED, cells=other["cells"], split=other["split"], pack=other["pack"], trained=other["train"],
            out=tmp_path / "out",
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_pack_of_other_pixels_is_refused(copied):
    _, places = copied("train")
    edit(places["train"] / "train.json", pack_digest="a" * 64)
    refused(places, DataError, r"image\.size=32, aaaaaaaaaaaa\) but .*pack is another \(320, 32, ")


def test_a_pack_that_says_another_crop_of_the_same_pixels_is_refused(copied):
    """A service would crop as the package says."""
    folder, places = copied("pack")
    edit(folder / "pack.json", crop=160)
    refused(places, DataError, r"pack is another \(160, 32, ")


def test_a_training_that_does_not_name_its_pack_is_refused(copied):
    folder, places = copied("train")
    facts = json.loads((folder / "train.json").read_text())
    write_json(folder / "train.json", {name: value for name, value in facts.items() if name != "pack_digest"})
    refused(places, DataError, "does not say which pack .*blastwatch train")


def test_an_evaluation_on_other_pixels_is_refused(copied):
    folder, places = copied("evaluate")
    edit(folder / "metrics.json", pack_digest="b" * 64)
    refused(places, DataError, r"evaluation on the pack of the training .* another \(bbbbbbbbbbbb\)")


def test_another_split_is_refused(copied, cohort):
    folder, places = copied("split")
    rows = pd.read_parquet(folder / SPLIT)
    rows["side"] = rows["side"].replace({"test": "train", "train": "test"})
    rows.to_parquet(folder / SPLIT)
    edit(folder / SPLIT_FACTS, digest=split_digest(rows))
    refused(places, LeakFound, "split is another")


def test_an_audit_of_other_cells_is_refused(copied):
    folder, places = copied("audit")
    edit(folder / AUDIT, data_digest="c" * 64)
    refused(places, DataError, "made of another manifest")


def test_an_audit_that_ties_others_than_the_split_was_made_by_is_refused(copied):
    """Links that came since: patients who are one may stand on two sides."""
    folder, places = copied("audit")
    edit(folder / AUDIT, links=[["1", "2"]])
    refused(places, LeakFound, "ties other patients than the one by which the split was made")


def test_other_cells_than_those_of_the_training_are_refused(copied, whole):
    _, places = copied("train")
    edit(places["train"] / "train.json", data_digest="d" * 64)
    own = json.loads((whole["cells"] / IMPORT).read_text())["digest"][:12]
    refused(places, DataError, rf"trained on \(dddddddddddd\) but .*cells holds others \({own}\)")


def test_the_evaluation_of_other_weights_is_not_packaged(copied):
    """A training since leaves its folder as whole as before; the evidence would be another network's."""
    folder, places = copied("train")
    save_weights(build("resnet18"), folder / "weights.safetensors")
    refused(places, DataError, r"network in .* \(run run-1, weights .* measured another .*blastwatch evaluate")


def test_the_evaluation_of_another_run_is_not_packaged(copied):
    """Of the same weights too: its figures stand in the run of another training."""
    folder, places = copied("train")
    edit(folder / "train.json", run_id="run-2")
    refused(places, DataError, r"\(run run-2, weights .* measured another \(run run-1, .*blastwatch evaluate")


def test_weights_of_another_training_than_train_json_notes_are_neither_measured_nor_packaged(copied, tmp_path):
    """As one that could not be written to its end leaves them."""
    folder, places = copied("train")
    edit(folder / "train.json", weights_sha256=file_digest(folder / "weights.safetensors"))
    data = {name: places[name] for name in ("cells", "split", "pack")}
    run_evaluation(MEASURED, **data, trained=folder, out=tmp_path / "first")
    save_weights(build("resnet18"), folder / "weights.safetensors")
    own = file_digest(folder / "weights.safetensors")[:12]
    told = rf"weights of run run-1 \(\w{{12}}\) in .*, as train\.json there notes, but found others \({own}\)"
    with pytest.raises(DataError, match=told):
        run_evaluation(MEASURED, **data, trained=folder, out=tmp_path / "second")
    assert not (tmp_path / "second").exists()
    refused(places, DataError, told)


@pytest.mark.parametrize("run", ["run-1", "run-2"])
def test_a_network_that_another_takes_the_place_of_meanwhile_is_not_told_of(copied, tmp_path, monkeypatch, run):
    folder, places = copied("train")
    real = evaluation.calibrating_cells

    def replaced(*given):
        found = real(*given)
        if run == "run-1":
            save_weights(build("resnet18"), folder / "weights.safetensors")
        else:
            edit(folder / "train.json", run_id=run)
        return found

    monkeypatch.setattr(evaluation, "calibrating_cells", replaced)
    with pytest.raises(DataError, match=rf"Expected run run-1 .* while it is measured, but by now it holds run {run} "):
        data = {name: places[name] for name in ("cells", "split", "pack")}
        run_evaluation(MEASURED, **data, trained=folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", NOTED)
def test_a_file_of_another_evaluation_is_not_packaged(copied, name):
    folder, places = copied("evaluate")
    with (folder / name).open("ab") as file:
        file.write(b" ")
    refused(places, DataError, f"Expected {name} in .* as metrics.json")
    (folder / name).unlink()
    refused(places, DataError, f"Expected {name} in .* found none or others")


def test_metrics_that_note_no_files_are_not_packaged(copied):
    folder, places = copied("evaluate")
    edit(folder / "metrics.json", files={})
    refused(places, DataError, f"Expected {', '.join(NOTED)} in ")


def test_what_was_measured_is_told_of_without_a_second_look_at_the_training(copied, monkeypatch):
    """By then another may stand there."""
    folder, places = copied("train")
    run, shown = evaluation.run_evaluation, []

    class Stopped(BaseException):
        """Nothing catches it."""

    def measured(*given, **named):
        found = run(*given, **named)
        shutil.rmtree(folder)
        return found

    def stop(table, metrics, packed, network, out):
        shown.extend([table, metrics["run_id"], packed.digest, type(network).__name__])
        raise Stopped

    monkeypatch.setattr(evaluation, "run_evaluation", measured)
    monkeypatch.setattr(plots, "plot_all", stop)
    monkeypatch.setattr(tracking, "check_run", lambda *_: None)
    with pytest.raises(Stopped):
        CliRunner().invoke(evaluate, call_of(places, folder.parent / "evaluated"), catch_exceptions=False)
    assert shown[1:] == ["run-1", open_pack(places["pack"], read_cells(places["cells"])).digest, "ResNet"]
    pd.testing.assert_frame_equal(shown[0], pd.read_parquet(folder.parent / "evaluated/test_predictions.parquet"))


def call_of(places, out):
    """The arguments of `blastwatch evaluate`."""
    out.mkdir(exist_ok=True)
    (out / "params.yaml").write_text("evaluate: {resamples: 20, permutations: 100}")
    call = [part for name in ("cells", "split", "pack") for part in (f"--{name}", str(places[name]))]
    call += ["--params", str(out / "params.yaml"), "--trained", str(places["train"]), "--out", str(out)]
    return [*call, "--summary", str(out / "summary.json"), "--set", "evaluate.camera_cells=0"]


def test_pretrained_weights_of_strangers_are_told_as_of_unknown_origin(copied, tmp_path, monkeypatch):
    """As a training from before such were refused may have them."""
    folder, places = copied("train")
    start = {"source": "pretrained", "name": "w.pth", "digest": "0" * 64, "subjects": ["ward-1"], "data_digest": "a"}
    edit(folder / "train.json", initial_weights=start)
    data = {name: places[name] for name in ("cells", "split", "pack")}
    found = run_evaluation(MEASURED, **data, trained=folder, out=tmp_path / "out")
    assert found.facts["initial_weights"] == start | {"source": "unknown"}
    assert {row["guaranteed_error"] for row in found.metrics["conformal"]["classes"].values()} == {1.0}
    said = {}

    def reached(maker):
        said.update(maker.package.evidence("data"))
        raise ReachedGraphs

    monkeypatch.setattr(packaging._Maker, "write_graphs", reached)
    with pytest.raises(ReachedGraphs):
        build_package(Parameters(), **{f"{name}_folder": at for name, at in places.items()}, out=tmp_path / "package")
    assert said["initial_weights"]["source"] == "unknown"


def test_an_evaluation_that_is_stopped_leaves_nothing_of_an_earlier_one(copied, monkeypatch):
    """Not its report beside other answers, either."""
    folder, places = copied("evaluate")

    class Stopped(BaseException):
        """Nothing catches it."""

    def stop(*_):
        assert not {"report.html", "metrics.json"} & {path.name for path in folder.iterdir()}
        raise Stopped

    monkeypatch.setattr(plots, "plot_all", stop)
    monkeypatch.setattr(tracking, "check_run", lambda *_: None)
    with pytest.raises(Stopped):
        CliRunner().invoke(evaluate, call_of(places, folder), catch_exceptions=False)
    refused(places, DataError, r"metrics\.json is missing\. Make it with: blastwatch evaluate")


def test_weights_that_are_gone_are_asked_for(copied):
    folder, places = copied("train")
    (folder / "weights.safetensors").unlink()
    refused(places, DataError, r"weights\.safetensors is missing\. Train again: blastwatch train")
