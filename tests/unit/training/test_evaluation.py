"""The figures against torchmetrics, the temperature, the intervals, and one evaluation from end to end."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.errors import DataError, LeakFound
from blastwatch.intervals import DIFFERENCE, bounds, draw_patients
from blastwatch.manifest import read_cells, read_split
from blastwatch.stored_answers import differing
from tests.answers import Spread, draw_answers, draw_models
from tests.trainings import leave_untrained
from training import evaluation
from training.calibration import border_told, fit_temperature, patient_weights, reliability, steadied_temperature
from training.evaluation import fit, prediction_table, run_evaluation, summary
from training.evidence import PREDICTIONS, write_metrics
from training.figures import CELLS, DECISIONS, PATIENTS, figures, plain, units_of
from training.intervals import intervals
from training.packaging import params_of
from training.parameters import EvaluateParameters, Parameters, UsageError, load_parameters


def test_ece_equals_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    table = draw_answers(0, patients=20, cells=30)
    truth = (table["label"] == "all").to_numpy()
    theirs = binary_calibration_error(torch.tensor(table["probability"].to_numpy()), torch.tensor(truth), n_bins=15)
    assert plain(units_of(table), ["ece"])["ece"] == pytest.approx(float(theirs), abs=1e-6)
    bins = reliability(table["probability"].to_numpy(), truth)
    gap = sum(row["weight"] * abs(row["probability"] - row["share"]) for row in bins)
    assert gap == pytest.approx(float(theirs), abs=1e-6)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_answers_that_are_no_numbers_neither_calibrate_nor_are_told(number):
    table = draw_answers(0, patients=6, cells=10)
    logits = np.random.default_rng(0).normal(size=(len(table), 2))
    logits[[3, 8], [0, 1]] = number
    with pytest.raises(DataError, match=r"logits of the 60 cells that calibrate but those of 2 are not: .*Train again"):
        fit(table, logits, EvaluateParameters())
    with pytest.raises(DataError, match=r"logits of the 60 cells that are answered but those of 2 are not"):
        prediction_table(table.assign(path="", pixel_sha256=""), logits, 1.0)


def test_a_temperature_that_no_cell_bounds_is_said_to_be_at_a_border():
    """Two cells of each label with margins of 1; then labels that contradict every one; then a wrong cell."""
    logits, labels = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]), np.array([0, 0, 1, 1])
    weights = np.ones(4)

    def told(labels):
        groups = np.array(["H1", "H1", "1", "1"])
        used = steadied_temperature(logits, labels, groups)
        assert 0.1 < used < 10
        return border_told({"temperature": used, "likeliest": fit_temperature(logits, labels, weights)})

    assert "the lowest (0.05): they are too few" in told(labels)
    assert "the highest (20): the network tells" in told(1 - labels)
    assert told(np.array([0, 1, 1, 1])) == ""


@pytest.mark.parametrize(("patients", "right", "said"), [
    (20, True, r"none of their cells was wrong\. With it probabilities are too sure, many of them 0 or 1\.$"),
    (20, False, r"tells their classes hardly apart\. With it all probabilities lie near one half\.$"),
    (3, True, r"none of their cells was wrong\. 0\.0\d+ was taken\.$"),
    (3, False, r"tells their classes hardly apart\. 1\d\.\d+ was taken\.$"),
])  # fmt: skip
def test_what_many_patients_say_is_not_said_to_rest_on_what_is_usual(patients, right, said):
    """All cells right by a little; or a network that leans to the wrong side. So many patients of each label."""
    random = np.random.default_rng(3)
    labels, groups = np.repeat(np.arange(2 * patients) % 2, 30), np.repeat(np.arange(2 * patients), 30)
    drawn = random.normal(size=len(labels))
    margins = 0.02 + np.abs(drawn) / 2 if right else -0.3 + 2 * drawn
    logits = np.stack([-margins, margins], 1) * np.where(labels == 1, 1, -1)[:, None]
    likeliest = fit_temperature(logits, labels, patient_weights(labels, groups))
    told = border_told({"temperature": steadied_temperature(logits, labels, groups), "likeliest": likeliest})
    assert re.search(said, told) and "usual" not in told, told


def test_a_temperature_of_few_patients_is_the_most_probable_one():
    """By a grid over what is minimised: a patient counts as ten observations at most, whatever the number of cells."""
    random = np.random.default_rng(5)
    labels = np.repeat([0, 1, 1], [30, 4, 30])
    groups = np.repeat(["H1", "1", "2"], [30, 4, 30])
    margins = random.normal(3.0, 1.0, 64)
    logits = np.stack([-margins, margins], 1) * np.where(labels == 1, 1, -1)[:, None] / 2
    weights, grid = patient_weights(labels, groups), np.geomspace(0.05, 20, 8000)
    losses = [-(weights * np.log(probabilities(logits, t)[np.arange(64), labels])).sum() for t in grid]
    most_probable = grid[np.argmin(24 * np.array(losses) + np.log(grid) ** 2 / 2)]
    assert steadied_temperature(logits, labels, groups) == pytest.approx(most_probable, rel=2e-3)
    assert fit_temperature(logits, labels, weights) < 0.6 * most_probable


def test_many_patients_are_believed():
    random = np.random.default_rng(6)
    labels, groups = np.tile([0, 1], 2000), np.tile(np.arange(80).astype(str), 50)
    logits = random.normal(size=(4000, 2)) * 2
    labels = (random.random(4000) < probabilities(logits, 3.0)[:, 1]).astype(int)
    likeliest = fit_temperature(logits, labels, patient_weights(labels, groups))
    assert steadied_temperature(logits, labels, groups) == pytest.approx(likeliest, rel=0.02)


def test_a_probability_of_one_falls_into_the_last_bin():
    assert reliability(np.array([1.0, 0.0]), np.array([True, False]))[-1]["share"] == 1.0


def test_temperature_is_found_again():
    random = np.random.default_rng(1)
    logits = random.normal(size=(20000, 2)) * 2
    labels = (random.random(20000) < probabilities(logits, 3.0)[:, 1]).astype(int)
    found = fit_temperature(logits, labels, np.ones(20000))
    assert found == pytest.approx(3.0, rel=0.06)


def test_temperature_against_a_grid():
    random = np.random.default_rng(2)
    logits, labels = random.normal(size=(300, 2)), random.integers(0, 2, 300)
    weights = random.random(300)
    grid = np.geomspace(0.05, 20, 4000)
    losses = [-(weights * np.log(probabilities(logits, t)[np.arange(300), labels])).sum() for t in grid]
    best = fit_temperature(logits, labels, weights)
    ours = -(weights * np.log(probabilities(logits, best)[np.arange(300), labels])).sum()
    assert ours <= min(losses) + 1e-4


def test_patients_weigh_the_same():
    labels = np.array([0, 0, 0, 1, 1])
    weights = patient_weights(labels, np.array(["H1", "H1", "H2", "1", "2"]))
    assert weights == pytest.approx([0.125, 0.125, 0.25, 0.25, 0.25])


def test_figures_over_cells_equal_torchmetrics():
    import torch
    from torchmetrics.functional import classification

    table = draw_answers(3, patients=20, cells=30)
    blast, truth = torch.tensor(table["probability"].to_numpy()), torch.tensor((table["label"] == "all").to_numpy())
    ours = plain(units_of(table), tuple(CELLS))
    integer, said = truth.int(), (blast >= 0.5).int()
    theirs = {
        "auroc": classification.binary_auroc(blast, integer),
        "average_precision": classification.binary_average_precision(blast, integer),
        "sensitivity": classification.binary_recall(blast, integer),
        "specificity": classification.binary_specificity(blast, integer),
        "weighted_f1": classification.multiclass_f1_score(said, integer, num_classes=2, average="weighted"),
        "macro_f1": classification.multiclass_f1_score(said, integer, num_classes=2, average="macro"),
    }
    assert {name: ours[name] for name in theirs} == pytest.approx({k: float(v) for k, v in theirs.items()}, abs=1e-6)


def test_figures_over_patients_by_hand():
    table = pd.DataFrame(
        {
            "group": ["1", "1", "2", "2", "H1", "H1", "H2", "H2"],
            "label": ["all"] * 4 + ["hem"] * 4,
            "probability": [0.9, 0.8, 0.9, 0.2, 0.1, 0.2, 0.7, 0.8],
        }
    )
    ours = plain(units_of(table), tuple(PATIENTS))
    assert ours["mean_accuracy"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert ours["worst_quarter_accuracy"] == 0
    assert ours["specificity_over_healthy"] == 0.5
    assert ours["auroc_of_mean_probability"] == pytest.approx(0.75)
    assert ours["majority_accuracy"] == ours["mean_probability_accuracy"] == 0.75


def test_intervals_by_patient_are_wider_than_by_cell():
    """Against scipy's bootstrap over independent cells, which is what clustered cells are not."""
    from scipy.stats import bootstrap

    (table,) = draw_models(np.random.default_rng(4), [0.8], patients=20, cells=30, spread=Spread(patient=1.5))
    right = ((table["probability"] >= 0.5) == (table["label"] == "all")).to_numpy().astype(float)
    ours = intervals(units_of(table), ["accuracy"], draw_patients(table, resamples=1000, seed=1))["accuracy"]
    naive = bootstrap((right,), np.mean, n_resamples=1000, rng=1, method="percentile").confidence_interval
    assert ours["value"] == pytest.approx(right.mean())
    assert ours["low"] < ours["value"] < ours["high"]
    assert ours["high"] - ours["low"] > 2 * (naive.high - naive.low)


def test_intervals_cover():
    """Over many cohorts, the interval holds the true value about as often as it says."""
    world = Spread(patient=1.0)
    (many,) = draw_models(np.random.default_rng(6), [0.8], patients=4000, cells=5, spread=world)
    true = plain(units_of(many), ["mean_accuracy"])["mean_accuracy"]
    held = 0
    for seed in range(150):
        (table,) = draw_models(np.random.default_rng(seed), [0.8], patients=10, cells=5, spread=world)
        row = intervals(units_of(table), ["mean_accuracy"], draw_patients(table, resamples=200, seed=seed))
        held += row["mean_accuracy"]["low"] <= true <= row["mean_accuracy"]["high"]
    assert held >= 134  # of 150; at 95 % fewer come up once in two hundred times


PARAMETERS = EvaluateParameters(resamples=60, permutations=200)


@pytest.fixture(scope="module")
def evaluated(cohort, tmp_path_factory):
    """An untrained network on the small cohort, measured and reported."""
    work = tmp_path_factory.mktemp("evaluated")
    leave_untrained(cohort, work / "trained")
    return evaluate(cohort, work / "trained", work / "out"), work / "out"


def evaluate(data, trained, out, parameters=PARAMETERS, **places):
    """All of an evaluation but its pictures; returns what metrics.json says."""
    folders = {name: data / name for name in ("cells", "split", "pack")} | places
    metrics = run_evaluation(parameters, **folders, trained=trained, out=out).metrics
    (out / "report.html").write_text("a report")
    return write_metrics(metrics, out)


def test_a_network_of_another_split_is_not_tested(cohort, tmp_path):
    """It may have been trained on who is tested, and nobody would see it: exit code 3, and nothing is written."""
    leave_untrained(cohort, tmp_path / "trained", split_digest="another" * 8)
    with pytest.raises(LeakFound, match=r"trained on \(anotherano\w+\) but .*split is another"):
        evaluate(cohort, tmp_path / "trained", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_test_cells_of_one_label_are_refused_before_anything_is_removed(cohort, tmp_path, monkeypatch):
    """A split of before the check may have such a test side."""
    leave_untrained(cohort, tmp_path / "trained")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / PREDICTIONS).write_text("of an earlier evaluation")
    rows = read_split(cohort / "cells", cohort / "split")
    left = rows[(rows["side"] != "test") | (rows["label"] == "all")]
    monkeypatch.setattr(evaluation, "read_split", lambda *_: left)
    with pytest.raises(DataError, match="both labels but got none of hem"):
        evaluate(cohort, tmp_path / "trained", tmp_path / "out")
    assert (tmp_path / "out" / PREDICTIONS).read_text() == "of an earlier evaluation"


def test_a_package_says_how_its_network_was_trained_and_not_where():
    trained = {"epochs": 3, "weights_file": "/home/somebody/weights.safetensors"}
    split = {"fractions": {"train": 0.78, "test": 0.15}, "seed": 5, "folds": 3, "fold": 2, "digest": "c0ffee"}
    said = params_of(Parameters(), {"parameters": trained, "image": {}}, {"parameters": {}}, split)
    assert said["train"] == {"epochs": 3, "weights_file": "weights.safetensors"}
    assert said["split"] == {"train": 0.78, "test": 0.15, "seed": 5, "folds": 3, "fold": 2}  # and not today's


def test_an_evaluation_holds_everything_and_is_json(evaluated):
    metrics, out = evaluated
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics, allow_nan=False))
    assert set(metrics["cells"]) <= {*CELLS, *DECISIONS} and set(metrics["patients"]) == set(PATIENTS)
    assert metrics["size_baseline"] == metrics["baselines"]["sizes"]["cells"]
    assert {row["baseline"] for row in metrics["comparisons"]} == {"sizes", "boosted"}
    assert all(0 < row["p"] <= row["p_holm"] <= 1 for row in metrics["comparisons"])
    assert set(metrics["breakdown"]) == {"source", "cell_area", "stain"}
    assert set(metrics["size_matched"]) == {"network", "sizes", "boosted"}


def test_the_figures_follow_from_the_answers_as_the_registry_asks(evaluated):
    metrics, out = evaluated
    table = pd.read_parquet(out / PREDICTIONS)
    assert list(differing(table, metrics["patients"])) == []
    other = table.assign(probability=1 - table["probability"])
    assert len(list(differing(other, metrics["patients"]))) == 2


def test_an_evaluation_is_the_same_for_the_same_seed(evaluated):
    metrics, out = evaluated
    table = pd.read_parquet(out / PREDICTIONS)
    assert (
        metrics["cells"]["auroc"]
        == intervals(
            units_of(table), ["auroc"], draw_patients(table, resamples=PARAMETERS.resamples, seed=PARAMETERS.seed)
        )["auroc"]
    )


def test_the_calibration_error_is_given_before_and_after_on_the_same_draws(evaluated):
    metrics, out = evaluated
    table, found = pd.read_parquet(out / PREDICTIONS), metrics["calibration"]
    plain_blast = probabilities(table[["logit_hem", "logit_all"]].to_numpy(), 1.0)[:, POSITIVE]
    draws = draw_patients(table, resamples=PARAMETERS.resamples, seed=PARAMETERS.seed)
    before, after = (
        figures(units_of(t), draws, ["ece"])["ece"] for t in (table.assign(probability=plain_blast), table)
    )
    behind = int(table.groupby("label")["group"].nunique().min())
    lowered = found["ece_before"] - found["ece_after"]
    low, high = bounds(before - after, behind, value=lowered, within=DIFFERENCE)
    assert (found["ece"]["lowered_by"]["low"], found["ece"]["lowered_by"]["high"]) == pytest.approx((low, high))
    assert found["ece"]["lowered_by"]["value"] == pytest.approx(lowered)


def test_the_summary_is_flat(evaluated):
    flat = summary(evaluated[0])
    assert all(isinstance(value, float) for value in flat.values())
    assert {"cells.auroc", "size_baseline.auroc", "boosted_baseline.auroc", "calibration.ece_after"} <= set(flat)


def test_the_metrics_say_where_the_training_began_as_far_as_that_is_known(evaluated, cohort, tmp_path):
    assert evaluated[0]["initial_weights"] == "scratch"
    start = {"source": "pretrained", "name": "w.safetensors", "digest": "", "subjects": ["of another data set"]}
    leave_untrained(cohort, tmp_path / "trained", initial_weights=start)
    assert evaluate(cohort, tmp_path / "trained", tmp_path / "out")["initial_weights"] == "unknown"


def test_nothing_is_chosen_on_test_patients(evaluated, cohort, tmp_path, monkeypatch):
    """Other labels on the test side move no threshold and no temperature."""
    from training import evaluation

    rows = evaluation.read_split(cohort / "cells", cohort / "split")
    tested = rows["side"] == "test"
    rows.loc[tested, "label"] = rows.loc[tested, "label"].map({"all": "hem", "hem": "all"})
    monkeypatch.setattr(evaluation, "read_split", lambda *_: rows)
    trained = evaluated[1].parent / "trained"
    turned = evaluate(cohort, trained, tmp_path)
    assert turned["operating"]["threshold"] == evaluated[0]["operating"]["threshold"]
    assert turned["cells"]["auroc"]["value"] == pytest.approx(1 - evaluated[0]["cells"]["auroc"]["value"])
    assert (tmp_path / "calibration.json").read_text() == (evaluated[1] / "calibration.json").read_text()
    assert read_cells(cohort / "cells").synthetic and turned["synthetic"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("train: {epoch: 3}", "Expected keys of train"),
        ("training: {}", "Expected the sections"),
        ("train: {epochs: many}", r"train\.epochs to be a whole number"),
        ("train: {epochs: 0}", "lie from 1"),
        ("train: {precision: fp8}", "one of auto, fp32, bf16"),
        ("train: {weights: file}", "go together"),
        ("split: {by: cell}", "one of group, official, image"),
        ("audit: {links: [[a]]}", "at least two subjects"),
        ("audit: {links: 3}", r"audit\.links to be a list"),
        ("evaluate: {conformal: plain}", "one of subsampled, pooled"),
        ("evaluate: {operating: best}", "one of youden, sensitivity"),
        ("train: 3", "sections of keys"),
        ("train: {epochs: [", "cannot be read"),
    ],
)
def test_wrong_parameters_are_named(tmp_path, text, said):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        load_parameters(tmp_path / "params.yaml")


def test_the_params_file_of_the_project_holds_every_knob(request):
    import yaml

    path = request.config.rootpath / "params.yaml"
    assert yaml.safe_load(path.read_text()) == load_parameters(path).to_dict()
    assert load_parameters(path, ["train.learning_rate=1e-4"]).train.learning_rate == 1e-4
    assert POSITIVE == 1
