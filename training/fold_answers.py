"""One fold of a cross-validation: what a recipe, trained on the other folds, answers to it. Nothing is done twice."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from blastwatch.decision import Thresholds
from blastwatch.digests import file_digest
from blastwatch.errors import UsageError
from blastwatch.manifest import SPLIT_FACTS, read_json, read_split, write_json
from blastwatch.settings import Settings
from training import evaluation
from training.baselines import BASELINES, baseline_answers, cell_statistics
from training.embedding import Embedder
from training.initial_weights import recorded, vouched
from training.loop import Answer, answering
from training.network_graph import inferring
from training.out_of_fold import calibrating_cells
from training.pack import Packed
from training.parameters import EvaluateParameters, Parameters
from training.pooled import fold_figures
from training.precision import Precision
from training.recipes import Recipe
from training.steps import take_once
from training.tracking import NAME, PARENT, flat, open_run
from training.training_run import FACTS, WEIGHTS, Within, averaging, run_training

RECIPE, FOLD, SUPERSEDED = "blastwatch.recipe", "blastwatch.fold", "blastwatch.superseded"  # tags of a child
ANSWERS, FITTED, AIMED, MEASURED = "answers.parquet", "fitted.json", "aimed_error", "statistics.parquet"
DECIDING = ("error", "conformal", "seed")  # of the section evaluate: what the limits of a decision depend on
DRAWN = ("resamples", "permutations", "seed")  # of the section evaluate: what shapes intervals and no answer
TEMPERATURE = "steadied"  # how it is fitted: answers at one that was fitted otherwise are made anew
LOWEST = 1e-12  # probability that a logarithm is taken of


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers to the test side of one fold, `PREDICTION_COLUMNS`.

    facts: what is known of how they came about. anew: whether they were made now.
    """

    table: pd.DataFrame
    thresholds: Thresholds
    facts: dict[str, Any]
    anew: bool


@dataclass(frozen=True, kw_only=True)
class Folds:
    """What all recipes share.

    packed: the pack, open; splits: folder of each fold's split; digests: of data, split (all folds) and pack;
    out: folder of the recipes; kept: of what networks make of cells; run_id: of the MLflow run above those of the
    folds.
    """

    cells: Path
    pack: Path
    packed: Packed
    splits: list[Path]
    digests: Mapping[str, str]
    out: Path
    kept: Path
    run_id: str


def for_fold(parameters: Parameters, fold: int, split: Path) -> Parameters:
    """The parameters with `{fold}` in train.weights_file filled in: weights may be pretrained for each fold.

    Args:
        split: folder of the fold's split.

    Raises:
        UsageError: where there is no such file.
    """
    name = parameters.train.weights_file.replace("{fold}", str(fold))
    if name and not Path(name).is_file():
        raise UsageError(
            f"Expected a file of weights for fold {fold} at {name} (train.weights_file) but there is none."
            f"{_made_by(Path(parameters.train.weights_file), Path(name), split)}"
        )
    return replace(parameters, train=replace(parameters.train, weights_file=name))


def _made_by(asked: Path, named: Path, split: Path) -> str:
    """How a fold's weights are made; "" for a file of all folds. `blastwatch pretrain` names its file itself, so each
    fold needs a folder of its own.

    Args:
        asked: train.weights_file. named: the same with the fold filled in.
    """
    if asked == named:
        return ""
    if asked.name == WEIGHTS:
        return f" Pretrain on what it trains on: blastwatch pretrain --split {split} --out {named.parent}"
    folder = asked.parent if "{fold}" in str(asked.parent) else asked.parent / "{fold}"
    return f" blastwatch pretrain calls its file {WEIGHTS}: to pretrain for each fold, name it {folder / WEIGHTS}."


def network_answers(recipe: Recipe, fold: int, folds: Folds, settings: Settings) -> Answers:
    """Train and evaluate below the MLflow run of `folds`, each as its inputs ask for it."""
    what, split = f"{recipe.name}, fold {fold}", folds.splits[fold]
    trained, evaluated = (folds.out / recipe.name / str(fold) / part for part in ("train", "evaluate"))
    places = {"cells": folds.cells, "split": split, "pack": folds.pack}
    parameters = for_fold(recipe.parameters, fold, split)
    sections = parameters.to_dict()
    digest = read_json(split / SPLIT_FACTS, made_by="blastwatch crossvalidate")["digest"]

    def train() -> None:
        labels = {NAME: what, PARENT: folds.run_id, RECIPE: recipe.name, FOLD: str(fold)}
        facts = run_training(parameters, settings, Within(labels=labels, kept=folds.kept), **places, out=trained)
        _supersede(recipe.name, fold, parent=folds.run_id, kept=facts["run_id"])

    def evaluate() -> None:
        found = network_table(trained, read_split(folds.cells, split), folds.packed, parameters.evaluate, folds.kept)
        write_answers(evaluated, *found)
        figures = fold_figures(found[0], found[1].conformal.thresholds)
        with open_run(settings, run_id=read_json(trained / FACTS, made_by="blastwatch crossvalidate")["run_id"]):
            import mlflow

            for part in ("cells", "patients"):
                mlflow.log_metrics({f"test.{part}.{name}": value for name, value in figures[part].items()})

    inputs = {**folds.digests, "split": digest, **flat({name: sections[name] for name in ("image", "train")})}
    inputs |= averaging(parameters.train)
    if parameters.train.weights_file:
        inputs["weights"] = file_digest(Path(parameters.train.weights_file))
    anew = take_once(trained, inputs, train, what=f"Training of {what}")
    made = read_json(trained / FACTS, made_by="blastwatch crossvalidate")
    inputs = {**folds.digests, "split": digest, "weights": file_digest(trained / WEIGHTS), "run": made["run_id"]}
    inputs |= flat({"evaluate": {key: value for key, value in sections["evaluate"].items() if key not in DRAWN}})
    inputs["temperature"] = TEMPERATURE
    anew |= take_once(evaluated, inputs, evaluate, what=f"Evaluation of {what}")
    facts = read_json(trained / FACTS, made_by="blastwatch crossvalidate")
    kept = {name: facts[name] for name in ("run_id", "epochs", "best_epoch", "split_digest")}
    kept["initial_weights"] = vouched(recorded(facts), read_split(folds.cells, split))["source"]
    return read_answers(evaluated, kept, anew=anew)


def network_table(
    trained: Path, rows: pd.DataFrame, packed: Packed, parameters: EvaluateParameters, kept: Path | None = None
) -> tuple[pd.DataFrame, evaluation.Fitted]:
    """What a trained network answers to the test side, and what was fitted on those that calibrate.

    Args:
        trained: folder that `run_training` wrote. rows: of `read_split`.
        kept: where what the network makes of cells is kept, if only its last layer was fitted.
    """
    answer = _answering(trained, packed, kept)
    tested = rows[rows["side"] == "test"].sort_values("path")
    held, held_logits, proven = calibrating_cells(answer, rows, trained, parameters.calibrate_on)
    fitted = evaluation.fit(held, held_logits, parameters, proven=proven)
    logits = answer(tested["path"].tolist())
    return evaluation.prediction_table(tested, logits, fitted.temperature), fitted


def _answering(trained: Path, packed: Packed, kept: Path | None) -> Answer:
    """The network in the folder of its training, in float32 as an evaluation asks it."""
    found = evaluation.read_trained(trained)
    network = found.network
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    made = found.facts["parameters"]
    if kept is None or made["fit"] != "logistic":
        return answering(inferring(network, made, packed.preprocessing), packed)
    embedder = Embedder(network, packed, Precision("fp32", device), channels_last=made["channels_last"], kept=kept)
    return lambda paths: embedder.logits(packed.rows_of(paths))


def write_answers(folder: Path, table: pd.DataFrame, fitted: evaluation.Fitted) -> None:
    """The answers as Parquet, and what was fitted for them as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / ANSWERS, index=False)
    limits = fitted.conformal.thresholds
    write_json(
        folder / FITTED,
        {
            "temperature": fitted.temperature,
            "hem": limits.hem,
            "all": limits.all,
            AIMED: fitted.conformal.aimed,
        },
    )


def read_answers(folder: Path, facts: Mapping[str, Any], *, anew: bool) -> Answers:
    """What `write_answers` wrote; the facts are added to."""
    fitted = read_json(folder / FITTED, made_by="blastwatch crossvalidate")
    return Answers(
        table=pd.read_parquet(folder / ANSWERS),
        thresholds=Thresholds(hem=fitted["hem"], all=fitted["all"]),
        facts={**facts, "temperature": fitted["temperature"], AIMED: fitted[AIMED]},
        anew=anew,
    )


def _supersede(recipe: str, fold: int, *, parent: str, kept: str) -> None:
    """Mark the earlier children of a run that had the same recipe and fold."""
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_run(parent).info.experiment_id
    wanted = f"tags.`{PARENT}` = '{parent}' and tags.`{RECIPE}` = '{recipe}' and tags.`{FOLD}` = '{fold}'"
    for child in client.search_runs([experiment], wanted):
        if child.info.run_id != kept:
            client.set_tag(child.info.run_id, SUPERSEDED, "true")


def baseline_folds(base: Parameters, folds: Folds) -> dict[str, dict[int, Answers]]:
    """Answers of all `BASELINES`, by name and fold, each calibrated on calibration patients as a network is."""
    folder = folds.out / "baselines"
    inputs = {**folds.digests, **{f"evaluate.{name}": getattr(base.evaluate, name) for name in DECIDING}}
    inputs["kept"] = MEASURED  # a folder from before it was kept is made anew
    inputs["temperature"] = TEMPERATURE

    def make() -> None:
        statistics = cell_statistics(list(folds.packed.paths), folds.packed)
        folder.mkdir(parents=True, exist_ok=True)
        statistics.to_parquet(folder / MEASURED)
        for fold, split in enumerate(folds.splits):
            rows = read_split(folds.cells, split)
            for name, found in calibrated_baselines(rows, statistics, base.evaluate).items():
                write_answers(folder / name / str(fold), *found)

    anew = take_once(folder, inputs, make, what="Training of the baselines")
    return {
        name: {fold: read_answers(folder / name / str(fold), {}, anew=anew) for fold in range(len(folds.splits))}
        for name in BASELINES
    }


def measured_cells(folds: Folds) -> pd.DataFrame:
    """The image statistics of all cells, as `cell_statistics` has them, which `baseline_folds` kept."""
    return pd.read_parquet(folds.out / "baselines" / MEASURED)


def calibrated_baselines(
    rows: pd.DataFrame, statistics: pd.DataFrame, parameters: EvaluateParameters
) -> dict[str, tuple[pd.DataFrame, evaluation.Fitted]]:
    """What every baseline answers to the test side, and what was fitted on the calibration side.

    Args:
        rows: of `read_split`. statistics: of `cell_statistics`, of all cells.
    """
    held, tested = (rows[rows["side"] == side] for side in ("calibration", "test"))
    asked = pd.concat([rows[rows["side"] == "train"], held, tested.assign(side="test")])
    asked.loc[asked["side"] == "calibration", "side"] = "test"  # so that both are answered
    found = {}
    for name, blast in baseline_answers(asked, statistics, seed=parameters.seed).items():
        known = np.clip(blast, LOWEST, 1 - LOWEST)
        logits = np.stack([np.log1p(-known), np.log(known)], axis=1)
        fitted = evaluation.fit(held, logits[: len(held)], parameters)
        found[name] = evaluation.prediction_table(tested, logits[len(held) :], fitted.temperature), fitted
    return found
