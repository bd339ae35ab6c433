"""Is a candidate worse than the champion on the same cells?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from blastwatch.decision import POSITIVE, label, probabilities
from blastwatch.engines import infer_all, open_engine
from blastwatch.errors import DataError
from blastwatch.images import crop_cell, decode, normalise
from blastwatch.package import Package

if TYPE_CHECKING:
    from blastwatch.manifest import Cells

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Weighted F1 of two versions over the same test cells, and how many of them the champion read again."""

    cells: int
    candidate: float
    champion: float
    read_again: int

    @property
    def difference(self) -> float:
        """Above zero where the candidate is better."""
        return self.candidate - self.champion


def compare(candidate: Package, champion: Package, data: "Cells | None") -> Comparison:
    """Weighted F1 of both on the candidate's test cells.

    The champion's stored answers are used where it was tested on the same pixels; the other cells it reads again.

    Raises:
        DataError: where cells must be read again and `data` does not hold them.
    """
    tested = candidate.predictions()
    known = champion.predictions().drop_duplicates("pixel_sha256").set_index("pixel_sha256")["probability"]
    theirs = tested["pixel_sha256"].map(known)
    unread = tested.loc[theirs.isna(), "pixel_sha256"]
    if len(unread):
        theirs = theirs.fillna(tested["pixel_sha256"].map(read_again(champion, data, set(unread))))
    truth = tested["label"].tolist()
    return Comparison(
        cells=len(tested),
        candidate=weighted_f1(truth, [label(value) for value in tested["probability"]]),
        champion=weighted_f1(truth, [label(value) for value in theirs]),
        read_again=len(unread),
    )


def weighted_f1(truth: list[str], answers: list[str]) -> float:
    """F1 of each class weighted by its number of cells (scikit-learn's `average="weighted"`)."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, answers, average="weighted", zero_division=0.0))


def read_again(package: Package, data: "Cells | None", wanted: set[str]) -> pd.Series:
    """Calibrated probabilities of a blast for cells of a data set, by pixel digest.

    Raises:
        DataError: where a wanted cell is not in the data set.
    """
    if data is None:
        raise DataError(
            f"The champion was never tested on {len(wanted)} of the candidate's test cells. "
            "Name the imported data set that holds them: --cells DIR"
        )
    rows = data.rows[data.rows["pixel_sha256"].isin(wanted)].drop_duplicates("pixel_sha256")
    if len(rows) < len(wanted):
        raise DataError(
            f"Expected {len(wanted)} test cells of the candidate in {data.folder} but found {len(rows)}. "
            "Name the imported data set that the candidate was tested on: --cells DIR"
        )
    engine = open_engine(package, "openvino-f32")
    shape = package.info.preprocessing
    digests, values = rows["pixel_sha256"].tolist(), []
    paths = [data.root / Path(path) for path in rows["path"]]
    for start in range(0, len(paths), BATCH):
        crops = np.stack([crop_cell(decode(path.read_bytes()), shape) for path in paths[start : start + BATCH]])
        logits = infer_all(engine, normalise(crops, shape)).logits
        values.append(probabilities(logits, package.info.temperature)[:, POSITIVE])
    return pd.Series(np.concatenate(values), index=digests)
