"""What the trained network is worth on the test patients, which nothing before has read."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES, POSITIVE, Thresholds, probabilities
from blastwatch.errors import DataError
from blastwatch.intervals import DIFFERENCE, SHARE, as_interval, draw_patients
from blastwatch.manifest import read_cells, read_json, read_split, write_json
from blastwatch.network import build, load_weights
from blastwatch.package import PREDICTION_COLUMNS, WEIGHTS
from training.baselines import baseline_answers, cell_statistics
from training.calibration import check_finite, fit_temperature, patient_weights, reliability, steadied_temperature
from training.conformal import Conformal, coverage_report, fit_conformal
from training.evidence import (
    BASELINE_PREDICTIONS,
    CALIBRATION,
    PREDICTIONS,
    TRAINED,
    check_trained_on,
    check_weights,
    digest_of_weights,
    forget_evaluation,
)
from training.figures import AT_THRESHOLD, CELLS, DECISIONS, HALF, PATIENTS, figures, units_of
from training.initial_weights import recorded, vouched
from training.intervals import intervals, patients_behind
from training.loop import answering
from training.memory import keep_freed_memory
from training.network_graph import inferring
from training.operating import choose_threshold
from training.out_of_fold import calibrating_cells
from training.pack import Packed, open_pack
from training.parameters import EvaluateParameters
from training.robustness import camera_figures
from training.significance import compare_models
from training.splitting import check_tested
from training.strata import breakdown, size_matched_auroc

if TYPE_CHECKING:
    from torch import nn

NETWORK = "network"  # its name among the models that are compared
FLAT = ("temperature", "ece_before", "ece_after")  # of the calibration, in the summary
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What calibration patients decide: the temperature, the three-way decision, and the operating threshold.

    likeliest: the temperature by these patients alone."""

    temperature: float
    likeliest: float
    conformal: Conformal
    operating: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What `blastwatch train` left in a folder, as it was read.

    facts: what train.json says. weights_sha256: of the bytes that the network was filled from."""

    network: "nn.Module"
    facts: dict[str, Any]
    weights_sha256: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What an evaluation found, and of what: who tells of it reads no folder again, in which another training may stand
    by then.

    table: the answers to test cells, `PREDICTION_COLUMNS`. facts: of the training, with `initial_weights` as far as
    the split vouches for them."""

    metrics: dict[str, Any]
    table: pd.DataFrame
    network: "nn.Module"
    facts: dict[str, Any]
    packed: Packed


def run_evaluation(
    parameters: EvaluateParameters, *, cells: Path, split: Path, pack: Path, trained: Path, out: Path
) -> Measured:
    """Calibrate on calibration patients, measure on test patients, and write answers and tables into `out`.

    What an earlier evaluation left there is removed first. Whoever writes the report then writes the metrics that are
    returned (`training.evidence.write_metrics`).

    Raises:
        LeakFound: where the network was trained on another split, whose training patients may be tested here.
        DataError: where it was trained on other cells or another pack, no test cell has one of the labels, its answers
            are no numbers, or another training took its place meanwhile.
    """
    keep_freed_memory()
    manifest = read_cells(cells)
    rows = read_split(cells, split).sort_values("path", ignore_index=True)
    packed = open_pack(pack, manifest)
    found = read_trained(trained)
    network, facts, start = found.network, found.facts, vouched(recorded(found.facts), rows)
    check_trained_on(facts, trained, cells=manifest, split=split, packed=packed, pack=pack)
    check_tested(rows, trained=True)
    forget_evaluation(out)
    tested = rows[rows["side"] == "test"].reset_index(drop=True)
    infer = inferring(network, facts["parameters"], packed.preprocessing)
    answer = answering(infer, packed)
    held, held_logits, proven = calibrating_cells(answer, rows, trained, parameters.calibrate_on)
    fitted = fit(held, held_logits, parameters, proven=proven)
    logits = answer(tested["path"].tolist())
    table = prediction_table(tested, logits, fitted.temperature)
    statistics = cell_statistics(rows.loc[rows["side"].isin(("train", "test")), "path"].tolist(), packed)
    answers = baseline_answers(rows, statistics, seed=parameters.seed)
    baselines = {name: table.assign(probability=blast) for name, blast in answers.items()}
    measured = {name: _baseline(baseline, parameters) for name, baseline in baselines.items()}
    metrics = measure(table, fitted, parameters) | {
        # Which network this is the evidence of, and of which pixels: a package of others is refused.
        "run_id": facts.get("run_id"),
        "weights_sha256": found.weights_sha256,
        "pack_digest": packed.digest,
        "parameters": asdict(parameters),
        "synthetic": manifest.synthetic,
        "leaky": facts["leaky"],
        "initial_weights": start["source"],
        "size_baseline": measured["sizes"]["cells"],
        "baselines": measured,
        "comparisons": compare_models(
            {NETWORK: table, **baselines},
            NETWORK,
            resamples=parameters.resamples,
            permutations=parameters.permutations,
            seed=parameters.seed,
        ).to_dict("records"),
        "size_matched": {
            name: size_matched_auroc(answered, statistics, _draws(table, parameters))
            for name, answered in {NETWORK: table, **baselines}.items()
        },
        "cameras": camera_figures(infer, tested, manifest.root, packed.preprocessing, fitted.temperature, parameters),
        "breakdown": breakdown(
            table,
            tested.set_index("path")["source"],
            statistics,
            resamples=parameters.resamples,
            seed=parameters.seed,
        ),
    }
    _check_still(found, trained)
    out.mkdir(parents=True, exist_ok=True)
    table.to_parquet(out / PREDICTIONS, index=False)
    told = [baseline.assign(model=name) for name, baseline in baselines.items()]
    pd.concat(told, ignore_index=True).to_parquet(out / BASELINE_PREDICTIONS, index=False)
    limits = fitted.conformal.thresholds
    write_json(out / CALIBRATION, {"temperature": fitted.temperature, "hem": limits.hem, "all": limits.all})
    write_tables(table, out)
    facts = facts | {"initial_weights": start}
    return Measured(metrics=metrics, table=table, network=network, facts=facts, packed=packed)


def read_trained(trained: Path) -> Trained:
    """The network that `blastwatch train` left in a folder, and its facts.

    Raises:
        DataError: where they are missing, or the weights are not those of which train.json speaks.
    """
    facts, path = read_json(trained / TRAINED, made_by="blastwatch train"), trained / WEIGHTS
    network = build(facts["architecture"])
    if not path.is_file():
        raise DataError(f"{path} is missing. Make it with: blastwatch train")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    check_weights(facts, digest, trained)
    load_weights(network, path, data=content)
    return Trained(network=network, facts=facts, weights_sha256=digest)


def _check_still(found: Trained, trained: Path) -> None:
    """Refuse to tell what was measured where the folder holds another training by now, on whose answers to training
    patients it may have been calibrated."""
    facts, weights = read_json(trained / TRAINED, made_by="blastwatch train"), digest_of_weights(trained)
    if (facts, weights) != (found.facts, found.weights_sha256):
        raise DataError(
            f"Expected run {found.facts.get('run_id')} (weights {found.weights_sha256[:12]}) in {trained} while it is "
            f"measured, but by now it holds run {facts.get('run_id')} ({weights[:12]}). Measure again: blastwatch "
            "evaluate"
        )


def fit(held: pd.DataFrame, logits: NDArray[Any], parameters: EvaluateParameters, *, proven: bool = True) -> Fitted:
    """Fit what calibration patients decide.

    Args:
        held: calibration cells with label and group; logits: of the same cells, shape (n, classes).
        proven: whether the limits are those of the network that will answer, and no other fit's.
    """
    labels, groups = held["label"].map(CLASS_NAMES.index).to_numpy(np.int64), held["group"].astype(str).to_numpy()
    weights = patient_weights(labels, groups)
    temperature = steadied_temperature(logits, labels, groups)
    blast = probabilities(logits, temperature)[:, POSITIVE]
    conformal = fit_conformal(blast, labels, groups, error=parameters.error, method=parameters.conformal)
    return Fitted(
        temperature=temperature,
        likeliest=fit_temperature(logits, labels, weights),
        conformal=conformal if proven else conformal.unproven(),
        operating=choose_threshold(blast, labels, weights, rule=parameters.operating, wanted=parameters.sensitivity),
    )


def prediction_table(tested: pd.DataFrame, logits: NDArray[Any], temperature: float) -> pd.DataFrame:
    """One row a test cell, the columns `PREDICTION_COLUMNS`."""
    check_finite(logits, "are answered")
    table = tested[["path", "subject", "group", "label", "pixel_sha256"]].copy()
    table["logit_hem"], table["logit_all"] = logits[:, 1 - POSITIVE], logits[:, POSITIVE]
    table["probability"] = probabilities(logits, temperature)[:, POSITIVE]
    return table[list(PREDICTION_COLUMNS)]


def _draws(table: pd.DataFrame, parameters: EvaluateParameters) -> Floats:
    return draw_patients(table, resamples=parameters.resamples, seed=parameters.seed)


def measure(table: pd.DataFrame, fitted: Fitted, parameters: EvaluateParameters) -> dict[str, Any]:
    """What the network answered: cells, patients, per_patient, operating, conformal, calibration and counts.

    Args:
        table: test cells with the columns `PREDICTION_COLUMNS`.
    """
    draws = _draws(table, parameters)
    units = units_of(table, thresholds=fitted.conformal.thresholds)
    return {
        "cells": intervals(units, (*CELLS, *DECISIONS), draws),
        "patients": intervals(units, tuple(PATIENTS), draws),
        "per_patient": per_patient(table, fitted.conformal.thresholds),
        "operating": _operating(table, fitted, parameters, draws),
        "conformal": coverage_report(fitted.conformal, units, table, draws),
        "calibration": _calibration(table, fitted, draws) | {"on": parameters.calibrate_on},
        "counts": {
            "cells": len(table),
            "subjects": int(table["subject"].nunique()),
            "groups": int(table["group"].nunique()),
        },
    }


def per_patient(table: pd.DataFrame, limits: Thresholds) -> list[dict[str, Any]]:
    """One row a subject and label."""
    referred = (table["probability"] > limits.hem) & (table["probability"] < limits.all)
    right = (table["probability"] >= HALF) == (table["label"] == CLASS_NAMES[POSITIVE])
    cells = table.assign(right=right, referred=referred)
    return [
        {
            "subject": subject,
            "group": str(part["group"].iloc[0]),
            "label": label,
            "cells": len(part),
            "accuracy": float(part["right"].mean()),
            "mean_probability": float(part["probability"].mean()),
            "referred": float(part["referred"].mean()),
        }
        for (subject, label), part in cells.groupby(["subject", "label"], sort=True)
    ]


def _operating(table: pd.DataFrame, fitted: Fitted, parameters: EvaluateParameters, draws: Floats) -> dict[str, Any]:
    """The figures that move with the threshold, at the one that calibration patients chose."""
    units = units_of(table, threshold=fitted.operating)
    return {
        "threshold": fitted.operating,
        "rule": parameters.operating,
        "cells": intervals(units, AT_THRESHOLD, draws),
        "patients": intervals(units, [name for name in PATIENTS if name != "auroc_of_mean_probability"], draws),
    }


def ece_draws(table: pd.DataFrame, draws: Floats) -> dict[str, Floats]:
    """ECE before and after temperature scaling, and how much the scaling lowered it: on the cells themselves, then on
    each draw."""
    every = np.concatenate([np.ones((1, draws.shape[1])), draws])
    plain = probabilities(table[["logit_hem", "logit_all"]].to_numpy(), 1.0)[:, POSITIVE]
    before = figures(units_of(table.assign(probability=plain)), every, ["ece"])["ece"]
    after = figures(units_of(table), every, ["ece"])["ece"]
    return {"before": before, "after": after, "lowered_by": before - after}


def ece_intervals(found: dict[str, Floats], patients: int) -> dict[str, dict[str, float] | None]:
    """Of `ece_draws`, with intervals by patient."""
    return {
        name: as_interval(values, patients, within=DIFFERENCE if name == "lowered_by" else SHARE)
        for name, values in found.items()
    }


def _calibration(table: pd.DataFrame, fitted: Fitted, draws: Floats) -> dict[str, Any]:
    """ECE before and after temperature scaling on the same draws, and how much the scaling lowered it."""
    found = ece_draws(table, draws)
    return {
        "temperature": fitted.temperature,
        "likeliest": fitted.likeliest,
        "ece_before": float(found["before"][0]),
        "ece_after": float(found["after"][0]),
        "ece": ece_intervals(found, patients_behind(units_of(table), "ece")),
    }


def _baseline(table: pd.DataFrame, parameters: EvaluateParameters) -> dict[str, Any]:
    units, draws = units_of(table), _draws(table, parameters)
    return {"cells": intervals(units, tuple(CELLS), draws), "patients": intervals(units, tuple(PATIENTS), draws)}


def write_tables(table: pd.DataFrame, out: Path) -> None:
    """The tables that `dvc plots` draws."""
    from sklearn.metrics import roc_curve

    truth, blast = np.asarray(table["label"] == CLASS_NAMES[POSITIVE]), table["probability"].to_numpy()
    wrong, right, _ = roc_curve(truth, blast)
    pd.DataFrame({"false_positive_rate": wrong, "true_positive_rate": right}).to_csv(out / "roc.csv", index=False)
    said = np.where(blast >= HALF, *reversed(CLASS_NAMES))
    pd.DataFrame({"actual": table["label"], "predicted": said}).to_csv(out / "confusion.csv", index=False)
    pd.DataFrame(reliability(blast, truth)).to_csv(out / "reliability.csv", index=False)


def summary(metrics: dict[str, Any]) -> dict[str, float]:
    """Flat figures for `dvc metrics show`."""
    flat = {f"{part}.{name}": row["value"] for part in ("cells", "patients") for name, row in metrics[part].items()}
    flat |= {
        f"{name}_baseline.{figure}".replace("sizes_", "size_"): measured["cells"][figure]["value"]
        for name, measured in metrics["baselines"].items()
        for figure in ("weighted_f1", "auroc")
    }
    flat |= {
        f"conformal.coverage_by_patient_{name}": row["coverage_by_patient"]["value"]
        for name, row in metrics["conformal"]["classes"].items()
    }
    flat |= {f"operating.{name}": row["value"] for name, row in metrics["operating"]["cells"].items()}
    return flat | {f"calibration.{name}": metrics["calibration"][name] for name in FLAT}
