"""What an inference engine takes and gives, whichever it is; `blastwatch.engines` opens one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blastwatch.images import Pixels, Preprocessing

Inputs = NDArray[np.float32]
"""Normalised cells, shape (n, 3, size, size)."""


@dataclass(frozen=True)
class Outputs:
    """logits: float32 (n, 2); embeddings: float32 (n, d), what the last layer reads."""

    logits: NDArray[np.float32]
    embeddings: NDArray[np.float32]


class Engine(Protocol):
    """Runs one network.

    `infer` takes crops, uint8 (n, size, size, 3), as `blastwatch.images.crop_cell` makes them, uses everything the
    engine may use, and may be called from several threads, but is made for one batch at a time. `infer_beside` computes
    the same on its share: up to `abreast` calls of it at a time are together faster than one after the other.
    `infer_inputs` is `infer` for who has normalised already: what `blastwatch.images.normalise` makes of the same crops
    is answered with the same bits. `rest` gives back memory that the next batch takes anew, in some milliseconds, for
    an engine that nobody has asked for a while. `on_cores` says whether it computes on the cores that everything else
    runs on, and not on a GPU.
    """

    name: str
    abreast: int
    on_cores: bool

    def infer(self, crops: Pixels) -> Outputs: ...

    def infer_beside(self, crops: Pixels) -> Outputs: ...

    def infer_inputs(self, inputs: Inputs) -> Outputs: ...

    def rest(self) -> None: ...


def checked_crops(crops: Pixels, preprocessing: Preprocessing) -> Pixels:
    """The crops as they came. Raises `ValueError` where an engine would read something else than crops from them."""
    size = preprocessing.size
    if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3) or not len(crops):
        raise ValueError(
            f"Expected uint8 of shape (n, {size}, {size}, 3), one cell at least, but got {crops.dtype} of shape "
            f"{crops.shape}"
        )
    return crops


def in_batches(
    infer: Callable[[NDArray[Any]], Outputs], cells: NDArray[Any], *, batch_size: int = 32
) -> Outputs:  # fmt: skip
    """Run many cells in batches and join the results.

    Args:
        infer: of an engine: `infer` for crops, `infer_inputs` for what is normalised already.
    """
    parts = [infer(cells[start : start + batch_size]) for start in range(0, len(cells), batch_size)]
    if len(parts) == 1:
        return parts[0]
    return Outputs(
        logits=np.concatenate([part.logits for part in parts]),
        embeddings=np.concatenate([part.embeddings for part in parts]),
    )
