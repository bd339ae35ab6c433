"""EfficientNet-Lite0 of torchvision's parts: its size, its padding, its maps; what it knows is in training's tests."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from blastwatch.explanation import grad_cam
from blastwatch.network import build

KNOWN = {"efficientnet_lite0": 4_652_008, "efficientnet_lite2": 6_092_072}
"""Weights of the published networks with their thousand classes."""


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return build("efficientnet_lite0").eval().requires_grad_(False)


@pytest.mark.parametrize("name", KNOWN)
def test_it_has_the_published_number_of_weights_and_no_part_that_the_lite_one_leaves_out(name):
    with torch.device("meta"):
        published = build(name, classes=1000)
    assert sum(parameter.numel() for parameter in published.parameters()) == KNOWN[name]
    kinds = {type(module).__name__ for module in published.modules()}
    assert not kinds & {"SiLU", "Sigmoid", "SqueezeExcitation"} and "ReLU6" in kinds
    assert all(module.eps == 1e-3 for module in published.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize("side", [32, 64, 96, 224])
def test_a_stride_of_two_is_padded_as_tensorflow_does(network, side):
    """`SAME`: as many outputs as half the side, what is missing is shared, the odd pixel goes behind."""
    found = 0
    for module in network.modules():
        if not (isinstance(module, nn.Sequential) and isinstance(module[0], nn.ZeroPad2d)):
            continue
        conv = module[1]
        kernel = conv.kernel_size[0]
        missing = max((-(-side // 2) - 1) * 2 + kernel - side, 0)
        maps = torch.randn(1, conv.in_channels, side, side)
        padded = functional.pad(maps, (missing // 2, missing - missing // 2) * 2)
        expected = functional.conv2d(padded, conv.weight, stride=2, groups=conv.groups)
        assert expected.shape[-1] == side // 2
        assert torch.equal(module(maps), expected)
        found += 1
    assert found == 5  # 224 px become 7


def test_a_heat_map_is_drawn_from_its_last_maps(network):
    cells = np.random.default_rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)
    heat, target = grad_cam(network, cells)
    assert heat.shape == (7, 7) and np.isfinite(heat).all()
    assert target == int(network(torch.from_numpy(cells)).argmax())
