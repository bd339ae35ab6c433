"""Recipes that each fold of a cross-validation chooses from, on a real MLflow store."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy.optimize import minimize_scalar

from blastwatch.errors import LeakFound, UsageError
from blastwatch.manifest import read_cells, read_split
from tests.crossvalidations import SMALL, new_work, small_networks
from training import fold_answers
from training.crossvalidation import PAGE, run_crossvalidation
from training.embedding import Embedder
from training.evaluation import run_evaluation
from training.experiment_commands import crossvalidate
from training.parameters import EvaluateParameters
from training.recipes import read_recipes


@pytest.fixture(scope="module", autouse=True)
def quick_networks():
    with small_networks():
        yield


@pytest.fixture(scope="module")
def make(cohort, empty_store, tmp_path_factory):
    return lambda: new_work(cohort, empty_store, tmp_path_factory.mktemp("work"))


def test_each_fold_chooses_by_patients_whom_it_does_not_test(make, tmp_path, monkeypatch):
    work = make()
    named = ["plain", "bold:train.learning_rate=0.02"]
    recipes = read_recipes(None, [*SMALL, "train.batch_size=16"], named=named)
    places = {name: work.cohort / name for name in ("cells", "audit", "pack")}
    facts = run_crossvalidation(recipes, work.settings, **places, out=work.out, choose=True)
    assert facts["reference"] == "chosen" and facts["recipes"]["chosen"]["kind"] == "chosen"
    assert {row["baseline"] for row in facts["comparison"]} == {"plain", "bold", "sizes", "boosted"}
    table = work.answers().set_index(["recipe", "fold"]).sort_index()
    for row in facts["recipes"]["chosen"]["folds"]:
        curves = {
            name: pd.read_csv(work.out / f"recipes/{name}/{row['fold']}/train/curves.csv") for name in ("plain", "bold")
        }
        losses = {name: curve["validation_loss"].min() for name, curve in curves.items()}
        assert row["held_out_losses"] == pytest.approx(losses)
        assert row["chosen_recipe"] == min(losses, key=losses.get)
        taken, chosen = (table.loc[(name, row["fold"])] for name in (row["chosen_recipe"], "chosen"))
        pd.testing.assert_frame_equal(taken.reset_index(drop=True), chosen.reset_index(drop=True))
    page = (work.out / PAGE).read_text()
    assert "What each fold chose" in page and page.count(">train.learning_rate</th>") == 1
    monkeypatch.setenv("BLASTWATCH_HOME", str(work.place / "home"))
    (tmp_path / "params.yaml").write_text("{}")
    call = ["--params", str(tmp_path / "params.yaml"), "--out", str(work.out), "--choose"]
    call += [part for knob in (*SMALL, "train.batch_size=16") for part in ("--set", knob)]
    call += [part for recipe in named for part in ("--recipe", recipe)]
    call += [part for name in ("cells", "audit", "pack") for part in (f"--{name}", str(work.cohort / name))]
    done = CliRunner().invoke(crossvalidate, call, catch_exceptions=False)
    assert done.exit_code == 0 and " of the folds" in done.stderr
    refused = CliRunner().invoke(crossvalidate, [*call, "--recipe", "chosen:train.epochs=1"])
    assert "chosen needs another name" in str(refused.exception)


def test_what_a_network_makes_of_a_cell_is_computed_once_for_all_recipes_and_folds(make, monkeypatch):
    looked = []
    real = Embedder._look
    monkeypatch.setattr(Embedder, "_look", lambda self, rows: looked.extend(rows.tolist()) or real(self, rows))
    work = make()
    knobs = ("train.architecture=efficientnet_lite0_stages", "train.weights=imagenet", "train.fit=logistic",
             "evaluate.calibrate_on=out-of-fold")  # fmt: skip
    recipes = read_recipes(None, [*SMALL, *knobs], named=["free", "shrunk:train.shrink_patients=30"])
    places = {name: work.cohort / name for name in ("cells", "audit", "pack")}
    facts = run_crossvalidation(recipes, work.settings, **places, out=work.out, choose=True)
    cells = len(read_cells(work.cohort / "cells").rows)
    assert sorted(looked) == list(range(cells))
    for row in facts["recipes"]["chosen"]["folds"]:
        losses = {name: by_hand(work, name, row["fold"]) for name in ("free", "shrunk")}
        assert row["held_out_losses"] == pytest.approx(losses, rel=1e-3)
        assert row["chosen_recipe"] == min(losses, key=losses.get)
    # The network itself says what was answered from the numbers that were kept.
    metrics = run_evaluation(
        EvaluateParameters(resamples=20, permutations=100, calibrate_on="out-of-fold"),
        cells=work.cohort / "cells", pack=work.cohort / "pack", split=work.out / "folds/1",
        trained=work.out / "recipes/shrunk/1/train", out=work.place / "one",
    ).metrics  # fmt: skip
    [fold] = [row for row in facts["recipes"]["shrunk"]["folds"] if row["fold"] == 1]
    assert fold["temperature"] == pytest.approx(metrics["calibration"]["temperature"], rel=1e-4)
    assert fold["cells"]["auroc"] == pytest.approx(metrics["cells"]["auroc"]["value"])


def by_hand(work, name, fold):
    """Cross-entropy of held-out training patients at the temperature that scipy finds, each patient weighing the same
    within its label."""
    told = pd.read_parquet(work.out / f"recipes/{name}/{fold}/train/out_of_fold.parquet").set_index("path")
    rows = read_split(work.cohort / "cells", work.out / f"folds/{fold}").set_index("path").loc[told.index]
    assert set(rows["side"]) == {"train"}
    each = 1 / rows.groupby(["label", "group"])["side"].transform("size")
    weights = each / each.groupby(rows["label"]).transform("sum") / 2
    odds = (told["logit_all"] - told["logit_hem"]) * np.where(rows["label"] == "all", -1, 1)
    return minimize_scalar(
        lambda log: (weights * np.logaddexp(0, odds / np.exp(log))).sum(), bounds=(-3, 3), method="bounded"
    ).fun


def test_nothing_to_choose_from_is_said_at_once(make):
    work = make()
    with pytest.raises(UsageError, match=r"two recipes or more for --choose but got resnet18 alone"):
        work.run(choose=True)
    mixed = read_recipes(
        None,
        SMALL,
        named=["slow", "quick:train.fit=logistic,train.weights=imagenet,train.architecture=efficientnet_lite0"],
    )
    places = {name: work.cohort / name for name in ("cells", "audit", "pack")}
    with pytest.raises(UsageError, match=r"one train\.fit for --choose but got slow \(gradient\), quick \(logistic\)"):
        run_crossvalidation(mixed, work.settings, **places, out=work.out, choose=True)
    named = ["plain", "sure:evaluate.error=0.02"]
    with pytest.raises(UsageError, match=r"plain and sure, whose trainings are the same"):
        run_crossvalidation(read_recipes(None, SMALL, named=named), work.settings, **places, out=work.out, choose=True)
    assert not work.out.exists()


def test_weights_that_may_have_seen_the_choosing_patients_are_refused_before_a_training(make, monkeypatch):
    work = make()
    monkeypatch.setattr(fold_answers, "run_training", lambda *_, **__: pytest.fail("it trained"))
    own = work.place / "own.safetensors"
    own.touch()
    knobs = ("train.fit=logistic", "train.weights=file", f"train.weights_file={own}")
    recipes = read_recipes(None, [*SMALL, *knobs], named=["free", "shrunk:train.shrink_patients=30"])
    places = {name: work.cohort / name for name in ("cells", "audit", "pack")}
    with pytest.raises(LeakFound, match=r"for --choose, but those of own\.safetensors may have"):
        run_crossvalidation(recipes, work.settings, **places, out=work.out, choose=True)
