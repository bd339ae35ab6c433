"""What a fold of a cross-validation keeps was made in the way in which it would be made now."""

from types import SimpleNamespace

import pandas as pd
import pytest

from training import fold_answers
from training.parameters import EvaluateParameters, Parameters, TrainParameters


@pytest.fixture
def folds(tmp_path):
    digests = {"data": "d", "split": "s", "pack": "p"}
    packed = SimpleNamespace(paths=[])
    places = {"out": tmp_path, "cells": tmp_path, "pack": tmp_path, "splits": [tmp_path]}
    return SimpleNamespace(digests=digests, packed=packed, **places)


def fitted(temperature):
    conformal = SimpleNamespace(thresholds=SimpleNamespace(hem=0.1, all=0.9), aimed={})
    return pd.DataFrame({"probability": [0.5]}), SimpleNamespace(temperature=temperature, conformal=conformal)


def test_baselines_at_a_temperature_that_was_fitted_otherwise_are_made_anew(folds, monkeypatch, capsys):
    monkeypatch.setattr(fold_answers, "cell_statistics", lambda *_: pd.DataFrame({"area": [1.0]}))
    monkeypatch.setattr(fold_answers, "read_split", lambda *_: None)

    def taken(temperature):
        made = dict.fromkeys(fold_answers.BASELINES, fitted(temperature))
        monkeypatch.setattr(fold_answers, "calibrated_baselines", lambda *_: made)
        answers = fold_answers.baseline_folds(SimpleNamespace(evaluate=EvaluateParameters()), folds)["sizes"][0]
        return answers.facts["temperature"], answers.anew

    with monkeypatch.context() as before:
        before.setattr(fold_answers, "TEMPERATURE", "likeliest")
        assert taken(0.05) == (0.05, True)
    assert taken(0.4) == (0.4, True) and taken(0.5) == (0.4, False)
    assert "baselines is done again: temperature is steadied and was likeliest" in capsys.readouterr().err


@pytest.mark.parametrize(("train", "averaged"), [
    (TrainParameters(average=0.5), "warm"), (TrainParameters(average=0.0), None),
    (TrainParameters(fit="logistic", weights="imagenet"), None),
])  # fmt: skip
def test_what_a_fold_is_made_of_names_how_it_was_averaged_and_calibrated(folds, monkeypatch, train, averaged):
    asked = {}
    facts = {"digest": "k", "run_id": "r", "epochs": 1, "best_epoch": 1, "split_digest": "k"}
    monkeypatch.setattr(fold_answers, "read_json", lambda *_, **__: facts)
    monkeypatch.setattr(fold_answers, "file_digest", lambda _: "w")
    monkeypatch.setattr(fold_answers, "recorded", lambda _: {"source": "scratch"})
    monkeypatch.setattr(fold_answers, "read_split", lambda *_: None)
    monkeypatch.setattr(fold_answers, "read_answers", lambda *_, **__: None)
    take = lambda folder, inputs, make, *, what: asked.update({folder.name: inputs})  # noqa: E731
    monkeypatch.setattr(fold_answers, "take_once", lambda *given, **named: bool(take(*given, **named)))
    recipe = SimpleNamespace(name="plain", parameters=Parameters(train=train))
    fold_answers.network_answers(recipe, 0, folds, None)
    assert asked["train"].get("average") == averaged and "temperature" not in asked["train"]
    assert asked["evaluate"]["temperature"] == "steadied"
