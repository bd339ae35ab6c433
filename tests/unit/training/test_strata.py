"""The operating threshold, the baselines on statistics, and the figures within parts of the cells."""

import numpy as np
import pandas as pd
import pytest

from blastwatch.intervals import draw_patients
from monitoring.statistics import STATISTICS
from tests.answers import draw_answers
from training.baselines import baseline_answers, cell_statistics
from training.operating import choose_threshold
from training.strata import breakdown, levels, size_matched_auroc


def test_youdens_threshold_against_every_other():
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, 300)
    blast, weights = np.clip(random.normal(0.4 + 0.2 * labels, 0.2), 0, 1), random.random(300)

    def gained(threshold):
        rates = [np.average(blast[labels == k] >= threshold, weights=weights[labels == k]) for k in (1, 0)]
        return rates[0] - rates[1]

    found = choose_threshold(blast, labels, weights, rule="youden", wanted=0.9)
    assert gained(found) == pytest.approx(max(gained(value) for value in np.linspace(0, 1, 2001)), abs=0.01)
    assert gained(found) >= max(gained(value) for value in blast)


def test_of_equal_thresholds_the_one_nearest_to_one_half_is_taken():
    blast, labels = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1])
    assert choose_threshold(blast, labels, np.ones(4), rule="youden", wanted=0.9) == 0.5


def test_a_wanted_sensitivity_is_reached_and_no_more_than_needed():
    blast, labels = np.array([0.2, 0.4, 0.6, 0.8, 0.1]), np.array([1, 1, 1, 1, 0])
    choose = {"rule": "sensitivity", "labels": labels, "blast": blast}
    assert choose_threshold(**choose, weights=np.ones(5), wanted=0.75) == pytest.approx(0.3)
    assert choose_threshold(**choose, weights=np.ones(5), wanted=1.0) == pytest.approx(0.15)
    # The lowest cell is of a patient who weighs as much as the three others.
    assert choose_threshold(**choose, weights=np.array([3, 1, 1, 1, 1.0]), wanted=0.6) == pytest.approx(0.15)
    with pytest.raises(ValueError, match="a rule out of youden"):
        choose_threshold(blast, labels, np.ones(5), rule="best", wanted=0.5)


def test_baselines_see_train_patients_alone_and_learn(cohort):
    from blastwatch.manifest import read_cells, read_split
    from training.pack import open_pack

    cells = read_cells(cohort / "cells")
    rows = read_split(cohort / "cells", cohort / "split").sort_values("path", ignore_index=True)
    statistics = cell_statistics(rows["path"].tolist(), open_pack(cohort / "pack", cells))
    assert list(statistics.columns) == list(STATISTICS)
    found = baseline_answers(rows, statistics, seed=1)
    assert set(found) == {"sizes", "boosted"}
    assert all(len(blast) == (rows["side"] == "test").sum() for blast in found.values())
    strange = rows.assign(label=np.where(rows["side"] == "train", rows["label"], "hem"))
    again = baseline_answers(strange, statistics, seed=1)
    for name, blast in found.items():
        np.testing.assert_array_equal(blast, again[name])
    planted = statistics.assign(focus=np.where(rows["label"] == "all", 2.0, 1.0))
    boosted = baseline_answers(rows, planted, seed=1)["boosted"]
    assert ((boosted >= 0.5) == (rows.loc[rows["side"] == "test", "label"] == "all")).all()


def statistics_of(table, **columns):
    random = np.random.default_rng(1)
    values = pd.DataFrame(random.random((len(table), len(STATISTICS))), index=table["path"], columns=list(STATISTICS))
    return values.assign(**columns)


def test_parts_hold_every_cell_once_and_figures_where_there_are_patients_enough():
    table = draw_answers(2, patients=16, cells=12)
    where = pd.Series(np.where(table["group"] < "P003", "small", "large"), index=table["path"])
    found = breakdown(table, where, statistics_of(table), resamples=50, seed=1)
    for kind, count in (("source", 2), ("cell_area", 4), ("stain", 3)):
        assert len(found[kind]) == count
        assert sum(sum(row["cells"].values()) for row in found[kind]) == len(table)
    small = next(row for row in found["source"] if row["name"] == "small")
    assert small["patients"] == {"hem": 2, "all": 1} and small["figures"] == {}
    assert all(set(row["figures"]) >= {"auroc", "sensitivity"} for row in found["cell_area"])
    assert found["cell_area"][0]["high"] == found["cell_area"][1]["low"]


def test_what_size_alone_earns_is_gone_within_sizes():
    table = draw_answers(2, patients=30, cells=20)
    random = np.random.default_rng(3)
    area = 30_000 + 3000 * (table["label"] == "all").to_numpy() + 3000 * random.normal(size=len(table))
    by_size = table.assign(probability=1 / (1 + np.exp(-(area - 31_500) / 3000)))
    draws = draw_patients(table, resamples=50, seed=1)
    matched = size_matched_auroc(by_size, statistics_of(table, cell_area=area), draws)
    from sklearn.metrics import roc_auc_score

    index, _ = levels(area, 4)
    truth = (table["label"] == "all").to_numpy()
    expected = [roc_auc_score(truth[index == k], by_size["probability"].to_numpy()[index == k]) for k in range(4)]
    assert matched["value"] == pytest.approx(np.mean(expected)) and matched["strata"] == 4
    assert matched["value"] < roc_auc_score(truth, by_size["probability"]) - 0.1
    assert matched["low"] <= matched["value"] <= matched["high"]


def test_sizes_that_tell_the_labels_apart_leave_nothing_to_match():
    table = draw_answers(2, patients=8, cells=6)
    area = np.where(table["label"] == "all", 2.0, 1.0)
    draws = draw_patients(table, resamples=20, seed=1)
    assert size_matched_auroc(table, statistics_of(table, cell_area=area), draws) is None


def test_equal_values_are_one_part():
    index, edges = levels(np.ones(5), 4)
    assert (index == 0).all() and list(edges) == [1, 1]
