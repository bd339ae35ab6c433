"""Recipes: what a comparison trains on the same folds, each a name and the parameters behind it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blastwatch.errors import UsageError
from blastwatch.network import check_architecture
from training.parameters import EvaluateParameters, Parameters, as_read, load_parameters

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
OWN = ("train", "evaluate")  # the rest is the same for all recipes: they see the same cells, folds and pixels
ANSWERING = ("error", "conformal", "calibrate_on")
"""What a cross-validation reads of the section `evaluate` of each recipe. How intervals are drawn is the first recipe's
for all; operating thresholds and other cameras are for `blastwatch evaluate`."""
CHOSEN = "chosen"  # the name, among the recipes, of what each fold chose for itself (`training.choosing`)


@dataclass(frozen=True)
class Recipe:
    """A name, which is a folder and a label of runs, and every parameter."""

    name: str
    parameters: Parameters


def read_recipes(
    params: Path | None,
    overrides: Sequence[str],
    *,
    architectures: str = "",
    named: Sequence[str] = (),
    taken: Sequence[str] = (),
) -> list[Recipe]:
    """The recipes that a call names; one, called by its architecture, where it names none.

    Args:
        params, overrides: as `load_parameters` takes them; they hold for every recipe.
        architectures: names with commas between, each a recipe of that name.
        named: `NAME:KEY=VALUE,KEY=VALUE`, each a recipe with overrides of its own; `NAME` alone has none.
        taken: names that no recipe may have.

    Raises:
        UsageError: for an unknown architecture or key, a name that is no word or comes twice, and two names for one
            thing.
    """
    base = load_parameters(params, overrides)
    recipes = []
    for architecture in filter(None, (word.strip() for word in architectures.split(","))):
        own = (f"train.architecture={check_architecture(architecture)}",)
        recipes.append(Recipe(architecture, load_parameters(params, [*overrides, *own])))
    for text in named:
        name, _, rest = text.partition(":")
        recipes.append(Recipe(name, load_parameters(params, [*overrides, *_own_overrides(name, rest)])))
    recipes = recipes or [Recipe(base.train.architecture, base)]
    _check_names(recipes, taken)
    return recipes


def reference_of(recipes: Sequence[Recipe], asked: str, *, choose: bool) -> str:
    """What is held against the others: what was asked for, else the first recipe, or what the folds chose.

    Raises:
        UsageError: where it is no recipe.
    """
    names = [*([CHOSEN] if choose else []), *(recipe.name for recipe in recipes)]
    if asked and asked not in names:
        told = ", ".join(names)
        raise UsageError(f"Expected the reference to be one of the recipes {told} but got {asked!r}.")
    return asked or names[0]


def _own_overrides(name: str, text: str) -> list[str]:
    own = [part.strip() for part in text.split(",") if part.strip()]
    for override in own:
        section = override.partition(".")[0]
        if section not in OWN:
            raise UsageError(
                f"Expected the recipe {name} to set keys of {' or '.join(OWN)} but got {override!r}. What all recipes "
                "share is set for all of them, with --set."
            )
    return own


def _check_names(recipes: Sequence[Recipe], taken: Sequence[str]) -> None:
    seen: dict[str, Recipe] = {}
    for recipe in recipes:
        if not NAME.fullmatch(recipe.name):
            raise UsageError(
                f"Expected the name of a recipe to be letters, digits, '.', '_' or '-' but got {recipe.name!r}. "
                "Write NAME:KEY=VALUE, such as strong:train.augment=2."
            )
        if recipe.name in taken:
            raise UsageError(f"The recipe {recipe.name} needs another name: {', '.join(taken)} are always there.")
        if recipe.name.casefold() in seen:
            raise UsageError(f"The recipe {recipe.name} is named twice. Give each recipe a name of its own.")
        for other in seen.values():
            if _as_read(other) == _as_read(recipe):
                fit = recipe.parameters.train.fit
                of_those = f", of those that a cross-validation of train.fit={fit} reads"
                raise UsageError(
                    f"The recipes {other.name} and {recipe.name} have the same parameters"
                    f"{'' if other.parameters == recipe.parameters else of_those}: name one of them."
                )
        seen[recipe.name.casefold()] = recipe


def _as_read(recipe: Recipe) -> Parameters:
    """The parameters, with the defaults in the place of what a cross-validation does not read."""
    given = recipe.parameters
    evaluate = EvaluateParameters(**{name: getattr(given.evaluate, name) for name in ANSWERING})
    return replace(given, train=as_read(given.train), evaluate=evaluate)
