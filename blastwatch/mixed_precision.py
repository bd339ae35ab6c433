"""A graph for OpenVINO whose beginning stays in float32 where the rest is computed in bf16."""

import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    import openvino

FLOAT32_SHARE = 0.2
"""Of all multiplications, those at the image's end that stay in float32. What is rounded there every later layer reads:
of a ResNet-50 they are the stem and `layer1`, which make nine tenths of the error (docs/engines.md)."""

MULTIPLYING = ("Convolution", "GroupConvolution", "MatMul")
"""Operations that multiply by weights, which are their second input."""


def begin_in_float32(core: "openvino.Core", model: "openvino.Model") -> "openvino.Model":
    """The same graph, with its `beginning` marked to be left in float32.

    The mark, `precise`, has no other way in from Python than the file that a graph is written to and read from.

    Raises:
        OSError: the graph cannot be written to the folder of temporary files.
    """
    import openvino

    kept = {node.get_friendly_name() for node in beginning(model)}
    with tempfile.TemporaryDirectory(prefix="blastwatch-graph-") as folder:
        xml, weights = Path(folder, "graph.xml"), Path(folder, "graph.bin")
        try:
            openvino.serialize(model, xml, weights)
        except RuntimeError as error:  # OpenVINO's only word for a full disk
            raise OSError(f"The graph cannot be written to {folder}: {error}") from error
        written = ElementTree.parse(xml)  # noqa: S314 - OpenVINO wrote it just now
        for layer in written.iterfind("layers/layer"):
            if layer.get("name") in kept:
                marks = layer.find("rt_info")
                marks = ElementTree.SubElement(layer, "rt_info") if marks is None else marks
                ElementTree.SubElement(marks, "attribute", name="precise", version="0")
        written.write(xml)
        return core.read_model(xml, weights)


def beginning(model: "openvino.Model") -> "list[openvino.Node]":
    """The operations before the one with which the multiplications would exceed `FLOAT32_SHARE`.

    They come in the order of what has to be multiplied until they are known, so that of networks beside each other,
    which OpenVINO names one after another, each has its beginning in it.
    """
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() != "Constant"]
    costs = {node.get_friendly_name(): multiplications(node) for node in nodes}
    needed: dict[str, frozenset[str]] = {}
    for node in nodes:
        name = node.get_friendly_name()
        given = (value.get_node().get_friendly_name() for value in node.input_values())
        needed[name] = frozenset({name}).union(*(needed.get(other, frozenset()) for other in given))
    most = FLOAT32_SHARE * sum(costs.values())
    kept, spent = [], 0
    for node in sorted(nodes, key=lambda node: sum(costs[name] for name in needed[node.get_friendly_name()])):
        spent += costs[node.get_friendly_name()]
        if spent > most:
            break
        kept.append(node)
    return kept


def multiplications(node: "openvino.Node") -> int:
    """How often a node multiplies by a weight, for one image; the first dimension of what it gives is the batch."""
    kind = node.get_type_name()
    if kind not in MULTIPLYING:
        return 0
    given: list[int] = [side.get_length() for side in list(node.output(0).partial_shape)[1:]]
    weights: list[int] = list(node.input_value(1).shape)
    return math.prod(given) * math.prod(weights) // (given[-1] if kind == "MatMul" else given[0])
