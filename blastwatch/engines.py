"""Inference engines: one interface over OpenVINO and torch, each opened from a verified model package.

The float32 graph is the reference. On a CPU a faster engine is chosen by name only; how often it decides otherwise
stands in the package's `precision`. What each takes and gives is `blastwatch.inference.Engine`.
"""

import ctypes
from dataclasses import replace

from blastwatch.cores import cores
from blastwatch.errors import PackageError, UsageError
from blastwatch.images import Pixels
from blastwatch.inference import Engine, Inputs, Outputs
from blastwatch.package import ONNX, ONNX_INT8, Package, Precision
from blastwatch.settings import ENGINES

REFERENCE_ENGINES = ("openvino-f32", "torch-f32")
"""Engines that compute in float32: their answers are the version's own."""

AUTO_ON_GPU = ("torch-f16-graphs", "torch-bf16")
"""What `auto` is on a GPU: the first that the package was compared with, else the last. In graphs float16 is as fast as
bfloat16 and rounds eight times finer (docs/engines.md)."""


class CorrectedEngine:
    """An engine whose logits are corrected as the package says. What is rounded shifts the logits of all cells alike,
    most of all where a last layer reads what earlier ones rounded (docs/engines.md)."""

    def __init__(self, engine: Engine, precision: Precision) -> None:
        self.name, self.abreast, self.on_cores = engine.name, engine.abreast, engine.on_cores
        self._engine, self._precision = engine, precision

    def infer(self, crops: Pixels) -> Outputs:
        return self._corrected(self._engine.infer(crops))

    def infer_beside(self, crops: Pixels) -> Outputs:
        return self._corrected(self._engine.infer_beside(crops))

    def infer_inputs(self, inputs: Inputs) -> Outputs:
        return self._corrected(self._engine.infer_inputs(inputs))

    def rest(self) -> None:
        self._engine.rest()

    def _corrected(self, outputs: Outputs) -> Outputs:
        return replace(outputs, logits=self._precision.corrected(outputs.logits))


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
        engine = _open_torch(package, chosen, threads)
    else:
        engine = _open_openvino(package, chosen, threads or cores(), beside)
    measured = package.info.precision.get(chosen)
    return engine if measured is None or measured.is_plain else CorrectedEngine(engine, measured)


def _open_openvino(package: Package, name: str, threads: int, beside: bool) -> Engine:
    from blastwatch.openvino_engine import OpenVinoEngine

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
    from blastwatch.torch_engine import TorchEngine

    return TorchEngine(package, name)
