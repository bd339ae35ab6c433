"""Recipes of a comparison: what a call names, and what is no recipe."""

from pathlib import Path

import pytest

from blastwatch.errors import UsageError
from training.crossvalidation import UNREAD, _own, differing
from training.fold_answers import for_fold
from training.recipes import read_recipes


def names(**given):
    return [recipe.name for recipe in read_recipes(None, [], **given)]


def test_without_a_name_the_one_recipe_is_that_of_the_parameters():
    [recipe] = read_recipes(None, ["train.architecture=resnet18", "train.epochs=3"])
    assert (recipe.name, recipe.parameters.train.epochs) == ("resnet18", 3)


def test_each_recipe_has_its_own_overrides_on_top_of_those_of_all():
    first, second = read_recipes(
        None, ["train.epochs=3"], architectures="resnet18", named=["strong:train.augment=2,train.epochs=4"]
    )
    assert (first.name, first.parameters.train.architecture, first.parameters.train.epochs) == (
        "resnet18",
        "resnet18",
        3,
    )
    assert (second.name, second.parameters.train.augment, second.parameters.train.epochs) == ("strong", 2.0, 4)
    assert second.parameters.train.architecture == "resnet50"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"architectures": "resnet18,alexnet9"}, "alexnet9"),
        ({"architectures": "resnet18,resnet18"}, "resnet18 is named twice"),
        ({"named": ["a:train.epochs=3", "A:train.epochs=4"]}, "A is named twice"),
        ({"named": ["a:train.epochs=3", "b:train.epochs=3"]}, "a and b have the same parameters"),
        ({"named": ["a/b:train.epochs=3"]}, "letters, digits"),
        ({"named": [":train.epochs=3"]}, "letters, digits"),
        ({"named": ["sizes:train.epochs=3"], "taken": ("sizes",)}, "needs another name"),
        ({"named": ["small:image.size=64"]}, "keys of train or evaluate"),
        ({"named": ["a:train.epoch=3"]}, "keys of train"),
        ({"named": ["a:train.epochs"]}, r"SECTION\.KEY=VALUE"),
    ],
)
def test_what_is_no_recipe_is_said(given, said):
    with pytest.raises(UsageError, match=said):
        names(**given)


def test_recipes_that_differ_in_what_a_last_layer_does_not_read_are_one():
    at_once = ["train.fit=logistic", "train.weights=imagenet"]
    with pytest.raises(UsageError, match=r"a and b have the same parameters, .* of train\.fit=logistic reads"):
        read_recipes(None, at_once, named=["a:train.epochs=3", "b:train.epochs=4"])
    assert len(read_recipes(None, at_once, named=["a:train.seed=3", "b:train.seed=4"])) == 2


@pytest.mark.parametrize(
    "own",
    ["operating=sensitivity", "sensitivity=0.8", "camera_cells=0", "resamples=30", "permutations=200", "seed=7"],
)
def test_recipes_that_differ_in_what_a_cross_validation_does_not_read_are_one(own):
    with pytest.raises(UsageError, match=r"a and b have the same parameters, of those that a cross-validation of "):
        names(named=["a", f"b:evaluate.{own}"])
    assert names(named=["a", f"b:evaluate.{own},evaluate.error=0.2"]) == ["a", "b"]


@pytest.mark.parametrize("own", ["error=0.2", "conformal=pooled", "calibrate_on=out-of-fold"])
def test_recipes_that_decide_in_their_own_ways_are_two(own):
    assert names(named=["a", f"b:evaluate.{own}"]) == ["a", "b"]


def parameters_of(*named):
    """Recipes as `crossvalidation.json` has them, beside a baseline."""
    recipes = read_recipes(None, [], named=named)
    return {recipe.name: {"parameters": _own(recipe)} for recipe in recipes} | {"sizes": {"parameters": {}}}


def test_a_comparison_tells_the_knobs_that_its_trainings_read():
    probe = "train.fit=logistic,train.weights=imagenet"
    found = parameters_of(f"plain:{probe}", f"kept:{probe},train.nuisances=60")
    assert found["plain"]["parameters"]["train"]["nuisances"] == 0
    assert not {"epochs", "augment"} & set(found["kept"]["parameters"]["train"])
    assert differing(found) == {"train.nuisances": {"plain": 0, "kept": 60}}


@pytest.mark.parametrize("turned", [False, True])
def test_a_knob_that_one_of_them_does_not_read_is_one_in_which_they_differ(turned):
    named = ["probe:train.fit=logistic,train.weights=imagenet", "long:train.epochs=50"]
    found = differing(parameters_of(*(named[::-1] if turned else named)))
    assert found["train.epochs"] == {"probe": UNREAD, "long": 50}
    assert found["train.fit"] == {"probe": "logistic", "long": "gradient"}
    assert not {"train.seed", "evaluate.error"} & set(found)


def test_recipes_that_differ_in_where_their_weights_lie_are_told_apart():
    found = parameters_of(*(f"{name}:train.weights=file,train.weights_file={name}/{{fold}}/w.pt" for name in "ab"))
    assert differing(found) == {"train.weights_file": {"a": "a/{fold}/w.pt", "b": "b/{fold}/w.pt"}}


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("pre/{fold}/weights.safetensors", " blastwatch pretrain --split folds/1 --out pre/1"),
        ("pre/fold{fold}.safetensors", "name it pre/{fold}/weights.safetensors."),
        ("pre/{fold}/w.pt", "name it pre/{fold}/weights.safetensors."),
        ("/pre/{fold}.pt", "name it /pre/{fold}/weights.safetensors."),
        ("pre/weights.safetensors", "but there is none."),
    ],
)
def test_weights_that_a_fold_lacks_are_made_in_a_folder_of_its_own(named, said):
    """`blastwatch pretrain` names its file itself: into one folder it would write those of all folds."""
    [recipe] = read_recipes(None, ["train.weights=file", f"train.weights_file={named}"])
    with pytest.raises(UsageError) as found:
        for_fold(recipe.parameters, 1, Path("folds/1"))
    assert str(found.value).endswith(said) and ("--out" in said) == ("--out" in str(found.value))
