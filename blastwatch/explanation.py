"""Where the network looked: Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) drawn over the cell, or the exact map of
a network that has one.

The map shows what raised the logit of the more probable class above the other one. It explains the network, not the
cell: a bright place is no proof of a lesion.
"""

import hashlib
import io
import json
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blastwatch.decision import CLASS_NAMES
from blastwatch.digests import combined_digest
from blastwatch.errors import PackageError
from blastwatch.images import MAX_PIXELS, Pixels, Preprocessing, crop_cell, decode, normalise
from blastwatch.package import DIGESTS, WEIGHTS, Package

STAGES = ("layer4", "layer3", "layer2", "layer1")  # of a ResNet
FEATURES = "features"  # torchvision's other networks have their maps in this one sequence
SMALLEST_MAP = 4  # the deepest map counts that has at least 4x4 places; at 224 px the last one has 7x7
OPACITY = 0.6  # of the hottest place

# Five anchors of matplotlib's colour map `inferno` (CC0), linear between them.
_ANCHORS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


class Explainer:
    """Rebuilds the network in torch from the package's weights on the first call. Calls run one at a time."""

    def __init__(self, package: Package) -> None:
        self._package = package
        self._network: Any = None
        self._lock = threading.Lock()

    def explain(self, data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[bytes, str]:
        """Draw the heat map of one image file.

        Returns:
            A PNG of (crop, crop) pixels, the cell at its original scale under the map, and the label it explains.

        Raises:
            ImageRejected: with the reason.
            PackageError: the weights, read with the first image, are no longer what was sealed.
        """
        shape = self._package.info.preprocessing
        image = decode(data, max_pixels=max_pixels)
        inputs = normalise(crop_cell(image, shape)[None], shape)
        with self._lock:
            heat, target = heat_map(self._load(), inputs)
        # The map lies over the pixels as they came, not over the smaller ones that the network saw.
        cell = crop_cell(image, Preprocessing(crop=shape.crop, size=shape.crop))
        return _png(overlay(cell, heat)), CLASS_NAMES[target]

    def _load(self) -> Any:
        if self._network is None:
            from blastwatch.network import build, load_weights

            info = self._package.info
            network = build(info.architecture, len(info.class_names))
            # Days after the package was verified, maybe.
            load_weights(network, self._package.folder / WEIGHTS, data=verified_bytes(self._package, WEIGHTS))
            self._network = network.eval().requires_grad_(False)
        return self._network


def verified_bytes(package: Package, name: str) -> bytes:
    """A file of a package that was opened, read now and once, and held against the package's digest.

    Raises:
        PackageError: it cannot be read, or is not what was sealed.
    """
    try:
        sealed: dict[str, str] = json.loads((package.folder / DIGESTS).read_text())["files"]
        data = (package.folder / name).read_bytes()
        changed = combined_digest(sealed) != package.digest or hashlib.sha256(data).hexdigest() != sealed[name]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PackageError(f"{name} of the package in {package.folder} cannot be read: {error!r}.") from error
    if changed:
        raise PackageError(f"{name} of the package in {package.folder} is not what was sealed: it was changed since.")
    return data


def heat_map(network: Any, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """What speaks for the more probable class, and where: arguments, results and errors of `grad_cam`."""
    import torch

    from blastwatch.stage_pooling import StagePooling

    if not isinstance(network, StagePooling):
        return grad_cam(network, inputs)
    with torch.inference_mode():
        activation = network.activation(torch.from_numpy(inputs))[0]
        target = int((activation.mean(dim=(1, 2)) + network.classifier.bias).argmax())
    return _rising(activation[target] - activation[1 - target]), target


def grad_cam(network: Any, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The class activation map of one cell.

    Args:
        network: a torchvision network in eval mode, with the stages of a ResNet or a sequence `features`.
        inputs: float32, shape (1, 3, size, size).

    Returns:
        float32 of shape (places, places), 0 to 1, and the index of the more probable class. All zero where nothing
        speaks for that class.

    Raises:
        ValueError: where the network has no such maps.
    """
    import torch

    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            kept[name] = output

        return hook

    stages = feature_stages(network)
    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in stages]
    try:
        with torch.enable_grad():
            logits = network(torch.from_numpy(inputs).requires_grad_(True))[0]
            sides = {name: min(kept[name].shape[2:]) for name in stages}
            stage = next((name for name in stages if sides[name] >= SMALLEST_MAP), max(stages, key=sides.__getitem__))
            target = int(logits.argmax())
            score = logits[target] - logits[1 - target]
            (gradient,) = torch.autograd.grad(score, kept[stage])
    finally:
        for handle in handles:
            handle.remove()
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    return _rising((weights * kept[stage].detach()).sum(dim=1)[0]), target


def _rising(values: Any) -> NDArray[np.float32]:
    """What is above zero of a tensor (places, places), as float32 from 0 to 1."""
    heat = values.relu().numpy()
    highest = float(heat.max())
    return np.asarray(heat / highest if highest > 0 else heat, dtype=np.float32)


def feature_stages(network: Any) -> tuple[str, ...]:
    """The parts of a network that put out maps, the deepest first."""
    children = dict(network.named_children())
    if STAGES[0] in children:
        return STAGES
    if FEATURES not in children:
        raise ValueError(f"Expected a network with {STAGES[0]} or {FEATURES} but got parts {', '.join(children)}")
    inner = [f"{FEATURES}.{name}" for name, _ in children[FEATURES].named_children()]
    return (FEATURES, *reversed(inner))


def overlay(cell: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Blend a map over a cell: the hotter, the less of the cell shows.

    Args:
        cell: uint8 (side, side, 3). heat: float32 (places, places), 0 to 1.
    """
    side = cell.shape[0]
    smooth = np.asarray(Image.fromarray(heat).resize((side, side), Image.Resampling.BICUBIC)).clip(0, 1)
    steps = np.linspace(0, 1, len(_ANCHORS))
    colours = np.stack([np.interp(smooth, steps, _ANCHORS[:, channel]) for channel in range(3)], axis=-1)
    opacity = OPACITY * smooth[..., None]
    return np.asarray(cell * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def _png(image: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()
