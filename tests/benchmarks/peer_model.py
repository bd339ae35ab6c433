"""What each peer of `tests.benchmarks.peers` serves: the same package, by the same engine, bytes to a probability.

It leaves out what this project's service does beside: image statistics, the out-of-distribution score, the record of
each prediction, request ids, limits.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from blastwatch.decision import POSITIVE, label, probabilities
from blastwatch.engines import open_engine
from blastwatch.images import crop_cell, decode
from blastwatch.package import open_package

PACKAGE, ENGINE = "PEER_PACKAGE", "PEER_ENGINE"
"""Variables by which the servers are told what to serve."""


class Reader:
    """Answers for image files, decoded on every core and inferred in one batch."""

    def __init__(self) -> None:
        self.package = open_package(Path(os.environ[PACKAGE]))
        self.engine = open_engine(self.package, os.environ[ENGINE])
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def __call__(self, files: Sequence[bytes]) -> list[dict[str, object]]:
        shape = self.package.info.preprocessing
        crops = np.stack(list(self._pool.map(lambda data: crop_cell(decode(data), shape), files)))
        blasts = probabilities(self.engine.infer(crops).logits, self.package.info.temperature)[:, POSITIVE]
        return [{"probability": float(blast), "label": label(float(blast))} for blast in blasts]
