"""Every figure against scikit-learn or a plain loop, on whole tables and on drawn patients."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.decision import Thresholds, decide
from blastwatch.intervals import draw_patients
from tests.answers import draw_answers
from training.figures import DECISIONS, FORMULAS, figures, plain, units_of
from training.intervals import intervals

LIMITS = Thresholds(hem=0.3, all=0.8)


def by_hand(table):
    """The figures of one table of cells; `draw` tells patients apart."""
    from sklearn import metrics

    truth, blast = (table["label"] == "all").to_numpy(), table["probability"].to_numpy()
    said = blast >= 0.5
    decisions = np.array([decide(value, LIMITS) for value in blast])
    decided = decisions != "refer"
    covered = (decisions == "refer") | (decisions == table["label"])
    cells = table.assign(right=said == truth, said=said, covered=covered)
    by = cells.groupby(["draw", "label"], sort=True).agg(
        right=("right", "mean"), blast=("probability", "mean"), said=("said", "mean"), covered=("covered", "mean")
    )
    by["blast"] = by["blast"].round(12)
    ranked = np.sort(by["right"].to_numpy())
    ill = by.index.get_level_values("label") == "all"
    bins = np.minimum((blast * 15).astype(int), 14)
    return {
        "accuracy": metrics.accuracy_score(truth, said),
        "weighted_f1": metrics.f1_score(truth, said, average="weighted", zero_division=0.0),
        "macro_f1": metrics.f1_score(truth, said, average="macro", zero_division=0.0),
        "auroc": metrics.roc_auc_score(truth, blast),
        "average_precision": metrics.average_precision_score(truth, blast),
        "sensitivity": metrics.recall_score(truth, said),
        "specificity": metrics.recall_score(~truth, ~said),
        "brier": metrics.brier_score_loss(truth, blast),
        "ece": sum(abs((blast - truth)[bins == number].sum()) for number in range(15)) / len(truth),
        "referred": (~decided).mean(),
        "accuracy_on_decided": (decisions[decided] == table["label"].to_numpy()[decided]).mean(),
        "coverage_hem": (decisions != "all")[~truth].mean(),
        "coverage_all": (decisions != "hem")[truth].mean(),
        "coverage_over_healthy": by.loc[~ill, "covered"].mean(),
        "coverage_over_ill": by.loc[ill, "covered"].mean(),
        "mean_accuracy": ranked.mean(),
        "worst_quarter_accuracy": ranked[: max(1, round(0.25 * len(ranked)))].mean(),
        "auroc_of_mean_probability": metrics.roc_auc_score(ill, by["blast"]),
        "specificity_over_healthy": by.loc[~ill, "right"].mean(),
        "sensitivity_over_ill": by.loc[ill, "right"].mean(),
        "majority_accuracy": ((by["said"] >= 0.5) == ill).mean(),
        "mean_probability_accuracy": ((by["blast"] >= 0.5) == ill).mean(),
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 11), st.sampled_from([2, 12]), st.booleans())
def test_every_figure_equals_the_one_by_hand(seed, patients, decimals, mixed):
    """Rounded probabilities tie; a patient may have cells of both labels."""
    table = draw_answers(seed, patients=patients, cells=9).round({"probability": decimals})
    if mixed:
        table.loc[table.index[:3], "label"] = "hem"
    ours = plain(units_of(table, thresholds=LIMITS), tuple(FORMULAS))
    assert ours == pytest.approx(by_hand(table.assign(draw=table["group"])), abs=1e-12)


def test_drawn_patients_are_weighed_as_if_their_cells_stood_there_so_often():
    table = draw_answers(3, patients=9, cells=8)
    table.loc[table.index[:3], "label"] = "hem"
    draws = draw_patients(table, resamples=25, seed=4)
    found = figures(units_of(table, thresholds=LIMITS), draws, tuple(FORMULAS))
    names = sorted(table["group"].unique())
    for row, counts in enumerate(draws.astype(int)):
        copies = [
            table[table["group"] == name].assign(draw=f"{name}/{copy}")
            for name, count in zip(names, counts, strict=True)
            for copy in range(count)
        ]
        expected = by_hand(pd.concat(copies))
        assert {name: values[row] for name, values in found.items()} == pytest.approx(expected, abs=1e-12)


def test_cells_in_pieces_give_the_same_average_precision(monkeypatch):
    table = draw_answers(5, patients=8, cells=10)
    units, draws = units_of(table), draw_patients(table, resamples=30, seed=1)
    whole = figures(units, draws, ["average_precision"])["average_precision"]
    monkeypatch.setattr("training.figures.MOST_AT_ONCE", 200)
    np.testing.assert_array_equal(figures(units, draws, ["average_precision"])["average_precision"], whole)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_order_of_the_cells_does_not_matter(seed):
    table = draw_answers(seed, patients=6, cells=7).round({"probability": 1})
    mixed = table.sample(frac=1, random_state=seed)
    assert plain(units_of(mixed), tuple(FORMULAS)) == pytest.approx(plain(units_of(table), tuple(FORMULAS)), abs=1e-12)


def test_draws_hold_as_many_patients_of_each_label_as_there_are():
    table = draw_answers(1, patients=11, cells=3)
    label_of = table.groupby("group")["label"].first().sort_index()
    draws = draw_patients(table, resamples=50, seed=2)
    for label in ("all", "hem"):
        assert (draws[:, (label_of == label).to_numpy()].sum(axis=1) == (label_of == label).sum()).all()
    assert (draws == draw_patients(table, resamples=50, seed=2)).all()


def test_a_figure_without_a_value_is_left_out():
    table = draw_answers(1, patients=6, cells=4)
    found = intervals(
        units_of(table, thresholds=Thresholds(hem=0.0, all=1.0)),
        tuple(DECISIONS),
        draw_patients(table, resamples=20, seed=1),
    )
    assert set(found) == {"referred"}
    assert found["referred"]["value"] == 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"probability": 1.5}, "`probability` from 0 to 1 each but got 24 others, the first 1.5"),
        ({"probability": np.nan}, "others, the first nan"),
        ({"label": "other"}, "the labels hem, all but got other"),
    ],
)
def test_wrong_tables_are_named(change, said):
    with pytest.raises(ValueError, match=said):
        units_of(draw_answers(1, patients=6, cells=4).assign(**change))


def test_wrong_weights_and_names_are_named():
    units = units_of(draw_answers(1, patients=6, cells=4))
    with pytest.raises(ValueError, match=r"shape \(draws, 6\) but got \(2, 5\)"):
        figures(units, np.ones((2, 5)), ["auroc"])
    with pytest.raises(ValueError, match="Expected figures out of accuracy"):
        figures(units, np.ones((2, 6)), ["roc"])
    with pytest.raises(ValueError, match="Expected the groups a"):
        units_of(draw_answers(1, patients=6, cells=4), order=["a"])
