"""A network as OpenVINO runs it on the CPU in float32, where torch takes several times as long.

torch goes through the maps of a layer once for the convolution, once more for what normalises them and again for the
activation. Where few numbers are computed of each, as in networks of depthwise convolutions, nearly all the time is
that. OpenVINO does the three at once, and is what the service answers with.
"""

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blastwatch.images import Preprocessing
from blastwatch.openvino_engine import OpenVinoEngine

if TYPE_CHECKING:
    from torch import nn

    from training.loop import Infer

PRECISION = "openvino-f32"


def network_graph(network: "nn.Module", preprocessing: Preprocessing, *, standardised: bool = True) -> OpenVinoEngine:
    """The network, which lies on the CPU, with as many threads as torch has.

    Args:
        standardised: whether what the last layer reads is standardised as the network does it (`Standardise`); else
            the embeddings are what comes before that, and the logits mean nothing.

    Returns:
        Logits and embeddings, which the last layer reads, of crops, uint8 (n, size, size, 3).

    Raises:
        PackageError: where the graph does not answer as torch does (`training.export.export_onnx`).
    """
    import torch

    from blastwatch.stage_pooling import Standardise
    from training.export import export_onnx

    if not standardised and isinstance(before := getattr(network, "standardise", None), Standardise):
        network = copy.deepcopy(network)
        network.standardise = Standardise(len(before.mean))
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "network.onnx"
        export_onnx(network, preprocessing.size, graph)
        return OpenVinoEngine(graph, preprocessing, PRECISION, threads=torch.get_num_threads())


def inferring(network: "nn.Module", trained: Mapping[str, Any], preprocessing: Preprocessing) -> "Infer":
    """How an evaluation asks a network.

    Args:
        trained: the parameters of its training; one from before `fit` was among them went by gradients. A last layer
            that was fitted to what OpenVINO made of the cells is asked by it too, on a CPU; the others by torch, as
            they were trained.
    """
    from training.loop import logits_of_crops

    if trained.get("fit") == "logistic" and next(network.parameters()).device.type == "cpu":
        graph = network_graph(network.eval(), preprocessing)
        return lambda crops: graph.infer(crops).logits
    return lambda crops: logits_of_crops(network, crops, preprocessing)
