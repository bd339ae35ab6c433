"""Small cross-validations for tests: a place of their own over one cohort, and networks that are trained at once."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from blastwatch.settings import load
from tests.trainings import small_network
from training.crossvalidation import PREDICTIONS, run_crossvalidation
from training.recipes import read_recipes

SMALL = ["image.size=32", "split.folds=3", "train.epochs=2", "train.batch_size=64", "train.precision=fp32",
         "evaluate.resamples=20", "evaluate.permutations=100"]  # fmt: skip


@dataclass
class Work:
    """A home and a folder of results of their own over one cohort."""

    cohort: Path
    place: Path

    @property
    def settings(self):
        return load({"BLASTWATCH_HOME": str(self.place / "home"), "BLASTWATCH_ACTOR": "tester"})

    @property
    def out(self):
        return self.place / "out"

    def run(self, *overrides, **given):
        recipes = read_recipes(None, [*SMALL, *overrides], architectures="resnet18")
        places = {name: self.cohort / name for name in ("cells", "audit", "pack")}
        return run_crossvalidation(recipes, self.settings, **places, out=self.out, **given)

    def answers(self):
        return pd.read_parquet(self.out / PREDICTIONS)


@contextmanager
def small_networks() -> Iterator[None]:
    """Every architecture of torchvision is a network of a few thousand weights."""
    from torchvision import models

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "get_model", lambda *_, **__: small_network())
        yield


def new_work(cohort, empty_store, place):
    """With an MLflow store of its own."""
    (place / "home").mkdir()
    shutil.copy(empty_store, place / "home/mlflow.db")
    return Work(cohort, place)
