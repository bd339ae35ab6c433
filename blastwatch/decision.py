"""From logits to calibrated probabilities and to the three-way decision. Pure functions over numpy arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLASS_NAMES = ("hem", "all")
"""Order of the network's outputs: normal cell, leukemic blast. The blast is the positive class."""

POSITIVE = CLASS_NAMES.index("all")
REFER = "refer"
DECISIONS = ("all", "hem", REFER)

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Calibrated probabilities of a blast at which a cell is decided.

    hem: at or below it the cell is called normal; all: at or above it the cell is called a blast; between the two
    it is referred to a person. 0 <= hem <= all <= 1.
    """

    hem: float
    all: float

    def __post_init__(self) -> None:
        if not 0 <= self.hem <= self.all <= 1:
            raise ValueError(f"Expected 0 <= hem <= all <= 1 but got hem={self.hem}, all={self.all}")


def probabilities(logits: Floats, temperature: float) -> NDArray[np.float64]:
    """Softmax of logits over temperature (Guo et al. 2017, arXiv:1706.04599).

    Args:
        logits: shape (n, classes).
        temperature: above 0; 1 leaves the probabilities as they were.

    Returns:
        float64, shape (n, classes), rows sum to 1.
    """
    if temperature <= 0:
        raise ValueError(f"Expected `temperature` to be positive but got {temperature}")
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = scaled - scaled.max(axis=-1, keepdims=True)
    exponential = np.exp(scaled)
    return np.asarray(exponential / exponential.sum(axis=-1, keepdims=True))


def label(probability: float) -> str:
    """The more probable class: `all` from one half upwards."""
    return "all" if probability >= 0.5 else "hem"


def decide(probability: float, thresholds: Thresholds, *, concerns: bool = False) -> str:
    """`all`, `hem` or `refer`; an image that raised concerns about its quality or kind is always referred."""
    if concerns:
        return REFER
    if probability >= thresholds.all:
        return "all"
    if probability <= thresholds.hem:
        return "hem"
    return REFER
