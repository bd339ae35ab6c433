"""A network made to answer only: each batch normalisation becomes part of the convolution before it.

    relu(normalise(conv(x)))             ->  ConvRelu(x)
    relu(normalise(conv(x)) + residual)  ->  ConvRelu(x, residual)

Folding is exact but for rounding: a normalisation with fixed statistics is a scale and a shift of each channel
(Jacob et al. 2018, arXiv:1712.05877, section 3.2). It is done in float64.
"""

import operator
from collections import Counter
from copy import deepcopy

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval


class ConvRelu(nn.Module):
    """ReLU of a convolution, or of its sum with a residual: one kernel of cuDNN on a GPU, two or three steps elsewhere.

    Args:
        conv: with numbers as padding and with one group.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, cells: Tensor, residual: Tensor | None = None) -> Tensor:
        conv = self.conv
        if not cells.is_cuda:
            out = conv(cells)
            return functional.relu(out if residual is None else out + residual)
        assert not isinstance(conv.padding, str)
        shape = (conv.stride, conv.padding, conv.dilation)
        if residual is None:
            return torch.cudnn_convolution_relu(cells, conv.weight, conv.bias, *shape, conv.groups)
        return torch.cudnn_convolution_add_relu(cells, conv.weight, residual, 1.0, conv.bias, *shape, conv.groups)


def fold(network: nn.Module, *, join_relu: bool) -> fx.GraphModule:
    """A copy of a network in evaluation mode, folded.

    Args:
        network: float32, with `forward` of one tensor; left as it is.
        join_relu: also make a `ConvRelu` of a convolution, the addition after it and the ReLU after that.
    """
    traced = fx.symbolic_trace(deepcopy(network).eval())
    _fold_normalisations(traced)
    if join_relu:
        _join_relus(traced)
    traced.graph.lint()
    traced.recompile()
    return traced


def _fold_normalisations(traced: fx.GraphModule) -> None:
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    for node in list(traced.graph.nodes):
        if not _calls(traced, node, nn.BatchNorm2d):
            continue
        conv = node.args[0]
        if not _calls(traced, conv, nn.Conv2d) or len(conv.users) > 1 or calls[conv.target] > 1:
            continue
        old, norm = (traced.get_submodule(str(each.target)).double() for each in (conv, node))
        assert isinstance(old, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        traced.set_submodule(str(conv.target), fuse_conv_bn_eval(old, norm).float())
        node.replace_all_uses_with(conv)
        traced.graph.erase_node(node)


def _join_relus(traced: fx.GraphModule) -> None:
    for relu in list(traced.graph.nodes):
        if not _calls(traced, relu, nn.ReLU):
            continue
        before = relu.args[0]
        conv, passed = before, [before]
        residual: tuple[fx.Node, ...] = ()
        if before.op == "call_function" and before.target is operator.add and len(before.users) == 1:
            conv, other = before.args
            if not _joinable(traced, conv):
                conv, other = other, conv
            residual, passed = (other,), [before, conv]
        if not _joinable(traced, conv):
            continue
        name = str(conv.target)
        joined = ConvRelu(traced.get_submodule(name))  # type: ignore[arg-type]
        traced.set_submodule(name, joined)
        with traced.graph.inserting_before(relu):
            relu.replace_all_uses_with(traced.graph.call_module(name, (conv.args[0], *residual)))
        for node in (relu, *passed):
            traced.graph.erase_node(node)


def _joinable(traced: fx.GraphModule, node: object) -> bool:
    """Whether it is a convolution that nobody else reads, of a kind that cuDNN joins with a ReLU."""
    if not isinstance(node, fx.Node) or not _calls(traced, node, nn.Conv2d) or len(node.users) > 1:
        return False
    conv = traced.get_submodule(str(node.target))
    assert isinstance(conv, nn.Conv2d)
    plain = conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return plain and conv.groups == 1 and conv.bias is not None


def _calls(traced: fx.GraphModule, node: fx.Node, kind: type[nn.Module]) -> bool:
    """Whether a node calls a module of exactly this kind."""
    return node.op == "call_module" and type(traced.get_submodule(str(node.target))) is kind
