"""Model packages made by hand, for tests that need a sealed package but no trained network."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.decision import Thresholds
from blastwatch.images import Preprocessing
from blastwatch.network import build, save_weights
from blastwatch.package import (
    CARD,
    DRIFT,
    METRICS,
    MODEL,
    ONNX,
    ONNX_INT8,
    PREDICTIONS,
    PROJECTION,
    REFERENCE,
    WEIGHTS,
    ModelInfo,
    Projection,
    seal,
)


def make_package(
    folder: Path, *, run_id: str = "run", right: float = 0.9, cells: int = 100, leaky: bool = False, seed: int = 0
) -> Path:
    """Seal a package around an untrained ResNet-18 at 32 px.

    Args:
        right: share of the test cells that its stored answers get right.
        leaky: whether its split parted images and not patients.
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
    save_weights(build("resnet18"), folder / WEIGHTS)
    (folder / ONNX).write_bytes(b"no graph")
    (folder / ONNX_INT8).write_bytes(b"no graph")
    axes = random.normal(size=(32, 512)).astype(np.float32)
    Projection(mean=np.zeros(512, np.float32), components=axes).save(folder / PROJECTION)
    pd.DataFrame({"subject": ["1"], "probability": [0.5]}).to_parquet(folder / REFERENCE)
    (folder / DRIFT).write_text("{}")
    truth = np.arange(cells) % 2
    answers = np.where(np.arange(cells) < right * cells, truth, 1 - truth)
    probability = np.where(answers == 1, 0.9, 0.1)
    pd.DataFrame(
        {
            "path": [f"{n}.bmp" for n in range(cells)],
            "subject": [str(n % 7) for n in range(cells)],
            "group": [str(n % 7) for n in range(cells)],
            "label": np.where(truth == 1, "all", "hem"),
            "pixel_sha256": [f"{n:064d}" for n in range(cells)],
            "logit_hem": np.log1p(-probability),
            "logit_all": np.log(probability),
            "probability": probability,
        }
    ).to_parquet(folder / PREDICTIONS)
    figure = {"value": right, "low": right - 0.05, "high": min(1.0, right + 0.05)}
    (folder / METRICS).write_text(json.dumps({"cells": {"weighted_f1": figure}, "patients": {}, "per_patient": []}))
    split = {"leaky": leaky, "by": "image" if leaky else "group"}
    for name, value in {"split": split, "audit": {}, "data": {}, "params": {}}.items():
        (folder / "evidence" / f"{name}.json").write_text(json.dumps(value))
    (folder / CARD).write_text("# Made by hand for a test\n")
    seal(folder)
    return folder
