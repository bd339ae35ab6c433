"""Paired comparison by patient: against scipy, against textbook values, and what must hold for any two models."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.errors import DataError
from tests.answers import USUAL, draw_models
from tests.benchmarks import significance as simulation
from training import significance
from training.figures import FORMULAS, plain, units_of
from training.significance import COLUMNS, COMPARED, Pair, compare_models, holm, paired_bootstrap, permutation_test


def two(seed=0, *, patients=10, cells=12, distances=(1.0, 0.7)):
    return draw_models(np.random.default_rng(seed), distances, patients=patients, cells=cells)


def shares(table):
    right = (table["probability"] >= 0.5) == (table["label"] == "all")
    return right.groupby(table["group"]).mean().to_numpy()


def mean_difference(one, other, axis):
    return one.mean(axis=axis) - other.mean(axis=axis)


def test_the_exact_test_of_the_mean_over_patients_equals_scipys():
    from scipy import stats

    first, second = two(1)
    ours = permutation_test(first, second, "mean_accuracy", permutations=1024)
    theirs = stats.permutation_test(
        (shares(first), shares(second)),
        mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    assert ours.exact and ours.swaps == 1024
    assert ours.difference == pytest.approx(theirs.statistic)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert 0.005 < ours.p < 0.9  # a figure that neither side gets for nothing


def test_random_swaps_come_near_the_exact_test_and_count_what_was_seen():
    first, second = two(1)
    exact = permutation_test(first, second, "auroc", permutations=1024)
    drawn = permutation_test(first, second, "auroc", permutations=1023, seed=3)
    assert exact.exact and not drawn.exact
    assert drawn.p == pytest.approx(exact.p, abs=0.05)
    assert drawn.p * 1024 == pytest.approx(round(drawn.p * 1024))
    far, near = two(2, patients=20, distances=(3.0, 0.0))
    assert permutation_test(far, near, "mean_accuracy", permutations=99).p == 1 / 100


@pytest.mark.parametrize("metric", ["weighted_f1", "auroc", "worst_quarter_accuracy", "average_precision"])
def test_every_swap_is_what_swapped_tables_give(metric):
    """Against a plain loop over all swaps of five patients, by tables of cells. Ranks stand for probabilities."""
    first, second = two(4, patients=5, cells=6)
    if metric in ("auroc", "average_precision"):
        first, second = (t.assign(probability=t["probability"].rank() / (len(t) + 1)) for t in (first, second))
    names = sorted(first["group"].unique())
    seen = []
    for swap in range(2**5):
        chosen = first["group"].isin([name for place, name in enumerate(names) if swap >> place & 1])
        one, other = first.copy(), second.copy()
        one.loc[chosen, "probability"] = second.loc[chosen, "probability"]
        other.loc[chosen, "probability"] = first.loc[chosen, "probability"]
        seen.append(plain(units_of(one), [metric])[metric] - plain(units_of(other), [metric])[metric])
    expected = float(np.mean(np.abs(seen) >= abs(seen[0]) - 1e-10))
    assert permutation_test(first, second, metric).p == pytest.approx(expected)


@pytest.mark.parametrize("permutations", [1023, 1024])
def test_swaps_in_blocks_give_the_p_of_all_swaps_at_once(monkeypatch, permutations):
    """1023 are drawn and 1024 are all there are, in blocks of seven, which divide neither."""
    first, second = two(1)
    if permutations == 1024:
        swaps = np.array([[place >> patient & 1 for patient in range(10)] for place in range(1024)], dtype=bool)
    else:
        swaps = np.random.default_rng(3).random((1023, 10)) < 0.5
    at_once = Pair(first, second).swapped(COMPARED, swaps)
    seen = Pair(first, second).swapped(COMPARED, np.zeros((1, 10), dtype=bool))
    monkeypatch.setattr(significance, "MOST_AT_ONCE", 70)
    for name in COMPARED:
        found = permutation_test(first, second, name, permutations=permutations, seed=3)
        far = int((np.abs(at_once[name]) >= abs(seen[name][0]) - 1e-10).sum())
        assert found.p * 1024 == pytest.approx(far + (permutations == 1023)) and found.swaps == permutations


def test_memory_does_not_grow_with_the_number_of_swaps():
    """All of these swaps together are 10 MB of marks and 160 MB of weights of one model's patients and the other's."""
    first, second = two(1, patients=40, cells=4)
    permutation_test(first, second, "mean_accuracy", permutations=100)  # what is imported on the way
    tracemalloc.start()
    try:
        found = permutation_test(first, second, "mean_accuracy", permutations=250_000)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()
    assert found.swaps == 250_000


def test_the_paired_bootstrap_is_narrower_than_two_of_their_own():
    from scipy import stats

    first, second = two(5, patients=30, cells=20, distances=(1.0, 0.8))
    found = paired_bootstrap(first, second, "mean_accuracy", resamples=2000)
    assert found.difference == pytest.approx(shares(first).mean() - shares(second).mean())
    # The plug-in spread of a mean of paired differences, drawn within labels.
    apart, ill = shares(first) - shares(second), np.arange(30) % 2 == 1
    error = np.sqrt(sum(apart[side].var() * side.sum() for side in (ill, ~ill))) / 30
    student = 2 * np.sqrt(15 / 14) * stats.t.ppf(0.975, 14)
    assert found.high - found.low == pytest.approx(student * error, rel=0.1)
    alone = np.sqrt(sum(shares(t)[side].var() * side.sum() for t in (first, second) for side in (ill, ~ill))) / 30
    assert found.high - found.low < 0.8 * student * alone


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 14), st.sampled_from([*COMPARED, "brier", "ece", "average_precision"]))
def test_what_holds_for_any_two_models(seed, patients, metric):
    first, second = two(seed, patients=patients, cells=5)
    options = {"permutations": 200, "seed": 5}
    there, back = permutation_test(first, second, metric, **options), permutation_test(second, first, metric, **options)
    assert 0 < there.p <= 1
    assert back.p == pytest.approx(there.p) and back.difference == pytest.approx(-there.difference, abs=1e-12)
    mixed = first.sample(frac=1, random_state=seed), second.sample(frac=1, random_state=seed + 1)
    assert permutation_test(*mixed, metric, **options).p == there.p
    interval = paired_bootstrap(first, second, metric, resamples=50)
    turned = paired_bootstrap(second, first, metric, resamples=50)
    assert (turned.low, turned.high) == pytest.approx((-interval.high, -interval.low), abs=1e-12)
    assert interval.difference == pytest.approx(plain(units_of(first), [metric])[metric]
                                                - plain(units_of(second), [metric])[metric], abs=1e-12)  # fmt: skip


@pytest.mark.parametrize("metric", [name for name in FORMULAS if name != "accuracy_on_decided"])
def test_identical_models_do_not_differ(metric):
    first, _ = two(3)
    assert permutation_test(first, first.copy(), metric, permutations=300).p == 1
    same = paired_bootstrap(first, first.copy(), metric, resamples=50)
    assert (same.difference, same.low, same.high) == (0, 0, 0)


def test_a_model_that_ranks_alike_on_another_scale_is_no_other_by_rank():
    first, _ = two(3, patients=20)
    squeezed = first.assign(probability=first["probability"] ** 3)
    assert permutation_test(first, squeezed, "auroc", permutations=300).p == 1
    assert permutation_test(first, squeezed, "brier", permutations=300).p < 1


def test_holm_of_a_textbook():
    """Four p values worked through in Holm's way by hand: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04 never falling."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert holm([0.04]) == pytest.approx([0.04])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_the_stepwise_rule_rejects(values):
    adjusted = holm(values)
    assert ((adjusted >= values) & (adjusted <= 1)).all()
    for level in (0.01, 0.05, 0.2):
        rejected, order = set(), sorted(range(len(values)), key=lambda place: values[place])
        for step, place in enumerate(order):
            if values[place] * (len(values) - step) > level:
                break
            rejected.add(place)
        assert {place for place, value in enumerate(adjusted) if value <= level} == rejected


@pytest.mark.parametrize("wrong", [[0.1, 1.2], [-0.1], [np.nan]])
def test_holm_refuses_what_is_no_p_value(wrong):
    with pytest.raises(ValueError, match="p values from 0 to 1"):
        holm(wrong)


def test_models_are_held_against_one():
    tables = dict(zip(("ours", "near", "far"), two(7, patients=24, cells=15, distances=(1.2, 1.1, 0.2)), strict=True))
    found = compare_models(tables, "ours", permutations=500, resamples=200)
    assert list(found.columns) == list(COLUMNS)
    assert set(found["baseline"]) == {"near", "far"} and set(found["metric"]) == set(COMPARED)
    f1 = found[found["metric"] == "weighted_f1"].set_index("baseline")
    assert f1.loc["far", "p"] == 1 / 501 and f1.loc["far", "p_holm"] == 2 / 501
    assert f1.loc["far", "low"] > 0
    assert f1.loc["far", "difference"] == pytest.approx(
        f1.loc["far", "reference_value"] - f1.loc["far", "baseline_value"]
    )
    assert f1["p_holm"].to_numpy() == pytest.approx(holm(f1["p"].to_numpy()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.drop(columns="group"), "group missing"),
        (lambda t: t.iloc[1:], "1 are in one table alone"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "stands in it twice"),
        (lambda t: t.assign(pixel_sha256="0" * 64), "same pixels in both tables"),
        (lambda t: t.assign(label="all"), "same labels"),
        (lambda t: t.assign(group="x"), "same groups of patients"),
    ],
)
def test_cells_that_do_not_agree_are_refused(change, said):
    first, second = two(1)
    with pytest.raises(DataError, match=said):
        permutation_test(first, change(second), "auroc")


def test_cells_of_one_label_and_a_lonely_model_are_refused():
    first, second = (table[table["label"] == "all"] for table in two(1))
    with pytest.raises(DataError, match="both labels"):
        paired_bootstrap(first, second, "auroc")
    with pytest.raises(DataError, match="of one model more but got a"):
        compare_models({"a": first}, "a")
    with pytest.raises(ValueError, match="figures out of"):
        permutation_test(*two(1), "roc")


def test_two_draws_of_one_model_differ_no_more_often_than_the_level_says():
    """A small run of tests/benchmarks/significance.py. Of 150 draws at a level of 5 %, more than 16 come once in a
    thousand times; a test that took cells for independent finds a difference in far more."""
    options = {"draws": 150, "permutations": 199, "resamples": 20, "spread": USUAL}
    for metric, (share, _) in simulation.found(12, 0.0, **options).items():
        assert share * 150 <= 16, metric
    naive = 0
    for seed in range(60):
        first, second = two(seed, patients=12, cells=30, distances=(1.0, 1.0))
        cells = [table.assign(group=table["path"]) for table in (first, second)]
        naive += permutation_test(*cells, "mean_accuracy", permutations=199).p <= 0.05
    assert naive > 10


def test_a_planted_advantage_is_found():
    """Ten points of accuracy, 40 patients: found in 9 of 10 draws by the table in docs/evaluation.md; of 40 draws fewer
    than 28 come less than once in a thousand times."""
    shares = simulation.found(40, 0.1, draws=40, permutations=199, resamples=100, spread=USUAL)
    assert shares["mean_accuracy"][0] * 40 >= 28
    assert shares["weighted_f1"][0] * 40 >= 28
    assert shares["mean_accuracy"][1] * 40 >= 28
