"""Pooled figures: each against the plain definition on the same table, thresholds and calibration by fold."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from blastwatch.decision import Thresholds, decide
from blastwatch.errors import DataError
from blastwatch.package import PREDICTION_COLUMNS
from tests.answers import draw_answers
from training.parameters import EvaluateParameters
from training.pooled import POOLED_COLUMNS, aimed_coverage, compare, pool, pooled_figures

LIMITS = {0: Thresholds(hem=0.3, all=0.6), 1: Thresholds(hem=0.1, all=0.95), 2: Thresholds(hem=0.5, all=0.5)}
KNOBS = EvaluateParameters(resamples=40, permutations=100)


def parts_of(table):
    fold = table["group"].str[1:].astype(int).floordiv(2) % 3
    return {number: table[fold == number].reset_index(drop=True) for number in (2, 0, 1)}


@pytest.fixture(scope="module")
def pooled():
    table = draw_answers(1)
    return pool(parts_of(table), "network", table["path"])


def areas_of(table):
    """A size of each cell, by its path, of which no answer knows anything."""
    return pd.DataFrame(
        {"cell_area": np.random.default_rng(6).uniform(20_000, 40_000, len(table))}, index=table["path"]
    )


def test_pooling_loses_and_adds_nothing(pooled):
    table = draw_answers(1).sort_values("path", ignore_index=True)
    assert tuple(pooled.columns) == POOLED_COLUMNS
    assert pooled[list(PREDICTION_COLUMNS)].equals(table)
    assert (pooled.groupby("group")["fold"].nunique() == 1).all()


@pytest.mark.parametrize("spoil", [lambda p: p | {0: p[0].iloc[1:]}, lambda p: p | {0: pd.concat([p[0], p[1]])}])
def test_a_cell_without_an_answer_or_with_two_is_refused(spoil):
    table = draw_answers(1)
    with pytest.raises(DataError, match="one answer of network to each of"):
        pool(spoil(parts_of(table)), "network", table["path"])


def test_figures_equal_those_of_scikit_learn(pooled):
    found = pooled_figures(pooled, LIMITS, areas_of(pooled), KNOBS)
    truth, blast = (pooled["label"] == "all").to_numpy(), pooled["probability"].to_numpy()
    said = blast >= 0.5
    expected = {
        "auroc": metrics.roc_auc_score(truth, blast),
        "weighted_f1": metrics.f1_score(truth, said, average="weighted"),
        "sensitivity": metrics.recall_score(truth, said),
    }
    for name, value in expected.items():
        row = found["cells"][name]
        assert row["value"] == pytest.approx(value)
        assert row["low"] <= value <= row["high"]
    by_patient = pd.Series(said == truth).groupby(pooled["group"].to_numpy()).mean()
    assert found["patients"]["mean_accuracy"]["value"] == pytest.approx(by_patient.mean())


def test_the_auroc_within_equal_sizes_is_the_mean_over_quarters(pooled):
    statistics = areas_of(pooled)
    found = pooled_figures(pooled, LIMITS, statistics, KNOBS)["size_matched"]
    quarter = pd.qcut(statistics.loc[pooled["path"], "cell_area"].to_numpy(), 4, labels=False)
    each = [metrics.roc_auc_score(part["label"] == "all", part["probability"]) for _, part in pooled.groupby(quarter)]
    assert found["value"] == pytest.approx(np.mean(each), abs=2e-3)  # a cell on an edge may lie on either side of it
    assert found["low"] < found["value"] < found["high"]


def test_every_cell_is_decided_by_the_thresholds_of_its_own_fold(pooled):
    decisions = [decide(row.probability, LIMITS[row.fold]) for row in pooled.itertuples()]
    found = pooled_figures(pooled, LIMITS, areas_of(pooled), KNOBS)
    assert found["cells"]["referred"]["value"] == pytest.approx(np.mean([word == "refer" for word in decisions]))
    decided = pooled[[word != "refer" for word in decisions]].assign(said=[w for w in decisions if w != "refer"])
    right = (decided["said"] == decided["label"]).mean()
    assert found["cells"]["accuracy_on_decided"]["value"] == pytest.approx(right)
    covered = pd.Series([word in ("refer", label) for word, label in zip(decisions, pooled["label"], strict=True)])
    by_patient = covered.groupby(pooled["group"].to_numpy()).mean()
    healthy = pooled.loc[pooled["label"] == "hem", "group"].unique()
    assert found["coverage"]["coverage_over_healthy"]["value"] == pytest.approx(by_patient[healthy].mean())


def test_folds_are_told_one_by_one_with_their_spread(pooled):
    found = pooled_figures(pooled, LIMITS, areas_of(pooled), KNOBS)
    assert sorted(row["fold"] for row in found["folds"]) == [0, 1, 2]
    values = []
    for row in found["folds"]:
        part = pooled[pooled["fold"] == row["fold"]]
        values.append(metrics.roc_auc_score(part["label"] == "all", part["probability"]))
        assert row["cells"]["auroc"] == pytest.approx(values[-1])
        assert row["groups"] == part["group"].nunique()
    assert found["spread"]["cells"]["auroc"] == {
        "mean": pytest.approx(np.mean(values)),
        "sd": pytest.approx(np.std(values, ddof=1)),
    }
    assert len(found["per_patient"]) == pooled["group"].nunique()
    assert {row["subject"]: row["fold"] for row in found["per_patient"]} == dict(
        zip(pooled["subject"], pooled["fold"], strict=True)
    )


def test_the_calibration_error_before_the_temperature_is_that_of_the_logits(pooled):
    margin = pooled["logit_all"] - pooled["logit_hem"]
    plain = pooled_figures(pooled.assign(probability=1 / (1 + np.exp(-margin))), LIMITS, areas_of(pooled), KNOBS)
    found = pooled_figures(pooled.assign(probability=1 / (1 + np.exp(-margin / 3))), LIMITS, areas_of(pooled), KNOBS)
    assert found["ece"]["before"]["value"] == pytest.approx(plain["cells"]["ece"]["value"])
    assert found["ece"]["after"]["value"] == pytest.approx(found["cells"]["ece"]["value"])
    lowered = found["ece"]["before"]["value"] - found["ece"]["after"]["value"]
    assert found["ece"]["lowered_by"]["value"] == pytest.approx(lowered)


def test_aimed_coverage_is_a_mean_over_patients():
    table = pd.DataFrame({"group": ["a", "a", "b", "c", "H"], "label": ["all"] * 4 + ["hem"], "fold": [0, 0, 0, 1, 1]})
    errors = {0: {"all": 0.1, "hem": 0.5}, 1: {"all": 0.4, "hem": 0.2}}
    assert aimed_coverage(table, errors) == {"all": pytest.approx((0.9 + 0.9 + 0.6) / 3), "hem": 0.8}


def test_a_planted_advantage_is_found_and_the_same_model_is_not(pooled):
    truth = pooled["label"] == "all"
    perfect = pooled.assign(probability=np.where(truth, 0.9, 0.1))
    rows = compare({"perfect": perfect, "network": pooled, "again": pooled}, "perfect", KNOBS)
    by = {(row["baseline"], row["metric"]): row for row in rows}
    assert by["network", "auroc"]["difference"] > 0 and by["network", "auroc"]["p_holm"] < 0.05
    assert by["network", "auroc"]["p_holm"] >= by["network", "auroc"]["p"]
    rows = compare({"network": pooled, "again": pooled}, "network", KNOBS)
    assert all(row["difference"] == 0 and row["p"] == 1 for row in rows)
