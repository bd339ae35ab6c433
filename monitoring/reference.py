"""The reference data of a model version: what its cells looked like when it was made, one row a cell."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError
from monitoring.calibration import calibrate
from monitoring.quality import quality_limits
from monitoring.statistics import STATISTICS
from monitoring.store import EMBEDDING, EMBEDDING_SIZE

__all__ = [
    "EMBEDDING",
    "EMBEDDING_SIZE",
    "Answers",
    "build_reference",
    "calibrate",
    "quality_limits",
    "reference_columns",
]

Answers = tuple[NDArray[np.floating], NDArray[np.floating]]
"""Calibrated probability of a blast, shape (n,), and projected embedding, shape (n, 32)."""


def reference_columns() -> tuple[str, ...]:
    """Columns of `reference.parquet` and `trained.parquet`, in order: subject, group, label (the truth), probability,
    statistics, e00..e31.

    `probability` is the model's calibrated probability of a blast; the embedding is projected. Both are NaN in a row of
    a cell that the model learned from.
    """
    return ("subject", "group", "label", "probability", *STATISTICS, *EMBEDDING)


def build_reference(
    cells: pd.DataFrame,
    *,
    statistics: Sequence[Mapping[str, float]],
    answers: Answers | None,
) -> pd.DataFrame:
    """Put rows of the reference together.

    Args:
        cells: the manifest's rows with subject, group and label, n of them.
        statistics: n results of `image_statistics`.
        answers: by what had not seen these patients; None for patients that were trained on.

    Returns:
        The columns of `reference_columns`, n rows.

    Raises:
        DataError: where the parts do not fit or a value is not finite.
    """
    count = len(cells)
    nothing = np.full(count, np.nan), np.full((count, EMBEDDING_SIZE), np.nan)
    probabilities, embeddings = answers or nothing
    shapes = (np.shape(probabilities), len(statistics), np.shape(embeddings))
    if shapes != ((count,), count, (count, EMBEDDING_SIZE)):
        raise DataError(
            f"Expected probabilities ({count},), {count} statistics and embeddings ({count}, {EMBEDDING_SIZE}) for "
            f"{count} cells but got {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    unknown = sorted(set(cells["label"]) - set(CLASS_NAMES))
    if unknown:
        raise DataError(f"Expected the labels {', '.join(CLASS_NAMES)} but got {', '.join(map(str, unknown))}.")
    frame = cells[["subject", "group", "label"]].astype(str).reset_index(drop=True)
    frame["probability"] = np.asarray(probabilities, dtype=np.float64)
    for name in STATISTICS:
        frame[name] = np.array([row[name] for row in statistics], dtype=np.float64)
    frame[list(EMBEDDING)] = np.asarray(embeddings, dtype=np.float32)
    numbers = frame[list(STATISTICS if answers is None else ("probability", *STATISTICS, *EMBEDDING))]
    finite = np.isfinite(numbers.to_numpy(dtype=np.float64)).all(axis=0)
    if not finite.all():
        raise DataError(f"Expected finite reference values but {', '.join(numbers.columns[~finite])} has others.")
    return frame[list(reference_columns())]
