"""Loader of the MLflow model that carries a model package: `mlflow.pyfunc.load_model("models:/blastwatch@champion")`.

MLflow calls `_load_pyfunc` with the package's folder. Nothing is unpickled: the network is rebuilt from the package.
That MLflow imports this module and no other is said by a file that no digest covers: `blastwatch registry verify` looks
at it (`blastwatch.logged_model`), `load_model` does not.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import POSITIVE, decide, label, probabilities
from blastwatch.engines import open_engine
from blastwatch.inference import in_batches
from blastwatch.package import Package, open_package


class CellClassifier:
    """Answers for cells that went through `blastwatch.images`."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self._engine = open_engine(package)

    def predict(self, model_input: NDArray[np.float32], params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer for normalised cells.

        Args:
            model_input: float32, shape (n, 3, size, size), as `blastwatch.images.normalise` makes it.
            params: none are known.

        Returns:
            One row a cell: probability (of a blast), label, decision.
        """
        if params:
            raise ValueError(f"Expected no params but got {', '.join(params)}")
        info = self.package.info
        outputs = in_batches(self._engine.infer_inputs, np.asarray(model_input, dtype=np.float32))
        blast = probabilities(outputs.logits, info.temperature)[:, POSITIVE]
        return pd.DataFrame(
            {
                "probability": blast,
                "label": [label(value) for value in blast],
                "decision": [decide(value, info.thresholds) for value in blast],
            }
        )


def _load_pyfunc(data_path: str) -> CellClassifier:
    return CellClassifier(open_package(Path(data_path)))
