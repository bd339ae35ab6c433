"""Trainings beside each other: those of the same inputs do not meet, those of recipes have runs of their own."""

import pytest

from blastwatch.errors import UsageError
from blastwatch.manifest import SPLIT_FACTS, read_cells, read_json
from tests.trainings import small_network
from training import fold_answers, training_run
from training.pack import open_pack
from training.parameters import READ_BY_LOGISTIC, TrainParameters, load_parameters
from training.tracking import PARENT
from training.training_run import APART, FACTS, Within, averaging, run_training

QUICK = ["image.size=32", "train.epochs=2", "train.batch_size=64", "train.precision=fp32", "train.keep=last"]
PARAMETERS = load_parameters(None, [*QUICK, "split.seed=77"])  # the cohort was split with another


@pytest.fixture
def train(cohort, settings, tmp_path, monkeypatch):
    """Trains into a folder of a name; `on_epoch` and the labels as `Within` has them."""
    from torchvision import models

    monkeypatch.setattr(models, "get_model", lambda *_, **__: small_network())
    places = {name: cohort / name for name in ("cells", "split", "pack")}

    def training(name, on_epoch=lambda row: None, **labels):
        within = Within(labels=labels, on_epoch=on_epoch)
        return run_training(PARAMETERS, settings, within, **places, out=tmp_path / name)

    return training


def runs_of(settings):
    from mlflow import MlflowClient

    client = MlflowClient(settings.tracking_uri)
    return client.search_runs([client.get_experiment_by_name(settings.experiment).experiment_id])


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_a_second_training_of_the_same_inputs_is_told_and_breaks_nothing(train, settings, tmp_path, capsys):
    told = []

    def on_epoch(row):
        with pytest.raises(UsageError, match=r"Another process is at this training.*Wait for its end") as refused:
            train("second")
        told.append((row["epoch"], str(refused.value)))

    facts = train("first", on_epoch)
    said = capsys.readouterr().err
    assert "epoch 1 of 2  loss " in said and "epoch 2 of 2  loss " in said
    assert [epoch for epoch, _ in told] == [1, 2] and not (tmp_path / "second").exists()
    [run] = runs_of(settings)
    assert (run.info.run_id, run.info.status) == (facts["run_id"], "FINISHED")
    assert names_in(settings.home / "checkpoints") == []
    again = train("second")  # once the first is done
    assert again["epochs"] == 2 and again["run_id"] != facts["run_id"]


def test_a_training_that_fails_lets_the_next_one_go_on(train, settings):
    def fail(_):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        train("out", fail)
    [left] = names_in(settings.home / "checkpoints")
    assert left.endswith(".pt")
    [stopped] = runs_of(settings)
    seen = []
    assert train("out", seen.append)["run_id"] == stopped.info.run_id
    assert [row["epoch"] for row in seen] == [2]


def test_a_training_goes_on_from_no_checkpoint_that_was_averaged_otherwise(train, settings, monkeypatch):
    def fail(_):
        raise RuntimeError("stopped")

    with monkeypatch.context() as before:
        before.setattr(training_run, "averaging", lambda _: {})
        with pytest.raises(RuntimeError, match="stopped"):
            train("out", fail)
    [stopped] = runs_of(settings)
    seen = []
    assert train("out", seen.append)["run_id"] != stopped.info.run_id
    assert [row["epoch"] for row in seen] == [1, 2]


def test_what_is_not_averaged_says_nothing_of_it():
    assert averaging(TrainParameters(average=0.5)) == {"average": "warm"}
    assert (
        averaging(TrainParameters(average=0.0)) == averaging(TrainParameters(fit="logistic", weights="imagenet")) == {}
    )


@pytest.mark.parametrize("label", APART)
def test_recipes_that_train_the_same_have_checkpoints_and_runs_of_their_own(train, settings, label):
    inner = []

    def on_epoch(row):
        if row["epoch"] == 1:  # its checkpoint is there
            inner.append(train("b", **{label: "b"}))

    outer = train("a", on_epoch, **{label: "a"})
    found = runs_of(settings)
    assert {run.info.run_id for run in found} == {outer["run_id"], inner[0]["run_id"]}
    assert len({run.data.tags["blastwatch.key"] for run in found}) == len(found) == 2
    assert [facts["epochs"] for facts in (outer, inner[0])] == [2, 2]  # from the beginning, each


def test_other_labels_are_the_same_training(train):
    def on_epoch(_):
        with pytest.raises(UsageError, match="Another process"):
            train("b", **{"blastwatch.trial": "2"})

    train("a", on_epoch, **{"blastwatch.trial": "1"})


def test_what_parts_trainings_are_labels_of_a_cross_validation():
    assert APART == (PARENT, fold_answers.RECIPE)


def test_a_training_says_on_which_pixels_and_in_which_numbers(train, cohort, tmp_path):
    facts = train("out")
    written = read_json(tmp_path / "out" / FACTS, made_by="a test")
    assert written["pack_digest"] == open_pack(cohort / "pack", read_cells(cohort / "cells")).digest
    assert written["image"] == {"crop": 320, "size": 32} and written["precision"] == "fp32"
    assert {name: facts[name] for name in written} == written


def test_a_run_says_by_what_its_split_was_dealt_and_not_what_the_parameters_say_today(train, settings, cohort):
    train("first")
    [run] = runs_of(settings)
    dealt = read_json(cohort / "split" / SPLIT_FACTS, made_by="")
    assert dealt["seed"] != PARAMETERS.split.seed
    for name, value in (dealt["fractions"] | {"seed": dealt["seed"], "fold": dealt["fold"]}).items():
        assert run.data.params[f"split.{name}"] == str(value)


def test_a_run_lists_the_knobs_that_its_training_read(settings, cohort, tmp_path):
    probe = ["image.size=32", "train.fit=logistic", "train.weights=imagenet", "train.precision=fp32"]
    parameters = load_parameters(None, [*probe, "train.architecture=efficientnet_lite0_early"])
    places = {name: cohort / name for name in ("cells", "split", "pack")}
    run_training(parameters, settings, **places, out=tmp_path / "out")
    [run] = runs_of(settings)
    listed = {name.removeprefix("train.") for name in run.data.params if name.startswith("train.")}
    assert listed == set(READ_BY_LOGISTIC)
