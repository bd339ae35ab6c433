"""The networks by name, and how their state travels: safetensors, never pickle."""

from pathlib import Path
from typing import TYPE_CHECKING

from blastwatch.errors import PackageError, UsageError
from blastwatch.state_files import write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

ARCHITECTURES = (
    "resnet50",
    "resnet18",
    "vgg16_bn",
    "densenet121",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "efficientnet_lite0",
    "efficientnet_lite0_stages",
    "efficientnet_lite0_early",
    "efficientnet_lite2",
    "efficientnet_lite2_stages",
    "efficientnet_lite2_early",
    "efficientnet_lite0_lite2_stages",
    "efficientnet_lite0_lite2_early",
)
READ_BY_STAGES = {
    "efficientnet_lite0_stages": ("efficientnet_lite0",),
    "efficientnet_lite2_stages": ("efficientnet_lite2",),
    "efficientnet_lite0_lite2_stages": ("efficientnet_lite0", "efficientnet_lite2"),
    "efficientnet_lite0_early": ("efficientnet_lite0",),
    "efficientnet_lite2_early": ("efficientnet_lite2",),
    "efficientnet_lite0_lite2_early": ("efficientnet_lite0", "efficientnet_lite2"),
}
"""Networks whose last layer reads many stages: the ones that they are made of, beside each other. What ends in `_early`
reads the stem and the five stages behind it, and has no others; what ends in `_stages` reads the six behind the first.
"""


def check_architecture(name: str) -> str:
    """Return the name, or raise `UsageError` naming the known ones."""
    if name not in ARCHITECTURES:
        raise UsageError(f"Expected an architecture out of {', '.join(ARCHITECTURES)} but got {name!r}.")
    return name


def build(architecture: str, classes: int = 2) -> "nn.Module":
    """A network of torchvision or of its parts, freshly drawn; its last layer (`head_of`) has `classes` outputs."""
    if check_architecture(architecture).startswith("efficientnet_lite"):
        from blastwatch.efficientnet_lite import efficientnet_lite
        from blastwatch.stage_pooling import EARLY, MIDDLE, StagePooling

        bases = READ_BY_STAGES.get(architecture)
        if bases is None:
            return efficientnet_lite(architecture, classes)
        return StagePooling(bases, classes, read=EARLY if architecture.endswith("_early") else MIDDLE)
    from torchvision import models

    network: nn.Module = models.get_model(architecture, weights=None, num_classes=classes)
    return network


def head_of(network: "nn.Module") -> str:
    """Name of the last layer of a network that `build` made: the linear map from the embedding to the logits."""
    from torch import nn

    linear: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1]


def forward_with_embedding(network: "nn.Module", cells: "Tensor") -> "tuple[Tensor, Tensor]":
    """Logits (n, classes) and the embedding (n, d) that the last layer reads, in one pass."""
    embedding = []
    last = network.get_submodule(head_of(network))
    handle = last.register_forward_pre_hook(lambda _module, inputs: embedding.append(inputs[0]))
    try:
        logits = network(cells)
    finally:
        handle.remove()
    return logits, embedding[0]


def save_weights(network: "nn.Module", path: Path) -> None:
    """Write the state of a network as safetensors; raises `DataError` where the disk does not take them, and what stood
    there before stays."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_whole(path, save(state))


def load_weights(network: "nn.Module", path: Path, *, data: bytes | None = None) -> None:
    """Fill a network from safetensors.

    Args:
        data: what stands in the file, where it was read already.

    Raises:
        PackageError: where the file belongs to another architecture or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        state = load_file(path) if data is None else load(data)
    except (SafetensorError, OSError) as error:
        raise PackageError(f"Expected weights as safetensors in {path} but they cannot be read: {error}.") from error
    expected = network.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in expected]
    faults += [
        f"{name} has shape {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    if faults:
        listed = "; ".join(faults[:5]) + ("; ..." if len(faults) > 5 else "")
        raise PackageError(f"The weights in {path} belong to another network: {listed}.")
    network.load_state_dict(state)
