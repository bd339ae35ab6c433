"""Model packages made by hand, for tests that need a sealed package but no trained network."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.decision import Thresholds
from blastwatch.golden import write_golden
from blastwatch.images import Preprocessing
from blastwatch.ood import OodScore
from blastwatch.package import (
    CARD,
    DRIFT,
    METRICS,
    MODEL,
    ONNX,
    ONNX_INT8,
    OOD,
    PREDICTIONS,
    PROJECTION,
    REFERENCE,
    REPORT,
    TRAINED,
    WEIGHTS,
    ModelInfo,
    Projection,
    seal,
)
from blastwatch.seen import SEEN_SIDES, write_seen
from blastwatch.stored_answers import over_cells

PATIENTS = 14
"""Test patients: those of odd number have blasts, the others normal cells."""


def make_package(
    folder: Path,
    *,
    run_id: str = "run",
    right: float = 0.9,
    cells: int = 100,
    leaky: bool = False,
    trained: Sequence[str] = ("t0", "t1"),
    seen: Sequence[str] = (),
    card: str = "# Made by hand for a test\n",
    weights: bytes = b"no weights",
    seed: int = 0,
) -> Path:
    """Seal a package of a ResNet-18 at 32 px; no network is in it.

    Args:
        right: share of the test cells that its stored answers get right.
        leaky: whether its split parted images and not patients.
        trained: subjects, each a group of its own, that it was trained on; the test patients are "0" to "13".
        seen: digests of pixels of images that it learned from, beside one of each side.
        weights: what lies where the weights belong.
    """
    (folder / "evidence").mkdir(parents=True)
    random = np.random.default_rng(seed)
    info = ModelInfo(
        architecture="resnet18",
        preprocessing=Preprocessing(crop=320, size=32),
        temperature=1.0,
        thresholds=Thresholds(hem=0.3, all=0.7),
        synthetic=True,
        data_digest="d" * 64,
        split_digest="s" * 64,
        run_id=run_id,
        git_commit="",
        lock_digest="",
        created="2026-01-01T00:00:00+00:00",
    )
    (folder / MODEL).write_text(info.to_json())
    (folder / WEIGHTS).write_bytes(weights)
    (folder / ONNX).write_bytes(b"no graph")
    (folder / ONNX_INT8).write_bytes(b"no graph")
    # No engine can read this graph, so nothing ever compares these answers.
    crops = random.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    write_golden(folder, crops, random.normal(size=(2, 2)).astype(np.float32))
    axes = random.normal(size=(32, 512)).astype(np.float32)
    write_projection(folder, axes)
    known = pd.DataFrame({"subject": ["v"], "group": ["v"], "label": ["all"], "probability": [0.5]})
    known.to_parquet(folder / REFERENCE)
    known.iloc[:0].to_parquet(folder / TRAINED)
    (folder / DRIFT).write_text("{}")
    images = [(side, f"{1000 + place:064x}") for place, side in enumerate(SEEN_SIDES)]
    images += [("train", digest) for digest in seen]
    write_seen(folder, pd.DataFrame(images, columns=["side", "pixel_sha256"]))
    truth = np.arange(cells) % 2
    answers = np.where(np.arange(cells) < right * cells, truth, 1 - truth)
    probability = np.where(answers == 1, 0.9, 0.1)
    pd.DataFrame(
        {
            "path": [f"{n}.bmp" for n in range(cells)],
            "subject": [str(n % PATIENTS) for n in range(cells)],
            "group": [str(n % PATIENTS) for n in range(cells)],
            "label": np.where(truth == 1, "all", "hem"),
            "pixel_sha256": [f"{n:064d}" for n in range(cells)],
            "logit_hem": np.log1p(-probability),
            "logit_all": np.log(probability),
            "probability": probability,
        }
    ).to_parquet(folder / PREDICTIONS)
    write_evidence(folder, info, right=right, leaky=leaky, trained=trained)
    agree(folder)
    (folder / CARD).write_text(card)
    (folder / REPORT).write_text("<!DOCTYPE html><title>Made by hand for a test</title>")
    seal(folder)
    return folder


def write_projection(folder: Path, axes: np.ndarray) -> None:
    """A projection on axes (k, d), and an out-of-distribution score that lets everything pass."""
    count, width = axes.shape
    projection = Projection(mean=np.zeros(width, np.float32), components=axes)
    projection.save(folder / PROJECTION)
    mean, whitener = np.zeros(count + 1), np.eye(count + 1)
    OodScore(projection=projection, floor=1.0, mean=mean, whitener=whitener, limit=1e9).save(folder / OOD)


def agree(folder: Path) -> None:
    """Have split and metrics of a package that is not sealed yet say of its stored answers what they are."""
    rows = pd.read_parquet(folder / PREDICTIONS)
    rows["right"] = (rows["probability"] >= 0.5) == (rows["label"] == "all")
    metrics, split = folder / METRICS, folder / "evidence" / "split.json"
    said = json.loads(metrics.read_text())
    test = {}
    for label, figure in (("all", "sensitivity_over_ill"), ("hem", "specificity_over_healthy")):
        part = rows[rows["label"] == label]
        said["patients"][figure]["value"] = float(part.groupby("group")["right"].mean().mean())
        counts = {"subjects": part["subject"].nunique(), "groups": part["group"].nunique()}
        test[label] = {"cells": len(part), **counts}
    over = over_cells(rows)
    said["calibration"]["ece_after"] = over.pop("ece_after")
    said["cells"] |= {
        name: said["cells"][name] | {"value": value} for name, value in over.items() if name in said["cells"]
    }
    metrics.write_text(json.dumps(said))
    split.write_text(json.dumps(json.loads(split.read_text()) | {"sides": {"test": test}}))


def write_evidence(folder: Path, info: ModelInfo, *, right: float, leaky: bool, trained: Sequence[str]) -> None:
    """The JSON files under `evidence/`, as far as the gates read them."""
    figure = {"value": right, "low": right - 0.05, "high": min(1.0, right + 0.05)}
    patients = {"sensitivity_over_ill": dict(figure), "specificity_over_healthy": dict(figure)}
    metrics = {
        "cells": {"weighted_f1": figure},
        "patients": patients,
        "per_patient": [],
        "calibration": {"on": "calibration", "ece_before": 0.1, "ece_after": 0.05, "temperature": info.temperature},
    }
    groups = {"train": [*trained], "validation": ["v"], "calibration": ["c"], "test": list(map(str, range(PATIENTS)))}
    split = {
        "digest": info.split_digest, "data_digest": info.data_digest, "leaky": leaky,
        "by": "image" if leaky else "group",
        "crossing": int(leaky), "parted_groups": ["t0"] if leaky else [], "groups": groups,
    }  # fmt: skip
    names = sorted({name for side in groups.values() for name in side})
    audit = {"findings": [], "groups": [[name] for name in names], "data_digest": info.data_digest}
    data = {"digest": info.data_digest, "initial_weights": {"source": "scratch"}}
    (folder / METRICS).write_text(json.dumps(metrics))
    for name, value in {"split": split, "audit": audit, "data": data, "params": {}}.items():
        (folder / "evidence" / f"{name}.json").write_text(json.dumps(value))
