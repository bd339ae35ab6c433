"""A search: on validation patients alone, the same when it was stopped, and honest about trials that came to no end."""

import json
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from sklearn import metrics

from blastwatch.decision import CLASS_NAMES
from blastwatch.digests import file_digest
from blastwatch.errors import DataError, UsageError
from blastwatch.manifest import read_cells, read_split
from blastwatch.settings import load
from tests.answers import draw_answers
from tests.trainings import small_network
from training import evaluation, fitting, search, training_run
from training.experiment_commands import search as command
from training.pack import open_pack
from training.sampling import Side
from training.search import Plan, judge, run_search
from training.search_space import read_space

SMALL = ("image.size=32", "train.epochs=2", "train.batch_size=64", "train.precision=fp32", "train.patience=9")
RANGES = ("train.learning_rate=1e-4..1e-1:log", "train.balance=class|subject")


class Killed(BaseException):
    """Nothing catches it, as nothing catches the end of a process."""


@pytest.fixture(scope="module", autouse=True)
def quick_networks():
    """Every architecture is a network of a few thousand weights."""
    from torchvision import models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "get_model", lambda *_, **__: small_network())
        yield


@dataclass
class Work:
    cohort: Path
    place: Path
    overrides: tuple[str, ...] = SMALL
    told: list[str] = field(default_factory=list)

    @property
    def settings(self):
        return load({"BLASTWATCH_HOME": str(self.place / "home"), "BLASTWATCH_ACTOR": "tester"})

    def run(self, trials, *, objective="loss", split="split"):
        plan = Plan(
            params=None, overrides=self.overrides, space=read_space(None, RANGES), trials=trials,
            objective=objective, seed=1,
        )  # fmt: skip
        places = {"cells": self.cohort / "cells", "split": self.cohort / split, "pack": self.cohort / "pack"}
        return run_search(plan, self.settings, **places, out=self.place / "out")

    def children(self, facts):
        from mlflow import MlflowClient

        client = MlflowClient(self.settings.tracking_uri)
        parent = client.get_run(facts["run_id"])
        wanted = f"tags.`mlflow.parentRunId` = '{facts['run_id']}'"
        return parent, client.search_runs([parent.info.experiment_id], wanted, order_by=["attributes.start_time"])

    def checkpoints(self):
        return list((self.place / "home/checkpoints").glob("*.pt"))


@pytest.fixture(scope="module")
def make(cohort, empty_store, tmp_path_factory):
    def new(**given):
        place = tmp_path_factory.mktemp("search")
        (place / "home").mkdir()
        shutil.copy(empty_store, place / "home/mlflow.db")
        return Work(cohort, place, **given)

    return new


class Guarded:
    """Crops of which some may not be looked at."""

    def __init__(self, crops, forbidden):
        self.crops, self.forbidden, self.looked = crops, set(forbidden), set()

    def __getitem__(self, rows):
        wanted = set(np.atleast_1d(np.asarray(rows)).tolist())
        assert not wanted & self.forbidden, "a cell of a hidden side was looked at"
        self.looked |= wanted
        return self.crops[rows]


@pytest.fixture(scope="module")
def whole(make, cohort):
    """A search that nothing stopped, over crops that fail where a test or calibration cell is looked at."""
    rows = read_split(cohort / "cells", cohort / "split")
    guards = []

    def guarded(folder, cells):
        packed = open_pack(folder, cells)
        hidden = rows.loc[rows["side"].isin(["test", "calibration"]), "path"].tolist()
        guards.append(Guarded(packed.crops, packed.rows_of(hidden).tolist()))
        return replace(packed, crops=guards[-1])

    def never(*_, **__):
        raise AssertionError("a search evaluates nobody")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "open_pack", guarded)
        patch.setattr(search, "open_pack", guarded)
        patch.setattr(evaluation, "run_evaluation", never)
        work = make()
        facts = work.run(4)
    return work, facts, guards


@pytest.mark.parametrize(
    ("overrides", "ranges", "said"),
    [
        (["train.fit=logistic", "train.weights=imagenet"], ["train.nuisances=20..60"], ""),
        (["train.weights=imagenet"], ["train.frozen=0..2"], ""),
        (["train.epochs=60"], ["train.probe_epochs=5..40"], ""),
        ([], ["train.nuisances=20..60"], r"train\.nuisances=20\. train\.nuisances=20 is read by"),
        (["train.epochs=20"], ["train.probe_epochs=5..40"], "probe_epochs=40"),
        ([], ["train.epochs=30..60", "train.probe_epochs=5..40"], r"train\.epochs=30, train\.probe_epochs=40"),
    ],
)
def test_ranges_are_tried_with_the_parameters_of_the_call(overrides, ranges, said):
    plan = Plan(
        params=None, overrides=["train.architecture=efficientnet_lite0_stages", *overrides],
        space=read_space(None, ranges), trials=1, objective="loss", seed=1,
    )  # fmt: skip
    if not said:
        plan.check()
        return
    with pytest.raises(UsageError, match=f"may be drawn together and do not go: .*{said}"):
        plan.check()


def test_what_no_trial_reads_is_not_searched():
    """With the last layer fitted at once there are no epochs: all trials would be one, and the first the best."""

    def plan(*ranges, fit="logistic"):
        overrides = [f"train.fit={fit}", "train.weights=imagenet"]
        return Plan(
            params=None, overrides=overrides, space=read_space(None, ranges), trials=1, objective="loss", seed=1
        )

    with pytest.raises(UsageError, match=r"fit=logistic reads but got train\.epochs, which no trial would read"):
        plan("train.epochs=2..9", "train.balance=class|subject").check()
    plan("train.epochs=2..9", fit="gradient").check()
    plan("train.epochs=2..9", "train.fit=gradient|logistic").check()


def test_all_that_a_trial_may_begin_with_is_known_by_its_digest(tmp_path):
    files = [tmp_path / name for name in ("a.pth", "b.pth")]
    for seed, file in enumerate(files):
        torch.save(small_network(seed).state_dict(), file)
    plan = Plan(
        params=None, overrides=["train.weights=file", f"train.weights_file={files[0]}"],
        space=read_space(None, [f"train.weights_file={files[0]}|{files[1]}", *RANGES]), trials=1, objective="loss",
        seed=1,
    )  # fmt: skip
    assert [start["digest"] for start in plan.starts()] == [file_digest(file) for file in files]
    files[1].unlink()
    with pytest.raises(UsageError, match="there is none"):
        plan.starts()


def test_a_search_from_other_weights_of_the_same_name_is_another_one(make, monkeypatch):
    work = make()
    path = work.place / "weights.pth"
    work.overrides = (*SMALL, "train.weights=file", f"train.weights_file={path}")
    studies = []
    for seed in (1, 2):
        torch.save(small_network(seed).state_dict(), path)
        facts = work.run(1)
        _, [child] = work.children(facts)
        assert child.data.tags["blastwatch.initial_weights.digest"] == file_digest(path)
        studies.append(facts["study"])
    assert studies[0] != studies[1]
    monkeypatch.setattr(search, "run_training", None)
    assert work.run(1) == facts  # the same weights: it goes on, where nothing is left to do


def test_no_cell_of_the_test_or_calibration_side_is_looked_at(whole, cohort):
    work, _, guards = whole
    looked = set().union(*(guard.looked for guard in guards))
    rows = read_split(cohort / "cells", cohort / "split")
    seen = rows.loc[rows["side"].isin(["train", "validation"]), "path"].tolist()
    assert looked == set(open_pack_rows(cohort, seen))
    with pytest.raises(AssertionError, match="hidden side"):
        guards[0][[next(iter(guards[0].forbidden))]]
    [split] = (work.place / "home/searches").glob("*/split/split.parquet")
    assert set(pd.read_parquet(split)["side"]) == {"train", "validation"}


def open_pack_rows(cohort, paths):
    return open_pack(cohort / "pack", read_cells(cohort / "cells")).rows_of(paths).tolist()


def test_each_trial_is_a_child_of_one_run(whole):
    work, facts, _ = whole
    parent, children = work.children(facts)
    assert parent.info.status == "FINISHED"
    assert [child.info.run_id for child in children] == [trial["run_id"] for trial in facts["trials"]]
    for child, trial in zip(children, facts["trials"], strict=True):
        assert float(child.data.params["train.learning_rate"]) == trial["parameters"]["train.learning_rate"]
        assert child.data.params["train.balance"] == trial["parameters"]["train.balance"]
        assert child.data.metrics["objective.loss"] == trial["value"]
    values = [trial["value"] for trial in facts["trials"]]
    assert facts["best"]["value"] == min(values) == parent.data.metrics["best"]
    assert len(set(values)) > 1


def test_a_search_that_was_killed_goes_on_as_it_would_have(whole, make, monkeypatch):
    _, facts, _ = whole
    other = make()
    real = search.run_training

    def killed(parameters, settings, within, /, **places):
        def on_epoch(row):
            within.on_epoch(row)
            if within.labels["blastwatch.trial"] == "2":
                raise Killed

        return real(parameters, settings, replace(within, on_epoch=on_epoch), **places)

    monkeypatch.setattr(search, "run_training", killed)
    with pytest.raises(Killed):
        other.run(4)
    assert len(other.checkpoints()) == 1
    monkeypatch.undo()
    resumed = other.run(4)
    assert [(trial["parameters"], trial["value"]) for trial in resumed["trials"]] == [
        (trial["parameters"], trial["value"]) for trial in facts["trials"]
    ]
    _, children = other.children(resumed)
    assert [child.info.status for child in children] == ["FINISHED"] * 4
    assert other.checkpoints() == []


def test_what_is_done_is_not_done_again(whole, monkeypatch):
    work, facts, _ = whole
    monkeypatch.setattr(search, "run_training", None)
    assert work.run(4) == facts
    assert work.run(2) == facts


def test_a_trial_behind_the_others_is_stopped(make, monkeypatch):
    monkeypatch.setattr(search, "UNPRUNED", 1)
    losses = iter([0.3, 0.2, 0.1, 0.9, 0.9, 0.9])

    def validate(*_):
        loss = next(losses)
        return {"validation_loss": loss, "validation_subject_accuracy": 0.5, "validation_auroc": 0.5}

    monkeypatch.setattr(fitting, "validate", validate)
    work = make(overrides=(*SMALL, "train.epochs=3"))
    facts = work.run(2)
    assert facts["states"] == {"complete": 1, "pruned": 1}
    assert next(losses) == 0.9  # the third epoch of the second trial was spared
    _, children = work.children(facts)
    assert [child.info.status for child in children] == ["FINISHED", "KILLED"]
    assert children[1].data.tags["blastwatch.stopped"] == "behind the median of earlier trials"
    assert facts["trials"][1]["run_id"] == children[1].info.run_id
    assert work.checkpoints() == []


def test_trials_that_diverge_are_told_apart(make, monkeypatch):
    monkeypatch.setattr(fitting, "predict_logits", lambda _network, _packed, rows: np.full((len(rows), 2), np.nan))
    with pytest.raises(DataError, match=r"None of 1 trials came to its end.*train\.learning_rate"):
        make().run(1)


def test_without_the_extra_it_is_named(make, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"the extra `search` .*blastwatch\[search\]"):
        make().run(1)


@pytest.mark.parametrize("seed", range(3))
def test_objectives_equal_the_plain_definitions(seed):
    table = draw_answers(seed)
    truth, blast = (table["label"] == "all").to_numpy(), table["probability"].to_numpy()
    found = judge(table, blast)
    share = (blast >= 0.5) == truth
    by_patient = np.sort([share[table["group"] == group].mean() for group in table["group"].unique()])
    assert found["mean_accuracy"] == pytest.approx(by_patient.mean())
    assert found["worst_quarter_accuracy"] == pytest.approx(by_patient[:3].mean())
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(truth, blast))
    assert found["loss"] == pytest.approx(metrics.log_loss(truth, blast))  # patients have as many cells each


def test_the_figures_of_an_epoch_are_those_of_the_search_where_subjects_are_tied():
    """Two subjects whom the audit ties are one patient in both."""
    table = draw_answers(1)
    table = table.assign(group=table["group"].replace({"P001": "P003", "P000": "P004"}))
    labels = table["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
    blast = table["probability"].to_numpy()
    subjects, patients = table["subject"].to_numpy(), table["group"].to_numpy()
    side = Side(np.arange(len(table)), labels, subjects, np.ones(len(table), np.float32), patients)
    epoch, found = fitting.validate(np.log(np.column_stack([1 - blast, blast])), side), judge(table, blast)
    assert len(set(subjects)) > len(set(patients))
    assert {name: epoch[search.CURVES[name]] for name in found} == pytest.approx(found)


def test_the_command_prints_json_alone(whole, monkeypatch, tmp_path):
    work, facts, _ = whole
    monkeypatch.setenv("BLASTWATCH_HOME", str(work.place / "home"))
    monkeypatch.setattr(search, "run_training", None)
    params = tmp_path / "params.yaml"
    params.write_text("{}")
    call = ["--params", str(params), "--trials", "4", "--objective", "loss", "--out", str(tmp_path / "out"), "--json"]
    call += [part for knob in SMALL for part in ("--set", knob)]
    call += [part for text in RANGES for part in ("--range", text)]
    call += [part for name in ("cells", "split", "pack") for part in (f"--{name}", str(work.cohort / name))]
    done = CliRunner().invoke(command, call, catch_exceptions=False)
    assert json.loads(done.stdout) == facts
    assert json.loads((tmp_path / "out/search.json").read_text()) == facts
