"""torch in half precision on a GPU: all kernels of a batch captured as one CUDA graph, and replayed.

One cell takes some two hundred kernels of a few microseconds each, and a GPU to which Python sends them one by one
mostly waits. A graph sends all of them at once. Its batch size is fixed, so there is a graph for each of `SIZES`, and
a batch is padded up to the next size; what stands in the padding is never read.

Batches of several threads go through one stream in turn. Each has pinned memory of its own for the way there and back,
so that one is copied while another is computed.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from blastwatch.folding import fold
from blastwatch.images import FIRST_LEVELS, Pixels, Preprocessing, levels
from blastwatch.inference import Inputs, Outputs, checked_crops, in_batches
from blastwatch.network import build, head_of, load_weights
from blastwatch.package import WEIGHTS, Package

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""Batch sizes that have a graph; a larger batch goes in parts of the largest."""

DTYPES = {"torch-bf16-graphs": torch.bfloat16, "torch-f16-graphs": torch.float16}
JOIN_RELU = True
"""Whether ReLUs are computed by cuDNN within the convolution: twice as fast on an H100."""

SEARCH = False
"""Whether cuDNN tries all its algorithms for each convolution and batch size when an engine is opened; otherwise it
guesses the best from their shapes, which on an H100 was as fast."""

WARM_UP = 3  # runs before a capture, the first of which chooses algorithms
TRANSFERS = 2  # batches on their way at the same time: one is copied while one is computed

Pair = tuple[Tensor, Tensor]


class HalfNetwork(nn.Module):
    """The network in half precision up to the embedding, and its last layer, which costs nothing, in float32.

    The normalisations are folded in float64 and the result is rounded once.

    Args:
        emulate: compute in float32 and round what each step gives, as kernels do that add up in float32: on a CPU,
            which is slow in half precision or cannot do it.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype, *, join_relu: bool, emulate: bool = False) -> None:
        super().__init__()
        name = head_of(network)
        self.head = network.get_submodule(name)
        network.set_submodule(name, nn.Identity())
        self.body = fold(network, join_relu=join_relu).to(dtype)
        for module in self.body.modules():
            if emulate or isinstance(module, nn.BatchNorm2d):  # one without a convolution takes float32 statistics
                module.float()
        self._rounded = _Rounded(self.body, dtype) if emulate else None

    def forward(self, cells: Tensor) -> Pair:
        embedding: Tensor = self.body(cells).float() if self._rounded is None else self._rounded.run(cells)
        return self.head(embedding), embedding


class _Rounded(fx.Interpreter):
    """Runs a network in float32 and rounds the result of every step."""

    def __init__(self, body: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(body)
        self._dtype = dtype

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        return result.to(self._dtype).float() if isinstance(result, Tensor) else result


class GraphEngine:
    """Replays one network. All of it may be called from several threads.

    Two batches at a time are up to 1.6 times as fast as one after the other on an H100: one is copied meanwhile.

    Args:
        network: float32, of `blastwatch.network.build`; it is taken apart and cannot be used afterwards.
        name: of `DTYPES`.
        device: `cpu` emulates the rounding, slowly: to compare a network with float32 where no GPU is.
        sizes: batch sizes, ascending.
        join_relu, search: see `JOIN_RELU` and `SEARCH`.
        compiled: lets torch.compile write the kernels, which takes minutes and needs a C compiler.
    """

    abreast = TRANSFERS

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        name: str,
        *,
        device: str = "cuda",
        sizes: Sequence[int] = SIZES,
        join_relu: bool = JOIN_RELU,
        search: bool = SEARCH,
        compiled: bool = False,
    ) -> None:
        self.name, self.sizes, self._search = name, tuple(sizes), search
        self._device = torch.device(device)
        self.on_cores = self._device.type == "cpu"
        self._preprocessing = preprocessing
        self._shape = (3, preprocessing.size, preprocessing.size)
        half: Any = HalfNetwork(
            network.eval(), DTYPES[name], join_relu=join_relu, emulate=self.on_cores
        ).to(self._device)  # fmt: skip
        self._network: Callable[[Tensor], Pair] = half.to(memory_format=torch.channels_last)
        if compiled:
            self._network = torch.compile(self._network, dynamic=False)
        self._levels = torch.from_numpy(levels(preprocessing).ravel()).to(self._device)
        self._firsts = torch.tensor(FIRST_LEVELS, device=self._device)
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None  # torch.cuda.stream takes None for: stay on this one
        with torch.inference_mode():
            most = torch.zeros((self.sizes[-1], *self._shape), dtype=DTYPES[name], device=self._device)
            self._cells = most.contiguous(memory_format=torch.channels_last)
            self._replays = self._capture_all()
            outputs = self._replays[self.sizes[-1]]()
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # from here on all of it runs on `_stream`, unless `forward` is called
        self._transfers: queue.SimpleQueue[_Transfer] = queue.SimpleQueue()
        for _ in range(TRANSFERS):
            self._transfers.put(_Transfer(4 * self._cells.numel(), outputs, pinned=self._device.type == "cuda"))

    def infer(self, crops: Pixels) -> Outputs:
        """As `blastwatch.inference.Engine.infer`: a quarter of the bytes of `infer_inputs` are sent to the device."""
        return self._in_parts(checked_crops(crops, self._preprocessing), self.normalise)

    def infer_beside(self, crops: Pixels) -> Outputs:
        """The same as `infer`."""
        return self.infer(crops)

    def infer_inputs(self, inputs: Inputs) -> Outputs:
        """As `blastwatch.inference.Engine.infer_inputs`."""
        if inputs.shape[1:] != self._shape or inputs.dtype != np.float32 or not len(inputs):
            raise ValueError(
                f"Expected float32 of shape (n, {', '.join(map(str, self._shape))}), one cell at least, but got "
                f"{inputs.dtype} of shape {inputs.shape}"
            )
        return self._in_parts(inputs, lambda cells: cells)

    def rest(self) -> None:
        """As `blastwatch.inference.Engine.rest`: a recorded graph has its memory for good."""

    def normalise(self, crops: Tensor) -> Tensor:
        """`blastwatch.images.normalise` on the device: the same table, looked up there.

        Args:
            crops: uint8, shape (n, size, size, 3), on the device.

        Returns:
            float32, shape (n, 3, size, size), in channels_last.
        """
        return torch.take(self._levels, crops.long() + self._firsts).permute(0, 3, 1, 2)

    def forward(self, cells: Tensor) -> Pair:
        """Send one batch through its graph, on the current stream of a caller that is alone.

        Args:
            cells: any float dtype, shape (n, 3, size, size), n at most the largest size, on the device.

        Returns:
            float32 logits (n, classes) and embeddings (n, d), on the device, overwritten by the next call.
        """
        count = len(cells)
        self._cells[:count].copy_(cells)
        logits, embeddings = self._replays[next(size for size in self.sizes if size >= count)]()
        return logits[:count], embeddings[:count]

    def _in_parts(self, values: NDArray[Any], prepare: Callable[[Tensor], Tensor]) -> Outputs:
        return in_batches(lambda part: self._run(part, prepare), values, batch_size=self.sizes[-1])

    def _run(self, values: NDArray[Any], prepare: Callable[[Tensor], Tensor]) -> Outputs:
        transfer = self._transfers.get()
        try:
            held = transfer.take(values)
            with self._lock, torch.inference_mode(), torch.cuda.stream(self._stream):
                transfer.fetch(self.forward(prepare(held.to(self._device, non_blocking=True))))
            return transfer.wait(len(values))
        finally:
            self._transfers.put(transfer)

    def _capture_all(self) -> dict[int, Callable[[], Pair]]:
        """How each batch size is run over `_cells`."""
        if self._device.type == "cpu":
            return {size: partial(self._network, self._cells[:size]) for size in self.sizes}
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())  # which still sends the weights
        self._pool = torch.cuda.graph_pool_handle()
        # From the largest: the others find their memory in what it took. They never run at the same time.
        return {size: self._capture(size) for size in reversed(self.sizes)}

    def _capture(self, size: int) -> Callable[[], Pair]:
        cells, graph = self._cells[:size], torch.cuda.CUDAGraph()
        with torch.backends.cudnn.flags(enabled=True, benchmark=self._search), torch.cuda.stream(self._stream):
            for _ in range(WARM_UP):
                self._network(cells)
            # Another version may be serving from this process meanwhile: its calls are none of this capture's.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = self._network(cells)

        def replay() -> Pair:
            graph.replay()
            return outputs

        return replay


class _Transfer:
    """Memory of the host for one batch on its way to the device and back; pinned, so that copies do not hold it up."""

    def __init__(self, size: int, outputs: Pair, *, pinned: bool) -> None:
        self._there = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        self._back = [torch.empty(values.shape, dtype=values.dtype, pin_memory=pinned) for values in outputs]
        # A core that waits is left to others.
        self._fetched = torch.cuda.Event(blocking=True) if pinned else None  # type: ignore[no-untyped-call]

    def take(self, values: NDArray[Any]) -> Tensor:
        """The values, in this memory."""
        kind = torch.uint8 if values.dtype == np.uint8 else torch.float32
        held = self._there[: values.nbytes].view(kind).view(values.shape)
        np.copyto(held.numpy(), values)
        return held

    def fetch(self, outputs: Pair) -> None:
        """Begin to copy outputs here, on the current stream."""
        for kept, values in zip(self._back, outputs, strict=True):
            kept[: len(values)].copy_(values, non_blocking=True)
        if self._fetched is not None:
            self._fetched.record()

    def wait(self, count: int) -> Outputs:
        """The outputs of the first cells, once they are here."""
        if self._fetched is not None:
            self._fetched.synchronize()
        logits, embeddings = (kept[:count].numpy().copy() for kept in self._back)
        return Outputs(logits=logits, embeddings=embeddings)


def open_graph_engine(package: Package, name: str, **options: Any) -> GraphEngine:
    """The engine of a package, rebuilt from its weights; `options` as of `GraphEngine`.

    Raises:
        PackageError: where the weights do not fit.
    """
    network = build(package.info.architecture, len(package.info.class_names))
    load_weights(network, package.folder / WEIGHTS)
    return GraphEngine(network, package.info.preprocessing, name, **options)
