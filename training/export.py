"""The inference graphs of a package: ONNX in float32, and the same quantized to int8 after training."""

import contextlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blastwatch.absent import REPORTS_USE, leave_out
from blastwatch.errors import PackageError
from blastwatch.images import Pixels, Preprocessing, normalise

INPUT, OUTPUTS = "cells", ("logits", "embedding")
OPSET = 17
WEIGHTED = ("Conv", "Gemm", "MatMul")
TOLERANCE = 1e-3  # largest difference of a logit between torch and the graph, both in float32


def export_onnx(network: Any, size: int, path: Path) -> float:
    """Write the float32 graph and check it against torch.

    Args:
        network: of `blastwatch.network.build`, on the CPU.
        size: side of the network's input in pixels.

    Returns:
        The largest difference of a logit over a few random inputs.

    Raises:
        PackageError: where the difference is above `TOLERANCE`.
    """
    import onnxruntime
    import torch

    from blastwatch.network import forward_with_embedding

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return forward_with_embedding(self.network, cells)

    both = Both().eval()
    cells = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    names = (INPUT, *OUTPUTS)
    # Else the trace keeps what every layer computed, for gradients that nobody asks for.
    with torch.no_grad(), warnings.catch_warnings():
        # The exporter that traces is deprecated, and writes the plain graph that NNCF and OpenVINO read best.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # A padding that differs from side to side is written as constants that OpenVINO computes instead.
        warnings.filterwarnings("ignore", message="Constant folding - Only steps=1")
        torch.onnx.export(
            both,
            (cells,),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_axes={name: {0: "n"} for name in names},
        )
    with torch.inference_mode():
        expected = network(cells).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS), {INPUT: cells.numpy()})[0]
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:  # of a network that answers no number it is none
        raise PackageError(
            f"The exported graph differs from torch by {difference:.2g} in a logit (most: {TOLERANCE:g})."
        )
    return difference


def quantize(source: Path, crops: Pixels, preprocessing: Preprocessing, path: Path) -> None:
    """Quantize a float32 graph to int8 by NNCF's post-training quantization.

    The layers at both ends stay in float32: what is rounded there nothing after it evens out, and they take hardly any
    of the time. What each of these brings is in docs/engines.md.

    Args:
        crops: cells of calibration patients, uint8, shape (n, size, size, 3), on which the ranges are found.
        preprocessing: of the graph.
    """
    import onnx

    leave_out(REPORTS_USE)
    # NNCF talks on standard output, which belongs to what the command reports, and sets how much when it is imported.
    with contextlib.redirect_stdout(sys.stderr):
        import nncf
    model = onnx.load(str(source))
    with _quiet("nncf"):
        quantized = nncf.quantize(
            model,
            # One by one: as float32 cells take four times the bytes of their crops, 2.4 MB each at 448 px.
            nncf.Dataset(crops, lambda crop: {INPUT: normalise(crop[None], preprocessing)}),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(crops),
            ignored_scope=nncf.IgnoredScope(names=ends(model)),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # Else the weights of the first layer that is quantized get seven bits, so that the sums of a core
                # without VNNI do not overflow. That is meant for the layer that reads the image; those after it are no
                # likelier to overflow than the rest.
                overflow_fix=nncf.OverflowFix.DISABLE,
                # NNCF's fast one takes every channel for flat, shifts some layer far too much, and doubled the noise.
                # Its slow one does not read these graphs.
                disable_bias_correction=True,
            ),
        )
    onnx.save(quantized, str(path))


def ends(model: Any) -> list[str]:
    """Names of the nodes of a graph that give the logits, and of those that read the cells up to the first that have
    weights: of networks beside each other the first of each, before which the cells may be padded."""
    found, cells = [], {INPUT}
    for node in model.graph.node:  # in an order in which each comes after what it reads
        if cells.intersection(node.input):
            found.append(node.name)
            if node.op_type not in WEIGHTED:
                cells.update(node.output)
        elif OUTPUTS[0] in node.output:
            found.append(node.name)
    return found


def fit_logits(found: NDArray[np.float32], expected: NDArray[np.float32]) -> tuple[float, NDArray[np.float32]]:
    """The scale and the shift, shape (classes,), with which `scale * found + shift` is nearest to `expected`.

    By least squares over logits of shape (n, classes). All classes share a scale, so that few cells are enough; where
    all cells have the same logits it is 1.

    >>> fit_logits(np.array([[0.0, 1.0], [2.0, 1.0]]), np.array([[1.0, 0.0], [5.0, 0.0]]))
    (2.0, array([ 1., -2.]))
    """
    middle, aim = found.mean(axis=0), expected.mean(axis=0)
    spread = float(np.square(found - middle).sum())
    scale = float(((found - middle) * (expected - aim)).sum()) / spread if spread > 0 else 1.0
    return scale, aim - scale * middle


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    """Errors alone from a library's logger, and its progress bar on standard error."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
