"""What training shows the network: each cell turned, mirrored, and in a slightly different stain, light and focus.

Scale and shift stay small: the size of a cell is evidence.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from blastwatch.images import Pixels, Preprocessing

SCALE = 0.06  # relative change of the cell's size at strength 1
STAIN = 0.18  # relative spread of each channel's optical density at strength 1
STAIN_SHIFT = 0.03  # spread of the added optical density at strength 1
BACKGROUND = 8 / 255  # at or below it a pixel is background of a segmented cell and stays black


class StainJitter(v2.Transform):  # type: ignore[misc]
    """Scale and shift the optical density of each channel, as another stain or lamp does (Tellez et al. 2019,
    doi:10.1016/j.media.2019.101544, in RGB optical density instead of the H&E basis). Takes float (3, h, w), 0 to 1.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Tensor]:
        del flat_inputs
        factor = 1 + self.strength * STAIN * torch.randn(3, 1, 1)
        shift = self.strength * STAIN_SHIFT * torch.randn(3, 1, 1)
        return {"factor": factor.clamp(0.5, 1.6), "shift": shift}

    def transform(self, inpt: Tensor, params: dict[str, Tensor]) -> Tensor:
        density = -torch.log(inpt.clamp(min=1 / 255))
        stained = torch.exp(-(density * params["factor"] + params["shift"]).clamp(min=0))
        return torch.where(inpt.amax(dim=0, keepdim=True) <= BACKGROUND, inpt, stained)


def train_transform(strength: float) -> v2.Compose:
    """The transform of one training cell, float (3, size, size), 0 to 1; drawn from torch's random state."""
    steps: list[Any] = [
        v2.RandomHorizontalFlip(),
        v2.RandomAffine(
            degrees=180,
            translate=(0.04, 0.04),
            scale=(1 - SCALE * min(strength, 3), 1 + SCALE * min(strength, 3)),
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=0,
        ),
    ]
    if strength > 0:
        steps.append(StainJitter(strength))
        steps.append(v2.RandomApply([v2.GaussianBlur(3, sigma=(0.1, 0.1 + strength))], p=0.3))
    return v2.Compose(steps)


def augment(crops: Pixels, transform: v2.Compose, preprocessing: Preprocessing) -> Tensor:
    """Augment and normalise a batch: uint8 (n, s, s, 3) to float32 (n, 3, s, s)."""
    scaled = torch.from_numpy(np.ascontiguousarray(crops)).permute(0, 3, 1, 2).float() / 255
    turned = torch.stack([transform(cell) for cell in scaled])
    mean, std = (_column(values) for values in (preprocessing.mean, preprocessing.std))
    return (turned - torch.from_numpy(mean)) / torch.from_numpy(std)


def _column(values: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32).reshape(1, 3, 1, 1)
