import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blastwatch.decision import POSITIVE, Thresholds, probabilities
from training.calibration import (
    expected_calibration_error,
    fit_temperature,
    fit_thresholds,
    reliability,
    subject_weights,
)
from training.evaluation import cell_metrics, decision_metrics, patient_metrics
from training.intervals import group_bootstrap
from training.parameters import UsageError, load_parameters


def drawn(seed=0, patients=20, cells=30, spread=1.0):
    """Cells of patients whose probabilities differ from patient to patient."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(patients):
        ill = number % 2
        centre = (1.2 if ill else -1.2) + spread * random.normal()
        for value in centre + random.normal(size=cells):
            rows.append((f"{number}", "all" if ill else "hem", 1 / (1 + np.exp(-value))))
    table = pd.DataFrame(rows, columns=["subject", "label", "probability"])
    return table.assign(group=table["subject"], draw=table["subject"])


def test_ece_equals_torchmetrics():
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    table = drawn()
    truth = (table["label"] == "all").to_numpy()
    theirs = binary_calibration_error(torch.tensor(table["probability"].to_numpy()), torch.tensor(truth), n_bins=15)
    assert expected_calibration_error(table["probability"].to_numpy(), truth) == pytest.approx(float(theirs), abs=1e-6)


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.3]), st.floats(0.1, 3))
def test_thresholds_hold_their_error_on_the_calibration_cells(seed, error, spread):
    table = drawn(seed, patients=8, cells=10, spread=spread)
    labels = (table["label"] == "all").to_numpy().astype(int)
    weights = subject_weights(labels, table["subject"].to_numpy())
    blast = table["probability"].to_numpy()
    found = fit_thresholds(blast, labels, weights, error=error)
    if found.hem == found.all:
        return  # the classes lie apart: nothing is referred
    wrong_all = weights[(labels == 0) & (blast >= found.all)].sum() / weights[labels == 0].sum()
    wrong_hem = weights[(labels == 1) & (blast <= found.hem)].sum() / weights[labels == 1].sum()
    assert wrong_all <= error + 1e-9 and wrong_hem <= error + 1e-9


def test_subjects_weigh_the_same():
    labels = np.array([0, 0, 0, 1, 1])
    weights = subject_weights(labels, np.array(["H1", "H1", "H2", "1", "2"]))
    assert weights == pytest.approx([0.125, 0.125, 0.25, 0.25, 0.25])


def test_cell_metrics_equal_torchmetrics():
    import torch
    from torchmetrics.functional import classification

    table = drawn(3)
    blast, truth = torch.tensor(table["probability"].to_numpy()), torch.tensor((table["label"] == "all").to_numpy())
    ours = cell_metrics(table)
    integer = truth.int()
    assert ours["auroc"] == pytest.approx(float(classification.binary_auroc(blast, integer)), abs=1e-6)
    assert ours["average_precision"] == pytest.approx(
        float(classification.binary_average_precision(blast, integer)), abs=1e-6
    )
    assert ours["sensitivity"] == pytest.approx(float(classification.binary_recall(blast, integer)), abs=1e-6)
    assert ours["specificity"] == pytest.approx(float(classification.binary_specificity(blast, integer)), abs=1e-6)
    said = (blast >= 0.5).int()
    weighted = classification.multiclass_f1_score(said, integer, num_classes=2, average="weighted")
    assert ours["weighted_f1"] == pytest.approx(float(weighted), abs=1e-6)


def test_patient_metrics_by_hand():
    table = pd.DataFrame(
        {
            "draw": ["1", "1", "2", "2", "H1", "H1", "H2", "H2"],
            "label": ["all"] * 4 + ["hem"] * 4,
            "probability": [0.9, 0.8, 0.9, 0.2, 0.1, 0.2, 0.7, 0.8],
        }
    )
    ours = patient_metrics(table)
    assert ours["mean_accuracy"] == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert ours["worst_quarter_accuracy"] == 0
    assert ours["specificity_over_healthy"] == 0.5
    assert ours["auroc_of_mean_probability"] == pytest.approx(0.75)


def test_decisions():
    table = pd.DataFrame({"label": ["all", "hem", "all"], "probability": [0.9, 0.5, 0.1]})
    ours = decision_metrics(table, Thresholds(hem=0.3, all=0.7))
    assert ours == {"referred": pytest.approx(1 / 3), "accuracy_on_decided": 0.5}
    assert np.isnan(decision_metrics(table, Thresholds(hem=0.0, all=1.0))["accuracy_on_decided"])


def test_intervals_by_patient_are_wider_than_by_cell():
    """Against scipy's bootstrap over independent cells, which is what clustered cells are not."""
    from scipy.stats import bootstrap

    table = drawn(4, spread=2.0)
    right = ((table["probability"] >= 0.5) == (table["label"] == "all")).to_numpy().astype(float)
    ours = group_bootstrap(table, cell_metrics, resamples=200, seed=1)["accuracy"]
    naive = bootstrap((right,), np.mean, n_resamples=200, rng=1, method="percentile").confidence_interval
    assert ours["value"] == pytest.approx(right.mean())
    assert ours["low"] < ours["value"] < ours["high"]
    assert ours["high"] - ours["low"] > 2 * (naive.high - naive.low)


def test_intervals_cover():
    """Over many cohorts, the interval of the mean over patients holds the true value about as often as it says."""
    random = np.random.default_rng(5)

    def mean(table):
        return {"mean": float(table["value"].mean())}

    held = 0
    for seed in range(60):
        rates = random.normal(0.0, 1.0, 30)
        table = pd.DataFrame({"group": np.repeat([f"{n}" for n in range(30)], 5), "value": np.repeat(rates, 5)})
        row = group_bootstrap(table.assign(label="all"), mean, resamples=100, seed=seed)["mean"]
        held += row["low"] <= 0 <= row["high"]
    assert held >= 50


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
