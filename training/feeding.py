"""From the pack to the network's input while training: the next batch is read while the device computes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from blastwatch.images import Pixels
from training.augmentation import Draws, augment
from training.pack import Packed


class Feeder:
    """Reads cells of a pack and makes augmented, normalised inputs of them on a device."""

    def __init__(self, packed: Packed, device: torch.device, *, channels_last: bool) -> None:
        self.packed, self.device = packed, device
        self.memory = torch.channels_last if channels_last else torch.contiguous_format
        self.mean, self.std = (
            torch.tensor(values, device=device)[:, None, None]
            for values in (packed.preprocessing.mean, packed.preprocessing.std)
        )

    def batches(self, rows: NDArray[np.int64], start: int = 0) -> Iterator[tuple[int, Pixels]]:
        """Number of each step from `start` on and its crops, uint8 (n, s, s, 3).

        Args:
            rows: of the pack, shape (steps, n).
        """

        def read(step: int) -> Pixels:
            return np.asarray(self.packed.crops[rows[step]])

        with ThreadPoolExecutor(1) as reader:
            coming = [reader.submit(read, step) for step in range(start, min(start + 1, len(rows)))]
            for step in range(start, len(rows)):
                crops = coming.pop().result()
                if step + 1 < len(rows):
                    coming.append(reader.submit(read, step + 1))
                yield step, crops

    def inputs(self, crops: Pixels, draws: Draws, size: int) -> Tensor:
        """Inputs as drawn, float32, shape (n, 3, size, size), in the range of `blastwatch.images.normalise`.

        Args:
            crops: uint8, shape (n, s, s, 3); draws: of n cells, on the CPU.
        """
        cells = torch.from_numpy(crops)
        if self.device.type == "cuda":
            cells = cells.pin_memory()
        scaled = cells.to(self.device, non_blocking=True).permute(0, 3, 1, 2).float().div_(255)
        if size != scaled.shape[-1]:
            scaled = functional.interpolate(scaled, size=(size, size), mode="bilinear", antialias=True)
        changed = augment(scaled.contiguous(), draws)
        return changed.sub_(self.mean).div_(self.std).contiguous(memory_format=self.memory)
