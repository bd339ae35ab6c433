"""torch as an engine, one operation after the other: the reference, and what a GPU without graphs computes with."""

import threading
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, ClassVar

import numpy as np
import torch

from blastwatch.images import Pixels, normalise
from blastwatch.inference import Inputs, Outputs, checked_crops
from blastwatch.network import build, forward_with_embedding, load_weights
from blastwatch.package import WEIGHTS, Package


class TorchEngine:
    """torch eager in channels_last, rebuilt from the weights on whatever device is at hand."""

    abreast = 1
    _whole: ClassVar[threading.Lock] = threading.Lock()  # of the process, as is what it guards

    def __init__(self, package: Package, name: str) -> None:
        self.name = name
        self._preprocessing = package.info.preprocessing
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.on_cores = self._device == "cpu"
        self._dtype = torch.bfloat16 if name == "torch-bf16" else None
        network = build(package.info.architecture, len(package.info.class_names))
        load_weights(network, package.folder / WEIGHTS)
        moved: Any = network.eval().to(self._device)
        self._network = moved.to(memory_format=torch.channels_last)

    def infer(self, crops: Pixels) -> Outputs:
        return self.infer_inputs(normalise(checked_crops(crops, self._preprocessing), self._preprocessing))

    def infer_beside(self, crops: Pixels) -> Outputs:
        return self.infer(crops)

    def infer_inputs(self, inputs: Inputs) -> Outputs:
        cells = torch.from_numpy(np.ascontiguousarray(inputs)).to(self._device)
        cells = cells.contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None)
        with torch.inference_mode(), autocast, self._whole_float32():
            logits, embeddings = forward_with_embedding(self._network, cells)
        return Outputs(logits=logits.float().cpu().numpy(), embeddings=embeddings.float().cpu().numpy())

    def rest(self) -> None:
        """As `blastwatch.inference.Engine.rest`: nothing is kept here for the next batch."""

    def _whole_float32(self) -> AbstractContextManager[object]:
        """On a GPU torch rounds what it convolves to the 10 bits of TF32 unless it is told not to, and the reference
        must not be rounded. What it is told holds for the process, so one batch of all such engines is computed at
        a time: else the one that ends first would tell torch to round what another still computes."""
        if self._device == "cpu" or self._dtype is not None:
            return nullcontext()
        entered = ExitStack()
        entered.enter_context(self._whole)
        entered.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        return entered
