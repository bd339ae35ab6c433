"""What a network makes of cells before its last layer, where only that one is fitted."""

import hashlib
import inspect
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, nn

from blastwatch import efficientnet_lite, images, openvino_engine, stage_pooling
from blastwatch.console import progress
from blastwatch.digests import json_digest
from blastwatch.images import Pixels, normalise
from blastwatch.network import head_of
from blastwatch.openvino_engine import OpenVinoEngine
from blastwatch.stage_pooling import Standardise
from monitoring import shifts
from training import export, network_graph, nuisances
from training.kept_embeddings import Floats, KeptRows
from training.loop import TrainingDiverged
from training.nuisances import CAMERAS, LOOKED_AT, Moves, under_cameras
from training.pack import Packed
from training.precision import Precision
from training.sampling import Side, of_each_patient

BATCH = 32
"""Cells of every batch, a short one filled up with black: sums may differ between sizes of a batch and do not within
one, so a cell has the same numbers whatever else is asked for."""
AT_ONCE = 8  # of these by OpenVINO, which is no slower by it and keeps the maps of all of them: 0.1 GB each at 448 px
PROGRAM = (images, stage_pooling, efficientnet_lite)  # what decides the numbers of a cell, beside the weights
BY_OPENVINO = (network_graph, export, openvino_engine)
CAMERA_PROGRAM = (shifts, nuisances)  # and those under other cameras


class Embedder:
    """Cells of a pack through all of a network but its last layer, and the standardising before that.

    By OpenVINO on a CPU in float32 (`training.network_graph`), else by torch.
    """

    def __init__(
        self,
        network: nn.Module,
        packed: Packed,
        precision: Precision,
        *,
        channels_last: bool = True,
        kept: Path | None = None,
    ) -> None:
        """Args:
        network: of `blastwatch.network.build`, on its device; it is asked, not changed.
        kept: folder in which the numbers are kept and looked for, None where each is computed.
        """
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        moved: Any = network.eval()
        self.network: nn.Module = moved.to(memory_format=self.format)
        self.packed, self.precision = packed, precision
        self.device = next(network.parameters()).device
        standardised = isinstance(getattr(network, "standardise", None), Standardise)
        self.last: tuple[str, ...] = (*(["standardise"] if standardised else []), head_of(network))
        self.kept = kept / self._key() if kept else None
        self._cells: KeptRows | None = None
        self._graph: OpenVinoEngine | None = None  # made when the first cell is looked at

    def cells(self, rows: NDArray[np.int64]) -> Floats:
        """What the last layer reads of cells, by their row in the pack, float32 (n, d).

        Raises:
            TrainingDiverged: where the network makes no numbers of a cell.
            DataError: where they are to be kept, and cannot be.
        """
        return self._standardised(self._raw(rows))

    @torch.inference_mode()
    def logits(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """What the network answers to cells, shape (n, classes): its last layer on `cells`. Raises as that does."""
        read = torch.from_numpy(self.cells(rows)).to(self.device)
        head = self.network.get_submodule(self.last[-1])
        return np.asarray(head(read).float().cpu().numpy())

    def moves(self, side: Side, *, seed: int) -> Moves:
        """How cameras move some cells of each patient of a side, in what the last layer reads.

        Which cells of a patient, and what is random in a camera, is drawn from the seed and the cell alone: whoever
        else is on the side changes at most how many cells of a patient are looked at. Raises as `cells` does.
        """
        drawn = np.random.default_rng(seed).permutation(len(self.packed.paths))
        turn = np.empty(len(drawn), dtype=np.int64)
        turn[drawn] = np.arange(len(drawn))
        places = of_each_patient(side.patients, LOOKED_AT, np.argsort(turn[side.rows]))
        rows = side.rows[places]

        def make(wanted: NDArray[np.int64]) -> Floats:
            told = progress(wanted.tolist(), total=len(wanted), what="Under other cameras")
            return np.stack([self._seen(row, seed) for row in told])

        folder = self.kept / f"cameras-{seed}-{_program(CAMERA_PROGRAM)[:16]}" if self.kept else None
        seen = KeptRows(folder).of(rows, make) if folder else make(rows)
        read = self._standardised(np.concatenate(list(seen))).reshape(len(seen), 1 + len(CAMERAS), -1)
        differences = np.concatenate(list(read[:, 1:] - read[:, :1]))
        return Moves(differences, np.repeat(side.patients[places], len(CAMERAS)))

    def _raw(self, rows: NDArray[np.int64]) -> Floats:
        if self.kept is None:
            return self._look(rows)
        if self._cells is None:
            self._cells = KeptRows(self.kept / "cells")
        return self._cells.of(rows, self._look)

    def _look(self, rows: NDArray[np.int64]) -> Floats:
        starts = progress(range(0, len(rows), BATCH), total=-(-len(rows) // BATCH), what="Embedding")
        return np.concatenate([self._filled_up(self.packed.crops[rows[start : start + BATCH]]) for start in starts])

    def _filled_up(self, crops: Pixels) -> Floats:
        lacking = BATCH - len(crops)
        black = np.zeros((lacking, *crops.shape[1:]), dtype=np.uint8)
        return self._embed(np.concatenate([crops, black]))[: len(crops)]

    def _seen(self, row: int, seed: int) -> Floats:
        """A cell as it is and under each of `CAMERAS`, (1 + cameras, d)."""
        random = np.random.default_rng((seed, row))
        return self._embed(under_cameras(np.asarray(self.packed.crops[row]), self.packed.preprocessing, random))

    @property
    def _by_openvino(self) -> bool:
        return self.device.type == "cpu" and self.precision.kind == "fp32"

    def _embed(self, crops: Pixels) -> Floats:
        """What comes before `last`, of crops, uint8 (n, s, s, 3)."""
        embeddings = self._embed_by_openvino(crops) if self._by_openvino else self._embed_by_torch(crops)
        if not np.isfinite(embeddings).all():
            raise TrainingDiverged("The network makes values that are no numbers of a cell. Set train.precision=fp32.")
        return embeddings

    def _embed_by_openvino(self, crops: Pixels) -> Floats:
        if self._graph is None:
            _check_numbers(self.network)
            self._graph = network_graph.network_graph(self.network, self.packed.preprocessing, standardised=False)
        pieces = (crops[start : start + AT_ONCE] for start in range(0, len(crops), AT_ONCE))
        return np.concatenate([self._graph.infer(piece).embeddings for piece in pieces])

    @torch.inference_mode()
    def _embed_by_torch(self, crops: Pixels) -> Floats:
        inputs = torch.from_numpy(normalise(crops, self.packed.preprocessing)).to(self.device)
        read: list[Tensor] = []

        def note(_module: nn.Module, given: tuple[Tensor, ...]) -> None:
            read.append(given[0])

        handle = self.network.get_submodule(self.last[0]).register_forward_pre_hook(note)
        try:
            with self.precision.autocast():
                self.network(inputs.contiguous(memory_format=self.format))
        finally:
            handle.remove()
        return np.asarray(read[0].float().cpu().numpy())

    @torch.inference_mode()
    def _standardised(self, raw: Floats) -> Floats:
        read = torch.from_numpy(raw).to(self.device)
        for name in self.last[:-1]:
            read = self.network.get_submodule(name)(read)
        return np.asarray(read.cpu().numpy())

    def _key(self) -> str:
        """Of all that the numbers depend on. Weights of `last` are none of it: they come after."""
        behind = tuple(f"{name}." for name in self.last)
        state = {
            name: hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
            for name, tensor in self.network.state_dict().items()
            if not name.startswith(behind)
        }
        cuda = self.device.type == "cuda"
        return json_digest(
            {
                "network": state,
                "kind": type(self.network).__name__,
                "pack": self.packed.digest,
                "precision": self.precision.kind,
                "channels_last": self.format == torch.channels_last,
                "device": torch.cuda.get_device_name(self.device) if cuda else torch.backends.cpu.get_cpu_capability(),
                "torch": [torch.__version__, torchvision.__version__],
                "openvino": version("openvino") if self._by_openvino else None,
                "program": _program((*PROGRAM, *(BY_OPENVINO if self._by_openvino else ()))),
                "batch": BATCH,
            }
        )


def _check_numbers(network: nn.Module) -> None:
    """OpenVINO takes what is no number for 0 in places, and the network would seem to answer."""
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise TrainingDiverged(
                f"The network's {name} holds what is no number. Begin with other weights: train.weights."
            )


def _program(modules: Sequence[Any]) -> str:
    """Digest of the modules' text: other code makes other numbers."""
    return json_digest([inspect.getsource(module) for module in modules])
