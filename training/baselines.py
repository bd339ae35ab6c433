"""What can be said of a cell without a network, from the image statistics that monitoring computes as well: the bars
that a network must pass to have learnt anything."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.console import progress
from blastwatch.decision import CLASS_NAMES, POSITIVE
from monitoring.statistics import STATISTICS, image_statistics
from training.calibration import patient_weights
from training.pack import Packed

SIZES = ("cell_area", "cell_height", "cell_width")


def cell_statistics(paths: list[str], packed: Packed) -> pd.DataFrame:
    """The image statistics of packed cells: columns `STATISTICS`, rows by path."""
    rows = progress(packed.rows_of(paths), total=len(paths), what="Measuring")
    found = [image_statistics(packed.crops[row], packed.preprocessing) for row in rows]
    return pd.DataFrame(found, index=paths, columns=list(STATISTICS))


def baseline_answers(rows: pd.DataFrame, statistics: pd.DataFrame, *, seed: int) -> dict[str, NDArray[np.float64]]:
    """Fit every baseline on train patients, each weighing the same within its class, and ask it of the test cells.

    Args:
        rows: of the split, with path, label, group and side. statistics: of the train and test cells at least.

    Returns:
        Probability of a blast by the name of the baseline, in the order of the test rows.
    """
    trained, tested = (rows[rows["side"] == side] for side in ("train", "test"))
    labels = trained["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
    weights = patient_weights(labels, trained["group"].to_numpy()) * len(labels)
    found = {}
    for name, (columns, fit) in BASELINES.items():
        known, asked = (statistics.loc[part["path"], list(columns)].to_numpy() for part in (trained, tested))
        model = fit(known, labels, weights, seed)
        found[name] = np.asarray(model.predict_proba(asked)[:, POSITIVE], dtype=np.float64)
    return found


def _logistic(known: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any], _seed: int) -> Any:
    """Logistic regression on standardised numbers."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression())
    return model.fit(known, labels, logisticregression__sample_weight=weights)


def _boosted(known: NDArray[Any], labels: NDArray[Any], weights: NDArray[Any], seed: int) -> Any:
    """Gradient-boosted trees (Friedman 2001, doi:10.1214/aos/1013203451), untuned: small trees, many of them. They
    never stop early, since that would keep cells and not patients aside."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=200, max_leaf_nodes=15, l2_regularization=1.0, early_stopping=False,
        random_state=seed,
    )  # fmt: skip
    return model.fit(known, labels, sample_weight=weights)


Fit = Callable[[NDArray[Any], NDArray[Any], NDArray[Any], int], Any]
BASELINES: dict[str, tuple[tuple[str, ...], Fit]] = {"sizes": (SIZES, _logistic), "boosted": (STATISTICS, _boosted)}
"""By name: the statistics it sees and how it is fitted."""
