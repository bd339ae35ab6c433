"""What commands of training say before their work, and `evaluate` and `package` of a split that leaks."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from blastwatch.errors import RegistryError
from blastwatch.manifest import SPLIT_FACTS, read_json
from tests.trainings import leave_untrained
from training.calibration import LOWEST
from training.commands import evaluate, package
from training.data_commands import data
from training.parameters import TrainParameters

QUICK = "{evaluate: {resamples: 20, permutations: 100, camera_cells: 0}, image: {size: 32}}"


@pytest.fixture
def work(tmp_path, settings, monkeypatch):
    """With parameters and the home of a machine of its own."""
    monkeypatch.setenv("BLASTWATCH_HOME", str(settings.home))
    (tmp_path / "params.yaml").write_text(QUICK)
    return tmp_path


def called(command, work, *, trained, **places):
    folders = places | {"params": work / "params.yaml", "trained": trained, "out": work / "out"}
    arguments = [part for name, folder in folders.items() for part in (f"--{name}", str(folder))]
    if command is evaluate:
        arguments += ["--summary", str(work / "summary.json")]
    return CliRunner().invoke(command, arguments)


@pytest.mark.parametrize("command", [evaluate, package])
def test_a_training_of_another_machine_is_told_before_the_work(command, work, cohort):
    """Its folder came by `dvc pull`; its run lies in the MLflow of whoever trained it."""
    leave_untrained(cohort, work / "train", run_id="0" * 32)
    folders = ("cells", "split", "pack", *(("audit",) if command is package else ()))
    places = {name: cohort / name for name in folders}
    if command is package:
        places["evaluated"] = work / "train"
    done = called(command, work, trained=work / "train", **places)
    assert isinstance(done.exception, RegistryError)
    assert f"training run {'0' * 32} in sqlite" in str(done.exception)
    assert "Set MLFLOW_TRACKING_URI" in str(done.exception) and not (work / "out").exists()


def test_an_evaluation_on_a_split_that_leaks_says_so(work, cohort, settings, monkeypatch):
    """And, of the same run, that its temperature is one that no calibration patient bounds."""
    from mlflow import MlflowClient

    monkeypatch.setattr("training.evaluation.fit_temperature", lambda *_: LOWEST)

    split = [str(cohort / "cells"), "--audit", str(cohort / "audit"), "--out", str(work / "split")]
    split += ["--params", str(work / "params.yaml"), "--set", "split.by=image"]
    told = CliRunner().invoke(data, ["split", *split], catch_exceptions=False).stderr
    assert "This split by image leaks" in told
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    run_id = client.create_run(client.create_experiment("any", settings.artifacts.as_uri())).info.run_id
    digest = read_json(work / "split" / SPLIT_FACTS, made_by="")["digest"]
    parameters = asdict(TrainParameters(architecture="resnet18", epochs=4))
    leave_untrained(cohort, work / "train", run_id=run_id, split_digest=digest, leaky=True, parameters=parameters)
    places = {"cells": cohort / "cells", "pack": cohort / "pack", "split": work / "split"}
    done = called(evaluate, work, trained=work / "train", **places)
    assert done.exit_code == 0, done.exception
    [line] = [line for line in told.splitlines() if "leaks" in line]
    assert done.stderr.count(line) == 1 and done.stderr.count("do not bound the temperature") == 1
    assert json.loads((work / "summary.json").read_text())


WRONG = {
    "search --trials 1": "at least one parameter to search",
    "search --trials 1 --range train.augment=0..2 --params nope.yaml": "nope.yaml is missing",
    "search --trials 1 --range train.augment=0..2": "data/cells/import.json is missing",
    "crossvalidate --params nope.yaml": "nope.yaml is missing",
    "crossvalidate": "at least 2 folds but got 0",
    "crossvalidate --set split.folds=3 --reference other": "Expected the reference to be one of the recipes",
    "crossvalidate --set split.folds=3": "data/cells/import.json is missing",
    "compare results/evaluate results/nope": "Expected test_predictions.parquet in results/evaluate",
}


def test_what_needs_arguments_and_small_files_alone_is_told_before_heavy_libraries_load(tmp_path):
    (tmp_path / "params.yaml").write_text("{}")
    script = f"""
import json, sys
from click.testing import CliRunner
from blastwatch.cli import blastwatch
told = {{call: str(CliRunner().invoke(blastwatch, call.split()).exception) for call in {list(WRONG)}}}
heavy = [name for name in ("torch", "sklearn", "optuna", "scipy", "mlflow") if name in sys.modules]
print(json.dumps([told, heavy]))
"""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told, heavy = json.loads(done.stdout)
    assert not [call for call, said in WRONG.items() if said not in told[call]], told
    assert not heavy
