"""Inference engines: one interface over OpenVINO and torch, each opened from a verified model package.

The float32 graph is the reference. On a CPU a faster engine is chosen by name only; how often it decides otherwise
stands in the package's `precision`. The engines of OpenVINO are `blastwatch.openvino_engine`, those of CUDA graphs
`blastwatch.graph_engine`.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blastwatch.errors import PackageError, UsageError
from blastwatch.images import Pixels, Preprocessing, normalise
from blastwatch.package import ONNX, ONNX_INT8, WEIGHTS, Package
from blastwatch.settings import ENGINES

Inputs = NDArray[np.float32]
"""Normalised cells, shape (n, 3, size, size)."""

REFERENCE_ENGINES = ("openvino-f32", "torch-f32")
"""Engines that compute in float32: their answers are the version's own."""

AUTO_ON_GPU = ("torch-f16-graphs", "torch-bf16")
"""What `auto` is on a GPU: the first that the package was compared with, else the last. In graphs float16 is as fast as
bfloat16 and rounds eight times finer (docs/performance.md)."""


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
    is answered with the same bits. `on_cores` says whether it computes on the cores that everything else runs on, and
    not on a GPU.
    """

    name: str
    abreast: int
    on_cores: bool

    def infer(self, crops: Pixels) -> Outputs: ...

    def infer_beside(self, crops: Pixels) -> Outputs: ...

    def infer_inputs(self, inputs: Inputs) -> Outputs: ...


def checked_crops(crops: Pixels, preprocessing: Preprocessing) -> Pixels:
    """The crops as they came. Raises `ValueError` where an engine would read something else than crops from them."""
    size = preprocessing.size
    if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3) or not len(crops):
        raise ValueError(
            f"Expected uint8 of shape (n, {size}, {size}, 3), one cell at least, but got {crops.dtype} of shape "
            f"{crops.shape}"
        )
    return crops


class TorchEngine:
    """torch eager in channels_last, rebuilt from the weights on whatever device is at hand."""

    abreast = 1

    def __init__(self, package: Package, name: str) -> None:
        import torch

        from blastwatch.network import build, load_weights

        self.name = name
        self._preprocessing = package.info.preprocessing
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self.on_cores = self._device == "cpu"
        self._dtype = torch.bfloat16 if name == "torch-bf16" else None
        network = build(package.info.architecture, len(package.info.class_names))
        load_weights(network, package.folder / WEIGHTS)
        moved: Any = network.eval().to(self._device)
        self._network = moved.to(memory_format=torch.channels_last)
        self._lock = threading.Lock()

    def infer(self, crops: Pixels) -> Outputs:
        return self.infer_inputs(normalise(checked_crops(crops, self._preprocessing), self._preprocessing))

    def infer_beside(self, crops: Pixels) -> Outputs:
        return self.infer(crops)

    def infer_inputs(self, inputs: Inputs) -> Outputs:
        import torch

        from blastwatch.network import forward_with_embedding

        cells = torch.from_numpy(np.ascontiguousarray(inputs)).to(self._device)
        cells = cells.contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None)
        with torch.inference_mode(), autocast, self._whole_float32():
            logits, embeddings = forward_with_embedding(self._network, cells)
        return Outputs(logits=logits.float().cpu().numpy(), embeddings=embeddings.float().cpu().numpy())

    def _whole_float32(self) -> AbstractContextManager[object]:
        """On a GPU torch rounds what it convolves to the 10 bits of TF32 unless it is told not to, and the reference
        must not be rounded. What it is told holds for the process, so one batch is computed at a time."""
        import torch

        if self._device == "cpu" or self._dtype is not None:
            return nullcontext()
        entered = ExitStack()
        entered.enter_context(self._lock)
        entered.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        return entered


def choose(name: str, package: Package) -> str:
    """What `auto` means for a package on this machine; any other name is returned as it is."""
    if name != "auto":
        return name
    if not has_gpu():
        return "openvino-f32"
    return next((each for each in AUTO_ON_GPU if each in package.info.precision), AUTO_ON_GPU[-1])


def has_gpu() -> bool:
    """Whether torch finds a GPU. It is asked only where NVIDIA's driver is: loading torch takes seconds and 0.5 GB."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    import torch

    return torch.cuda.is_available()


def open_engine(
    package: Package, name: str = "auto", *, threads: int | None = None, beside: bool = False
) -> Engine:  # fmt: skip
    """Open an engine on a package.

    Args:
        name: one of `blastwatch.settings.ENGINES`.
        threads: inference threads; None takes every core this process may use, and leaves torch's number as it is.
        beside: several batches will be inferred at a time; without it `abreast` is 1.

    Raises:
        UsageError: for an unknown name, and for an engine that needs a GPU where there is none.
        PackageError: where the package lacks the graph or it cannot be compiled, and where `openvino-bf16` cannot
            write to the folder of temporary files.
    """
    if name not in ENGINES:
        raise UsageError(f"Expected an engine out of {', '.join(ENGINES)} but got {name!r}.")
    chosen = choose(name, package)
    if chosen.startswith("torch"):
        return _open_torch(package, chosen, threads)
    return _open_openvino(package, chosen, threads or len(os.sched_getaffinity(0)), beside)


def _open_openvino(package: Package, name: str, threads: int, beside: bool) -> Engine:
    from blastwatch.openvino_engine import OpenVinoEngine  # which imports this module

    graph = package.folder / (ONNX_INT8 if name == "openvino-int8" else ONNX)
    try:
        return OpenVinoEngine(graph, package.info.preprocessing, name, threads=threads, beside=beside)
    except RuntimeError as error:
        raise PackageError(f"{graph.name} of the package cannot be compiled by OpenVINO: {error}.") from error
    except OSError as error:
        raise PackageError(
            f"Expected the engine {name} to write its graph, as large as {graph.name} of the package, to the folder of "
            f"temporary files, but: {error}. Make room there, or name another folder by TMPDIR."
        ) from error


def _open_torch(package: Package, name: str, threads: int | None) -> Engine:
    import torch

    if threads is not None:  # the number holds for the whole process, so nobody's OMP_NUM_THREADS is overruled
        torch.set_num_threads(threads)
    if name.endswith("-graphs"):
        if not torch.cuda.is_available():
            raise UsageError(
                f"Expected an NVIDIA GPU for the engine {name} but torch finds none. Take openvino-f32 or torch-bf16."
            )
        from blastwatch.graph_engine import open_graph_engine

        return open_graph_engine(package, name)
    return TorchEngine(package, name)


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
