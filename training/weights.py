"""Where a network's first weights come from: scratch, ImageNet (a hub or a package) or a file. Never silently another
source."""

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.error import URLError

from blastwatch.errors import PackageError, UsageError
from blastwatch.network import build, head_of
from training.initial_weights import check_file
from training.packaged_weights import PACKAGED, packaged_files, packaged_state, packages_of

if TYPE_CHECKING:
    from torch import Tensor, nn

# Of the running statistics of batch normalisation, a step. torchvision gives MobileNetV3 0.01, made for hundreds of
# epochs: after the few hundred steps of a short training its running variance still holds what it began with, and the
# network answers every cell alike.
LEAST_MOMENTUM = 0.1


def first_network(architecture: str, weights: str, weights_file: str, *, seed: int) -> "nn.Module":
    """The network before training; its last layer is always fresh.

    Raises:
        UsageError: where the hub, the package or the file cannot be had.
        PackageError: where the file belongs to another architecture.
    """
    import torch

    torch.manual_seed(seed)
    network = build(architecture)
    if weights == "imagenet" and architecture in PACKAGED:
        given = [read_state(file) for file in packaged_files(architecture)]
        source = f"the package {' and the package '.join(packages_of(architecture))}"
        fill(network, packaged_state(architecture, network, given), source)
    elif weights == "imagenet":
        fill(network, _from_hub(architecture), "torchvision's ImageNet weights")
    elif weights == "file":
        fill(network, read_state(Path(weights_file)), weights_file)
    if weights != "scratch":
        # torchvision draws EfficientNet's last layer as if its outputs were inputs: for two classes twenty times too
        # large, and what it answers at first would wash through all that is known before it has learnt anything.
        network.get_submodule(head_of(network)).reset_parameters()  # type: ignore[operator]
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)
    return network


def _from_hub(architecture: str) -> "dict[str, Tensor]":
    from torchvision.models import get_model_weights

    try:
        state: dict[str, Tensor] = get_model_weights(architecture).DEFAULT.get_state_dict(progress=False)
    except (URLError, OSError, RuntimeError) as error:
        raise UsageError(
            f"torchvision's weights of {architecture} cannot be fetched: {error}. Save them as a file and set "
            "train.weights=file and train.weights_file, or set train.weights=scratch."
        ) from error
    return state


def read_state(path: Path) -> "dict[str, Tensor]":
    """A state dict from safetensors, or from a torch file that holds tensors alone (nothing else is unpickled)."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_file(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError) as error:
        raise PackageError(f"Expected weights in {path} but they cannot be read as tensors alone: {error}.") from error
    if not isinstance(state, dict):
        raise PackageError(f"Expected a state dict in {path} but got {type(state).__name__}.")
    return state


def fill(network: "nn.Module", state: "dict[str, Tensor]", source: str) -> None:
    """Fill all but the last layer.

    Raises:
        PackageError: where names or shapes are those of another network.
    """
    head = f"{head_of(network)}."
    own = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith(head)}
    given = {name: tensor for name, tensor in state.items() if not name.startswith(head)}
    faults = [f"{name} is missing" for name in own if name not in given]
    faults += [f"{name} is unknown" for name in given if name not in own]
    faults += [
        f"{name} has shape {tuple(given[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in given and given[name].shape != own[name].shape
    ]
    if faults:
        raise PackageError(
            f"The weights from {source} belong to another network ({len(faults)} differences): {'; '.join(faults[:3])}."
        )
    network.load_state_dict(given, strict=False)
