"""Which recipe a fold would have taken, had it chosen for itself: nested cross-validation.

Of many recipes the best on the tested patients looks better than it is, since it was also the luckiest on them. So each
fold chooses by patients of its own training side alone, and what is measured is the choosing: what whoever tries these
recipes on patients of their own, and takes the best, may expect on the next ones (Varma & Simon 2006,
doi:10.1186/1471-2105-7-91; Cawley & Talbot 2010, JMLR 11:2079-2107).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import UsageError
from blastwatch.manifest import read_json, read_split
from training.calibration import patient_weights, temperate_loss
from training.fold_answers import Answers, Folds
from training.initial_weights import initial_weights
from training.out_of_fold import check_start, out_of_fold_logits
from training.parameters import TrainParameters, as_read
from training.recipes import Recipe
from training.training_run import CURVES, FACTS

RECIPE, LOSSES = "chosen_recipe", "held_out_losses"  # of the facts of a fold: what it took, and the loss of each


def check_choosing(recipes: Sequence[Recipe]) -> None:
    """Raise `UsageError` where there is nothing to choose from, or losses that cannot be held against each other."""
    if len(recipes) < 2:
        raise UsageError(f"Expected two recipes or more for --choose but got {recipes[0].name} alone. Name another.")
    for number, recipe in enumerate(recipes):
        same = [
            other.name
            for other in recipes[:number]
            if as_read(other.parameters.train) == as_read(recipe.parameters.train)
        ]
        if same:
            raise UsageError(
                f"Expected recipes that train differently for --choose but got {same[0]} and {recipe.name}, whose "
                "trainings are the same: a fold chooses by losses of the training. Name one of them."
            )
    kinds = {recipe.parameters.train.fit for recipe in recipes}
    if len(kinds) > 1:
        told = ", ".join(f"{recipe.name} ({recipe.parameters.train.fit})" for recipe in recipes)
        raise UsageError(
            f"Expected recipes of one train.fit for --choose but got {told}: those of logistic are chosen by training "
            "patients whom a fit did not see, those of gradient by validation patients."
        )


def check_known_unseen(train: TrainParameters, rows: pd.DataFrame) -> None:
    """Raise `LeakFound` where the weights that a last layer is fitted to have seen patients by whom the fold would
    choose, or may have. A training by gradients chooses by validation patients, whom `check_unseen` keeps apart.

    Args:
        rows: of the fold's split, with `subject` and `side`.
    """
    if train.fit == "logistic":
        known = rows[rows["side"] == "train"]
        check_start(initial_weights(train), known, wanted="--choose", instead="Leave --choose out.")


def chosen_answers(
    recipes: Sequence[Recipe], answers: Mapping[str, Mapping[int, Answers]], folds: Folds
) -> dict[int, Answers]:
    """By fold the answers of the recipe with the lowest loss there on patients whom the fold does not test; the first
    of equals.

    Args:
        answers: by recipe and fold.
    """
    found = {}
    for fold in range(len(folds.splits)):
        losses = {recipe.name: held_out_loss(recipe, fold, folds) for recipe in recipes}
        name = min(losses, key=losses.__getitem__)
        taken = answers[name][fold]
        found[fold] = replace(taken, facts=taken.facts | {RECIPE: name, LOSSES: losses})
    return found


def held_out_loss(recipe: Recipe, fold: int, folds: Folds) -> float:
    """The cross-entropy of a training on patients of its training side that a fit did not see, at the best temperature
    and with every patient weighing the same within its label; of one by gradients the lowest on validation patients,
    with every patient weighing the same."""
    trained = folds.out / recipe.name / str(fold) / "train"
    if recipe.parameters.train.fit == "logistic":
        rows = read_split(folds.cells, folds.splits[fold])
        known = rows[rows["side"] == "train"].sort_values("path")
        labels = known["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
        weights = patient_weights(labels, known["group"].astype(str).to_numpy())
        return temperate_loss(out_of_fold_logits(trained, known), labels, weights)
    curves = pd.read_csv(trained / CURVES).set_index("epoch")
    best = read_json(Path(trained / FACTS), made_by="blastwatch crossvalidate")["best_epoch"]
    return float(curves.loc[best, "validation_loss"])


def times_taken(folds: Sequence[Mapping[str, object]]) -> dict[str, int]:
    """How many folds took each recipe, the most first."""
    return {str(name): int(count) for name, count in pd.Series([row[RECIPE] for row in folds]).value_counts().items()}
