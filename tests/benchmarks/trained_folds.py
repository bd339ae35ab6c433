"""What the trainings of a cross-validation say of cells that each of them never saw, for benchmarks that show them
these cells in other ways than a cross-validation does."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from blastwatch.images import Preprocessing
from blastwatch.inference import Engine
from blastwatch.manifest import Cells, read_json
from blastwatch.openvino_engine import OpenVinoEngine
from training.crossvalidation import FIGURES
from training.evaluation import read_trained
from training.export import export_onnx


def tested_cells(crossvalidation: Path, manifest: Cells, most: int) -> pd.DataFrame:
    """At most so many cells of each patient with path, group, label and the fold that tests them."""
    folds = sorted((crossvalidation / "folds").iterdir(), key=lambda folder: int(folder.name))
    splits = [pd.read_parquet(folder / "split.parquet").assign(fold=int(folder.name)) for folder in folds]
    tested = pd.concat([split[split["side"] == "test"] for split in splits])
    drawn = tested.sample(frac=1, random_state=1).groupby("group").head(most)[["path", "group", "fold"]]
    return drawn.merge(manifest.rows[["path", "label"]], on="path").sort_values("path", ignore_index=True)


def seen_by(crossvalidation: Path) -> Preprocessing:
    """What its networks see of an image."""
    facts = read_json(crossvalidation / FIGURES, made_by="blastwatch crossvalidate")
    return Preprocessing(**facts["parameters"]["image"])


def by_fold(crossvalidation: Path, recipe: str, cells: pd.DataFrame) -> Iterator[tuple[int, pd.DataFrame, Engine]]:
    """Each fold with the cells that it tests and the training that answers them, in float32."""
    seen = seen_by(crossvalidation)
    for fold, part in cells.groupby("fold"):
        network = read_trained(crossvalidation / "recipes" / recipe / str(fold) / "train").network
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "network.onnx"
            export_onnx(network, seen.size, graph)
            yield int(fold), part, OpenVinoEngine(graph, seen, "openvino-f32", threads=len(os.sched_getaffinity(0)))
