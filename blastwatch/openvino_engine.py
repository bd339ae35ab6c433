"""OpenVINO on the CPU, from crops to logits: what `blastwatch.images.normalise` does is looked up within the graph."""

import queue
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blastwatch.absent import REPORTS_USE, leave_out
from blastwatch.images import FIRST_LEVELS, Pixels, Preprocessing, levels
from blastwatch.inference import Inputs, Outputs, checked_crops
from blastwatch.mixed_precision import begin_in_float32

if TYPE_CHECKING:
    import openvino

BF16 = "openvino-bf16"


class OpenVinoEngine:
    """One graph of a package. Precision is stated, because OpenVINO picks bf16 by itself where the CPU has it.

    In bf16 the graph's beginning stays in float32 (`blastwatch.mixed_precision`).

    A batch that has all cores waits at the end of each layer for the slowest of them, whatever else runs there. Batches
    on a few cores each, as many as OpenVINO finds best, hardly wait: with two on two cores 1.1 times as many cells. A
    lone one takes nearly twice as long, so the graph is compiled both ways where both are asked for.

    Args:
        graph: ONNX, of float32 (n, 3, size, size).
        name: of the engine; says the precision.
        threads: inference threads.
        beside: several batches will be inferred at a time; without it `abreast` is 1.

    Raises:
        RuntimeError: OpenVINO cannot compile the graph.
        OSError: a graph for bf16 cannot be written to the folder of temporary files.
    """

    on_cores = True

    def __init__(
        self, graph: Path, preprocessing: Preprocessing, name: str, *, threads: int, beside: bool = False
    ) -> None:
        leave_out(REPORTS_USE)
        import openvino

        self.name = name
        self._graph, self._preprocessing, self._core = graph, preprocessing, openvino.Core()
        self._config = {
            "INFERENCE_PRECISION_HINT": "bf16" if name == BF16 else "f32",
            "INFERENCE_NUM_THREADS": threads,
        }
        model = self._read(reading=True)
        self._whole = self._compiled(model, "LATENCY")
        self._shared, self.abreast = self._whole, 1
        if beside and threads > 1:
            self._shared = self._compiled(model, "THROUGHPUT")
            self.abreast = self._shared.best
        self._lock = threading.Lock()
        self._plain: _Requests | None = None

    def infer(self, crops: Pixels) -> Outputs:
        """As `blastwatch.inference.Engine.infer`."""
        return self._whole.infer(checked_crops(crops, self._preprocessing))

    def infer_beside(self, crops: Pixels) -> Outputs:
        """As `blastwatch.inference.Engine.infer_beside`."""
        return self._shared.infer(checked_crops(crops, self._preprocessing))

    def infer_inputs(self, inputs: Inputs) -> Outputs:
        """As `blastwatch.inference.Engine.infer_inputs`; who never asks for it has no graph for it in memory."""
        with self._lock:
            if self._plain is None:
                self._plain = self._compiled(self._read(reading=False), "LATENCY")
        return self._plain.infer(inputs)

    def rest(self) -> None:
        """As `blastwatch.inference.Engine.rest`: what the layers of a batch hand one another, 48 of the 190 MiB of a
        ResNet-50 in int8 at 224 px."""
        for requests in {self._whole, self._shared, self._plain}:
            if requests is not None:
                requests.rest()

    def _read(self, *, reading: bool) -> "openvino.Model":
        """The graph as it is compiled; `reading` crops instead of what `normalise` makes of them."""
        model = self._core.read_model(self._graph)
        if reading:
            model = reading_crops(model, self._preprocessing)
        return begin_in_float32(self._core, model) if self.name == BF16 else model

    def _compiled(self, model: "openvino.Model", hint: str) -> "_Requests":
        return _Requests(self._core.compile_model(model, "CPU", self._config | {"PERFORMANCE_HINT": hint}))


def reading_crops(model: "openvino.Model", preprocessing: Preprocessing) -> "openvino.Model":
    """The same graph behind a table of `blastwatch.images.levels`, so that it takes uint8 crops (n, size, size, 3) and
    reads the very float32 values that `normalise` gives."""
    import openvino
    from openvino import opset13

    (inputs,) = model.get_parameters()
    size = preprocessing.size
    crops = opset13.parameter([-1, size, size, 3], np.uint8, name="crops")
    # By planes from here on: what is added along an axis of three numbers is added one by one, at a tenth of the cost
    # of a whole ResNet-50 in int8.
    planes = opset13.transpose(crops, opset13.constant(np.array([0, 3, 1, 2], np.int32)))
    firsts = opset13.constant(np.array(FIRST_LEVELS, np.int32).reshape(1, 3, 1, 1))
    places = opset13.add(opset13.convert(planes, "i32"), firsts)
    values = opset13.gather(opset13.constant(levels(preprocessing).ravel()), places, opset13.constant(np.int32(0)))
    for reader in inputs.output(0).get_target_inputs():
        reader.replace_source_output(values.output(0))
    return openvino.Model(model.get_results(), [crops], model.get_friendly_name())


class _Requests:
    """One compiled graph and the requests that ran on it: with new ones for each batch, two batches at a time
    were a fifth slower."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

    @property
    def best(self) -> int:
        """How many batches at a time OpenVINO finds best."""
        return int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def rest(self) -> None:
        with suppress(RuntimeError):  # OpenVINO's refusal while a batch runs: then nothing rests
            self._compiled.release_memory()

    def infer(self, values: NDArray[Any]) -> Outputs:
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        request.infer([np.ascontiguousarray(values)], share_inputs=True)  # not copied once more
        outputs = Outputs(
            logits=np.array(request.get_tensor("logits").data, dtype=np.float32),
            embeddings=np.array(request.get_tensor("embedding").data, dtype=np.float32),
        )
        self._idle.put(request)  # one that failed is not used again
        return outputs
