"""A small cross-validation on a real MLflow store: stopped and resumed, repeated, changed, and looked at."""

import copy
import json
import re

import pandas as pd
import pytest
from click.testing import CliRunner

from blastwatch.errors import DataError, LeakFound, UsageError
from blastwatch.manifest import read_cells, read_json, read_split
from blastwatch.network import save_weights
from blastwatch.package import PREDICTION_COLUMNS
from tests.crossvalidations import SMALL, new_work, small_networks
from tests.forkserver import forkserver
from tests.trainings import small_network
from training import fold_answers
from training.crossvalidation import FIGURES, PAGE, run_crossvalidation
from training.evaluation import run_evaluation
from training.evidence import PREDICTIONS as PREDICTIONS_OF_ONE
from training.experiment_commands import crossvalidate
from training.loop import TrainingDiverged
from training.parameters import EvaluateParameters, load_parameters
from training.pretraining import run_pretraining
from training.recipes import read_recipes
from training.training_run import Within

NAMES = {"resnet18", "sizes", "boosted"}


class Killed(BaseException):
    """Nothing catches it, as nothing catches the end of a process."""


@pytest.fixture(scope="module", autouse=True)
def quick_networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def make(cohort, empty_store, tmp_path_factory):
    return lambda: new_work(cohort, empty_store, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def whole(make):
    """One that nothing stopped, with its figures."""
    work = make()
    return work, work.run()


def runs_of(work):
    """Parent and children as MLflow has them."""
    from mlflow import MlflowClient

    client = MlflowClient(work.settings.tracking_uri)
    experiment = client.get_experiment_by_name(work.settings.experiment)
    runs = client.search_runs([experiment.experiment_id])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    return parent, [run for run in runs if run is not parent]


def counted(monkeypatch, *, kill_in=None):
    """Count what is trained, with its number of epochs; kill the training of one fold after its first epoch."""
    trained: dict[str, int] = {}
    real = fold_answers.run_training

    def training(parameters, settings, within, /, **places):
        fold = within.labels["blastwatch.fold"]
        trained[fold] = 0

        def on_epoch(row):
            trained[fold] += 1
            if fold == kill_in:
                raise Killed

        return real(parameters, settings, Within(labels=within.labels, on_epoch=on_epoch), **places)

    monkeypatch.setattr(fold_answers, "run_training", training)
    return trained


def test_every_cell_is_answered_once_by_a_network_that_never_saw_its_group(whole, cohort):
    work, facts = whole
    table = work.answers()
    assert list(table.columns) == [*PREDICTION_COLUMNS, "fold", "recipe"]
    rows = read_cells(cohort / "cells").rows
    for name, answered in table.groupby("recipe"):
        assert sorted(answered["path"]) == sorted(rows["path"]), name
        for fold, part in answered.groupby("fold"):
            split = read_split(cohort / "cells", work.out / "folds" / str(fold))
            assert set(part["group"]) == set(split.loc[split["side"] == "test", "group"])
            assert not set(part["group"]) & set(split.loc[split["side"] != "test", "group"])
    assert set(facts["recipes"]) == set(table["recipe"]) == NAMES
    assert {row["baseline"] for row in facts["comparison"]} == {"sizes", "boosted"}
    assert all(row["p_holm"] >= row["p"] for row in facts["comparison"])
    page = (work.out / PAGE).read_text()
    assert "synthetic: no patient" in page and "auroc within equal sizes" in page
    assert '<tr><th scope="row">train.epochs</th><td class="words">2</td></tr>' in page
    assert "In which they differ" not in page
    matched = {name: recipe["size_matched"]["value"] for name, recipe in facts["recipes"].items()}
    assert matched["sizes"] < facts["recipes"]["sizes"]["cells"]["auroc"]["value"]  # drawn blasts are larger


def test_a_fold_is_answered_as_blastwatch_evaluate_answers_it(whole, tmp_path):
    work, facts = whole
    metrics = run_evaluation(
        EvaluateParameters(resamples=20, permutations=100), cells=work.cohort / "cells", pack=work.cohort / "pack",
        split=work.out / "folds/0", trained=work.out / "recipes/resnet18/0/train", out=tmp_path,
    ).metrics  # fmt: skip
    [fold] = [row for row in facts["recipes"]["resnet18"]["folds"] if row["fold"] == 0]
    for part in ("cells", "patients"):
        assert set(metrics[part]) <= set(fold[part])
        for name, row in metrics[part].items():
            assert fold[part][name] == pytest.approx(row["value"]), name
    table = work.answers()
    mine = table[(table["recipe"] == "resnet18") & (table["fold"] == 0)].sort_values("path", ignore_index=True)
    theirs = pd.read_parquet(tmp_path / PREDICTIONS_OF_ONE).sort_values("path", ignore_index=True)
    pd.testing.assert_frame_equal(mine[list(PREDICTION_COLUMNS)], theirs, check_dtype=False, rtol=1e-6)


def test_mlflow_has_one_parent_with_a_child_a_fold(whole):
    work, facts = whole
    parent, children = runs_of(work)
    assert parent.info.run_id == facts["run_id"] and parent.info.status == "FINISHED"
    assert parent.data.params["split.folds"] == "3" and "split.fold" not in parent.data.params
    assert parent.data.tags["blastwatch.split_digest"] == facts["split_digest"]
    assert parent.data.metrics["resnet18.cells.auroc"] == facts["recipes"]["resnet18"]["cells"]["auroc"]["value"]
    assert len(children) == 3
    for child, row in zip(sorted(children, key=lambda run: run.data.tags["blastwatch.fold"]),
                          facts["recipes"]["resnet18"]["folds"], strict=True):  # fmt: skip
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.run_id == row["run_id"] and child.info.status == "FINISHED"
        assert child.data.tags["blastwatch.recipe"] == "resnet18"
        assert child.data.tags["blastwatch.split_digest"] == row["split_digest"]
        assert child.data.params["train.epochs"] == "2" and child.data.params["split.fold"] == str(row["fold"])
        assert child.data.metrics["test.cells.auroc"] == pytest.approx(row["cells"]["auroc"])


def test_one_that_was_killed_goes_on_to_the_same_answers(whole, make, monkeypatch):
    work = make()
    counted(monkeypatch, kill_in="1")
    with pytest.raises(Killed):
        work.run()
    monkeypatch.undo()
    assert not (work.out / FIGURES).exists()
    trained = counted(monkeypatch)
    facts = work.run()
    assert trained == {"1": 1, "2": 2}  # the second epoch of the one that was killed, and all of the last
    assert work.answers().equals(whole[0].answers())
    assert facts["recipes"]["resnet18"]["cells"] == whole[1]["recipes"]["resnet18"]["cells"]
    parent, children = runs_of(work)
    assert parent.info.status == "FINISHED" and [child.info.status for child in children] == ["FINISHED"] * 3


def test_what_is_done_stays_done_and_what_changed_is_done_again(whole, monkeypatch, capsys):
    work, facts = whole
    trained = counted(monkeypatch)
    again = work.run()
    assert not trained and again == facts
    assert capsys.readouterr().err.count("done before") == 3
    wider = work.run("evaluate.error=0.4")
    assert not trained
    told = capsys.readouterr().err
    assert told.count("is done again: evaluate.error is 0.4 and was 0.1.") == 4  # three folds and the baselines
    aimed = [found["recipes"]["resnet18"]["aimed_coverage"]["all"] for found in (wider, facts)]
    assert aimed[0] < aimed[1]
    assert wider["recipes"]["resnet18"]["cells"]["auroc"] == facts["recipes"]["resnet18"]["cells"]["auroc"]
    assert wider["run_id"] == facts["run_id"]
    damaged = work.out / "recipes/resnet18/2/train/weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert work.run("evaluate.error=0.4") == wider | {"recipes": _with_run(wider, trained, work)}
    assert trained == {"2": 2}
    told = capsys.readouterr().err
    assert "weights.safetensors is missing or was changed" in told and "resnet18, fold 2: epoch 2 of 2  loss" in told
    _, children = runs_of(work)
    assert sorted(run.data.tags.get("blastwatch.superseded", "") for run in children) == ["", "", "", "true"]
    present = [run for run in children if "blastwatch.superseded" not in run.data.tags]
    assert all("test.cells.auroc" in run.data.metrics for run in present)  # of the one that was trained anew as well
    work.run("evaluate.error=0.4", "evaluate.conformal=pooled")
    told = capsys.readouterr().err
    assert told.count("is done again: evaluate.conformal is pooled and was subsampled.") == 4
    assert trained == {"2": 2}


def _with_run(facts, trained, work):
    """The same recipes, but for the run of the fold that was trained again."""
    recipes = copy.deepcopy(facts["recipes"])
    now = json.loads((work.out / FIGURES).read_text())["recipes"]["resnet18"]["folds"]
    for row in recipes["resnet18"]["folds"]:
        if str(row["fold"]) in trained:
            [row["run_id"]] = [other["run_id"] for other in now if other["fold"] == row["fold"]]
    return recipes


def test_the_command_prints_json_alone(make, whole, monkeypatch, tmp_path):
    work, facts = whole
    trained = counted(monkeypatch)
    monkeypatch.setenv("BLASTWATCH_HOME", str(work.place / "home"))
    (tmp_path / "params.yaml").write_text("{}")
    call = ["--params", str(tmp_path / "params.yaml"), "--architectures", "resnet18", "--out", str(work.out), "--json"]
    call += [part for knob in (*SMALL, "evaluate.error=0.4") for part in ("--set", knob)]
    call += [part for name in ("cells", "audit", "pack") for part in (f"--{name}", str(work.cohort / name))]
    done = CliRunner().invoke(crossvalidate, call, catch_exceptions=False)
    told = json.loads(done.stdout)
    assert not trained and told == json.loads((work.out / FIGURES).read_text())
    assert told["split_digest"] == facts["split_digest"]


def test_bad_input_is_said_before_anything_is_trained(make, monkeypatch):
    work = make()
    trained = counted(monkeypatch)
    with pytest.raises(UsageError, match="9 folds do not fit: the label hem has 8 groups"):
        work.run("split.folds=9")
    with pytest.raises(UsageError, match=r"reference to be one of the recipes resnet18 but got 'resnet50'"):
        work.run(reference="resnet50")
    with pytest.raises(DataError, match=r"image\.size=64"):
        work.run("image.size=64")
    assert not work.out.exists()
    with pytest.raises(UsageError, match=r"weights for fold 0 at w\.pt \(train\.weights_file\) but there is none\.$"):
        work.run("train.weights=file", "train.weights_file=w.pt")
    seen = work.place / "seen.pt"
    seen.touch()
    seen.with_suffix(".json").write_text(json.dumps({"subjects": ["H5"]}))
    with pytest.raises(LeakFound, match="held out in this split, among them H5"):
        work.run("train.weights=file", f"train.weights_file={seen}")
    assert not trained and {path.name for path in work.out.iterdir()} == {".lock", "folds"}


def test_weights_are_pretrained_on_the_folds_that_the_first_call_writes(make):
    """As the documentation has it, and as the error says."""
    work = make()
    asked = ("train.weights=file", f"train.weights_file={work.place}/pre/{{fold}}/weights.safetensors")
    told = f"blastwatch pretrain --split {work.out}/folds/0 --out {work.place}/pre/0"
    with pytest.raises(UsageError, match=f"there is none. .*{re.escape(told)}$"):
        work.run(*asked)
    pretrained = load_parameters(None, [*SMALL, "train.architecture=resnet18", "pretrain.epochs=1",
                                        "pretrain.batch_size=16", "pretrain.projector=16"])  # fmt: skip
    for fold in range(3):
        run_pretraining(
            pretrained, work.settings, cells=work.cohort / "cells", pack=work.cohort / "pack",
            split=work.out / f"folds/{fold}", out=work.place / f"pre/{fold}",
        )  # fmt: skip
    facts = work.run(*asked, "train.epochs=1")
    assert len(facts["recipes"]["resnet18"]["folds"]) == 3
    for fold in range(3):
        trained = read_json(work.out / f"recipes/resnet18/{fold}/train/train.json", made_by="a test")
        rows = read_split(work.cohort / "cells", work.out / f"folds/{fold}")
        assert trained["initial_weights"]["source"] == "pretrained"
        assert set(trained["initial_weights"]["subjects"]) == set(rows.loc[rows["side"] == "train", "subject"])


def test_weights_of_unknown_origin_are_said_on_the_page(make, whole):
    work, start = make(), make().place / "w.safetensors"
    save_weights(small_network(), start)
    facts = work.run("train.weights=file", f"train.weights_file={start}", "train.epochs=1", "train.keep=last")
    assert {row["initial_weights"] for row in facts["recipes"]["resnet18"]["folds"]} == {"unknown"}
    page = (work.out / PAGE).read_text()
    assert page.index("Initial weights of unknown origin</strong> (resnet18)") < page.index("<h2>")
    assert "none of its cells in training, nor is it known whether the initial weights of resnet18 had" in page
    assert {row["initial_weights"] for row in whole[1]["recipes"]["resnet18"]["folds"]} == {"scratch"}
    known = (whole[0].out / PAGE).read_text()
    assert "unknown origin" not in known and "by a network that saw none of its cells. Intervals" in known


def test_recipes_that_decide_in_their_own_ways_are_told_apart(make):
    work = make()
    recipes = read_recipes(
        None, [*SMALL, "train.epochs=1", "train.keep=last"],
        named=["plain", "lenient:evaluate.error=0.4,evaluate.resamples=30"],
    )  # fmt: skip
    places = {name: work.cohort / name for name in ("cells", "audit", "pack")}
    facts = run_crossvalidation(recipes, work.settings, **places, out=work.out, reference="lenient")
    plain, lenient = (facts["recipes"][name]["parameters"] for name in ("plain", "lenient"))
    assert (plain["evaluate"]["error"], lenient["evaluate"]["error"]) == (0.1, 0.4)
    assert plain["train"] == lenient["train"] and plain["train"]["epochs"] == 1
    assert facts["parameters"]["evaluate"] == {"resamples": 20, "permutations": 100, "seed": 1}  # for both
    assert "resamples" not in lenient["evaluate"]
    assert facts["recipes"]["sizes"]["parameters"] == {}
    page = (work.out / PAGE).read_text()
    assert '>evaluate.error</th><td class="words">0.1</td><td class="words">0.4</td></tr>' in page
    assert '>train.epochs</th><td class="words">1</td></tr>' in page and page.count(">evaluate.error</th>") == 1
    assert (
        "drawn with evaluate.resamples 20, evaluate.permutations 100" in page
        and "evaluate.conformal of plain and" in page
    )


@pytest.fixture
def parted():
    """Its processes part from the one that the other tests' processes part from."""
    forkserver()


def test_folds_are_trained_side_by_side(make, parted, capsys):
    work = make()
    quick = ("train.architecture=mobilenet_v3_large", "train.epochs=1", "train.keep=last")
    recipes = read_recipes(None, [*SMALL, *quick])
    places = {name: work.cohort / name for name in ("cells", "audit", "pack")}
    facts = run_crossvalidation(recipes, work.settings, **places, out=work.out, processes=2)
    assert "[3/3] mobilenet_v3_large" in capsys.readouterr().err
    parent, children = runs_of(work)
    assert [child.info.status for child in children] == ["FINISHED"] * 3 and parent.info.status == "FINISHED"
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {facts["run_id"]}
    # What processes of their own made is what one process finds done, to the last digit.
    assert run_crossvalidation(recipes, work.settings, **places, out=work.out) == facts
    assert capsys.readouterr().err.count("done before") == 3


def test_an_error_in_one_of_the_processes_is_raised(make, parted):
    work = make()
    recipes = read_recipes(None, [*SMALL, "train.architecture=mobilenet_v3_large", "train.learning_rate=1e9"])
    places = {name: work.cohort / name for name in ("cells", "audit", "pack")}
    with pytest.raises(TrainingDiverged, match="Lower train.learning_rate"):
        run_crossvalidation(recipes, work.settings, **places, out=work.out, processes=2)
