"""What the trained network is worth on the test patients, which nothing before has read."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES, POSITIVE, Thresholds, decide, probabilities
from blastwatch.manifest import read_cells, read_json, read_split, write_json
from blastwatch.network import build, load_weights
from blastwatch.package import PREDICTION_COLUMNS
from training.calibration import (
    expected_calibration_error,
    fit_temperature,
    fit_thresholds,
    reliability,
    subject_weights,
)
from training.intervals import group_bootstrap
from training.loop import predict_logits
from training.pack import Packed, open_pack
from training.parameters import EvaluateParameters

PREDICTIONS, METRICS, CALIBRATION = "test_predictions.parquet", "metrics.json", "calibration.json"
QUARTER = 0.25
SIZES = ("cell_area", "cell_height", "cell_width")


def run_evaluation(
    parameters: EvaluateParameters, *, cells: Path, split: Path, pack: Path, trained: Path, out: Path
) -> dict[str, Any]:
    """Calibrate on calibration patients, measure on test patients, and write the evidence into `out`."""
    manifest = read_cells(cells)
    rows = read_split(cells, split).sort_values("path", ignore_index=True)
    packed = open_pack(pack, manifest)
    facts = read_json(trained / "train.json", made_by="blastwatch train")
    network = build(facts["architecture"])
    load_weights(network, trained / "weights.safetensors")
    held, tested = (rows[rows["side"] == side].reset_index(drop=True) for side in ("calibration", "test"))
    held_logits, logits = (
        predict_logits(network, packed, packed.rows_of(part["path"].tolist())) for part in (held, tested)
    )
    labels = held["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
    weights = subject_weights(labels, held["subject"].to_numpy())
    temperature = fit_temperature(held_logits, labels, weights)
    thresholds = fit_thresholds(
        probabilities(held_logits, temperature)[:, POSITIVE], labels, weights, error=parameters.error
    )
    table = prediction_table(tested, logits, temperature)
    baseline = table.assign(probability=size_baseline(rows, packed))
    metrics = measure(table, thresholds, parameters) | {
        "synthetic": manifest.synthetic,
        "leaky": facts["leaky"],
        "size_baseline": group_bootstrap(baseline, cell_metrics, resamples=parameters.resamples, seed=parameters.seed),
        "counts": {
            "cells": len(table),
            "subjects": int(table["subject"].nunique()),
            "groups": int(table["group"].nunique()),
        },
        "calibration": {
            "temperature": temperature,
            "ece_before": expected_calibration_error(probabilities(logits, 1.0)[:, POSITIVE], _truth(table)),
            "ece_after": expected_calibration_error(table["probability"].to_numpy(), _truth(table)),
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    table.to_parquet(out / PREDICTIONS, index=False)
    write_json(out / METRICS, metrics)
    write_json(out / CALIBRATION, {"temperature": temperature, "hem": thresholds.hem, "all": thresholds.all})
    write_tables(table, out)
    return metrics


def prediction_table(tested: pd.DataFrame, logits: NDArray[Any], temperature: float) -> pd.DataFrame:
    """One row a test cell, the columns `PREDICTION_COLUMNS`."""
    table = tested[["path", "subject", "group", "label", "pixel_sha256"]].copy()
    table["logit_hem"], table["logit_all"] = logits[:, 1 - POSITIVE], logits[:, POSITIVE]
    table["probability"] = probabilities(logits, temperature)[:, POSITIVE]
    return table[list(PREDICTION_COLUMNS)]


def _truth(table: pd.DataFrame) -> NDArray[np.bool_]:
    return np.asarray(table["label"] == "all")


def cell_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Figures over cells; `all` is the positive class and is answered from a probability of one half upwards."""
    from sklearn import metrics

    truth, blast = _truth(table), table["probability"].to_numpy()
    said = blast >= 0.5
    return {
        "accuracy": float((said == truth).mean()),
        "weighted_f1": float(metrics.f1_score(truth, said, average="weighted", zero_division=0.0)),
        "macro_f1": float(metrics.f1_score(truth, said, average="macro", zero_division=0.0)),
        "auroc": float(metrics.roc_auc_score(truth, blast)),
        "average_precision": float(metrics.average_precision_score(truth, blast)),
        "sensitivity": float(said[truth].mean()),
        "specificity": float((~said[~truth]).mean()),
        "brier": float(((blast - truth) ** 2).mean()),
        "ece": expected_calibration_error(blast, truth),
    }


def patient_metrics(table: pd.DataFrame) -> dict[str, float]:
    """Figures over groups of patients: mean accuracy, that of the worst quarter, and AUROC of the mean probability."""
    from sklearn.metrics import roc_auc_score

    cells = table.assign(right=(table["probability"] >= 0.5) == _truth(table))
    by = cells.groupby(["draw", "label"], sort=True).agg(right=("right", "mean"), blast=("probability", "mean"))
    ranked = np.sort(by["right"].to_numpy())
    ill = by.index.get_level_values("label") == "all"
    return {
        "mean_accuracy": float(ranked.mean()),
        "worst_quarter_accuracy": float(ranked[: max(1, round(QUARTER * len(ranked)))].mean()),
        "auroc_of_mean_probability": float(roc_auc_score(ill, by["blast"])),
        "specificity_over_healthy": float(by.loc[~ill, "right"].mean()),
        "sensitivity_over_ill": float(by.loc[ill, "right"].mean()),
    }


def decision_metrics(table: pd.DataFrame, thresholds: Thresholds) -> dict[str, float]:
    """Share of cells referred, and accuracy over those decided (NaN where none is)."""
    decisions = np.array([decide(value, thresholds) for value in table["probability"]])
    decided = decisions != "refer"
    right = decisions[decided] == table["label"].to_numpy()[decided]
    return {
        "referred": float((~decided).mean()),
        "accuracy_on_decided": float(right.mean()) if decided.any() else np.nan,
    }


def measure(table: pd.DataFrame, thresholds: Thresholds, parameters: EvaluateParameters) -> dict[str, Any]:
    """What `blastwatch evaluate --json` prints of the network: cells, patients, per_patient."""
    draws = {"resamples": parameters.resamples, "seed": parameters.seed}

    def over_cells(drawn: pd.DataFrame) -> dict[str, float]:
        return cell_metrics(drawn) | decision_metrics(drawn, thresholds)

    cells = group_bootstrap(table, over_cells, **draws)
    cells = {name: row for name, row in cells.items() if np.isfinite(list(row.values())).all()}
    rows = [
        {
            "subject": subject,
            "group": str(part["group"].iloc[0]),
            "label": label,
            "cells": len(part),
            "accuracy": float(((part["probability"] >= 0.5) == _truth(part)).mean()),
            "mean_probability": float(part["probability"].mean()),
        }
        for (subject, label), part in table.groupby(["subject", "label"], sort=True)
    ]
    return {"cells": cells, "patients": group_bootstrap(table, patient_metrics, **draws), "per_patient": rows}


def size_baseline(rows: pd.DataFrame, packed: Packed) -> NDArray[np.float64]:
    """What three size numbers alone say of the test cells: the bar that a network must pass to have learnt anything.

    Logistic regression on area, height and width of the cell, on train subjects, every subject weighing the same.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from monitoring.statistics import image_statistics

    def sizes(part: pd.DataFrame) -> NDArray[np.float64]:
        found = (
            image_statistics(packed.crops[row], packed.preprocessing) for row in packed.rows_of(part["path"].tolist())
        )
        return np.array([[numbers[name] for name in SIZES] for numbers in found])

    trained, tested = rows[rows["side"] == "train"], rows[rows["side"] == "test"]
    labels = trained["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
    weights = subject_weights(labels, trained["subject"].to_numpy())
    model = make_pipeline(StandardScaler(), LogisticRegression())
    model.fit(sizes(trained), labels, logisticregression__sample_weight=weights * len(labels))
    return np.asarray(model.predict_proba(sizes(tested))[:, POSITIVE])


def write_tables(table: pd.DataFrame, out: Path) -> None:
    """The tables that `dvc plots` draws."""
    from sklearn.metrics import roc_curve

    truth, blast = _truth(table), table["probability"].to_numpy()
    wrong, right, _ = roc_curve(truth, blast)
    pd.DataFrame({"false_positive_rate": wrong, "true_positive_rate": right}).to_csv(out / "roc.csv", index=False)
    said = np.where(blast >= 0.5, "all", "hem")
    pd.DataFrame({"actual": table["label"], "predicted": said}).to_csv(out / "confusion.csv", index=False)
    pd.DataFrame(reliability(blast, truth)).to_csv(out / "reliability.csv", index=False)


def summary(metrics: dict[str, Any]) -> dict[str, float]:
    """Flat figures for `dvc metrics show`."""
    flat = {f"{part}.{name}": row["value"] for part in ("cells", "patients") for name, row in metrics[part].items()}
    flat |= {f"size_baseline.{name}": metrics["size_baseline"][name]["value"] for name in ("weighted_f1", "auroc")}
    return flat | {f"calibration.{name}": value for name, value in metrics["calibration"].items()}
