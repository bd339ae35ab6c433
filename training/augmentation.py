"""What training shows the network: each cell turned, mirrored, and in a slightly different stain, light and focus.

A batch is changed as a whole on the device that trains, each cell by its own draw. The draws come from a generator on
the CPU, so that one seed gives the same draws on every device and however many processes share the batch. Scale and
shift stay small: the size of a cell is evidence.

torchvision's transforms draw once for a whole batch, and its cell-by-cell form took a third of a training step at
128 px; one affine sampling of the batch takes a hundredth (`make bench`).
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

SCALE = 0.06  # relative change of the cell's size at strength 1
SHIFT = 0.08  # of half the side, at any strength: where the cell lies tells nothing
STAIN = 0.18  # relative spread of each channel's optical density at strength 1
STAIN_MIX = 0.04  # spread of the part that each channel's density takes from another's, at strength 1
STAIN_SHIFT = 0.03  # spread of the added optical density (natural logarithm) at strength 1
LIGHT = 0.06  # spread of the relative change of light from the middle to the edge at strength 1
BLUR = 0.3  # share of the cells that are blurred
BLUR_SIGMA = 1.1  # px of the input, largest at strength 1
BLUR_RADIUS = 3  # px
ERASED = (0.15, 0.35)  # side of the erased square as a share of the input's side
BACKGROUND = 8 / 255  # at or below it a pixel is background of a segmented cell and stays black
DARKEST = 1 / 255


@dataclass(frozen=True, kw_only=True)
class Draws:
    """What is done to each of n cells.

    affine: (n, 2, 3), from places in the output to places in the input, in units of half a side. density: (n, 3, 3)
    and added: (n, 3), the map of optical densities. light: (n, 2), slope of the light along x and y. sigma: (n,), px
    of blur, 0 for none. erased: (n, 3), centre x, y and half side of a square made black in units of half a side; a
    half side of 0 erases nothing.
    """

    affine: Tensor
    density: Tensor
    added: Tensor
    light: Tensor
    sigma: Tensor
    erased: Tensor

    def part(self, rows: slice | Tensor) -> "Draws":
        """The draws of some of the cells."""
        return Draws(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def to(self, device: torch.device) -> "Draws":
        return Draws(**{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)})


def draw(count: int, generator: torch.Generator, *, strength: float, erase: float = 0.0) -> Draws:
    """Draw what is done to `count` cells.

    Args:
        generator: on the CPU; it alone decides.
        strength: of stain, scale, light and blur; 0 leaves turns, mirrorings and shifts alone.
        erase: share of the cells of which a square is erased, 0 to 1 (Zhong et al. 2020, arXiv:1708.04896).
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator)

    angle = 2 * math.pi * uniform()
    mirror = torch.where(uniform() < 0.5, -1.0, 1.0)
    scale = 1 / (1 + strength * SCALE * (2 * uniform() - 1))
    shift = SHIFT * (2 * uniform(2) - 1)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    turned = torch.stack([torch.stack([cosine * mirror, -sine], 1), torch.stack([sine * mirror, cosine], 1)], 1)
    factor = (1 + strength * STAIN * normal(3)).clamp(0.5, 1.6)
    mixed = strength * STAIN_MIX * normal(3, 3)
    blurred = (uniform() < BLUR) & (strength > 0)
    side = ERASED[0] + (ERASED[1] - ERASED[0]) * uniform(1)
    return Draws(
        affine=torch.cat([turned, shift[:, :, None]], dim=2),
        density=torch.diag_embed(factor) + mixed * (1 - torch.eye(3)),
        added=strength * STAIN_SHIFT * normal(3),
        light=strength * LIGHT * normal(2),
        sigma=torch.where(blurred, 0.3 + BLUR_SIGMA * strength * uniform(), torch.zeros(count)),
        erased=torch.cat([uniform(2) - 0.5, side * (uniform(1) < erase)], dim=1),
    )


def augment(cells: Tensor, draws: Draws) -> Tensor:
    """Change a batch as drawn.

    Args:
        cells: float32, shape (n, 3, s, s), 0 to 1; black is background.
        draws: of n cells, on the CPU: which of them are blurred or erased is asked there, so that nothing waits for a
            GPU to come to this step.

    Returns:
        float32 of the same shape, 0 to 1. Background stays as black as it was.
    """
    there = draws.to(cells.device)
    grid = functional.affine_grid(there.affine, list(cells.shape), align_corners=False)
    turned = functional.grid_sample(cells, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    blurred, erased = (
        torch.nonzero(values > 0).flatten().to(cells.device, non_blocking=True)
        for values in (draws.sigma, draws.erased[:, 2])
    )
    stained = _stain(_blur(turned, blurred, there.sigma), there)
    return _erase(stained, erased, there.erased)


def _stain(cells: Tensor, draws: Draws) -> Tensor:
    """Another stain and lamp: a linear map of the optical densities of each cell (Beer and Lambert), and a slope of
    light (Tellez et al. 2019, doi:10.1016/j.media.2019.101544, in RGB densities instead of the H&E basis).
    """
    height, width = cells.shape[2:]
    # The logarithm of light is the negative density; in place, because each new array of a batch costs page faults.
    light = cells.clamp(min=DARKEST).log_().flatten(2)
    light = torch.baddbmm(-draws.added[:, :, None], draws.density, light).view_as(cells)
    x = torch.linspace(-1, 1, width, device=cells.device)
    y = torch.linspace(-1, 1, height, device=cells.device)
    slope = draws.light[:, 0, None, None] * x + draws.light[:, 1, None, None] * y[:, None]
    light.add_(slope[:, None]).clamp_(max=0).exp_()
    # What is darker than the darkest that has a logarithm keeps its share of it: a channel without light stays without.
    light.mul_(cells.mul(1 / DARKEST).clamp_(max=1))
    black = cells.amax(dim=1, keepdim=True) <= BACKGROUND
    return torch.where(black, cells, light)


def _blur(cells: Tensor, rows: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian for each of `rows`, of its sigma; along x, then along y."""
    if len(rows) == 0:
        return cells
    chosen = cells[rows]
    count, channels, height, width = chosen.shape
    places = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=cells.device, dtype=cells.dtype)
    weights = torch.exp(-0.5 * (places / sigma[rows, None]) ** 2)
    kernels = (weights / weights.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)
    flat = chosen.reshape(1, count * channels, height, width)
    for shape, padding in (((1, -1), (0, BLUR_RADIUS)), ((-1, 1), (BLUR_RADIUS, 0))):
        kernel = kernels.reshape(count * channels, 1, *shape)
        flat = functional.conv2d(flat, kernel, padding=padding, groups=count * channels)
    return cells.index_copy(0, rows, flat.view_as(chosen))


def _erase(cells: Tensor, rows: Tensor, erased: Tensor) -> Tensor:
    """Make a square of each of `rows` black."""
    if len(rows) == 0:
        return cells
    height, width = cells.shape[2:]
    x = torch.linspace(-1, 1, width, device=cells.device)
    y = torch.linspace(-1, 1, height, device=cells.device)
    middle_x, middle_y, half = (erased[rows, column, None] for column in range(3))
    inside = ((y - middle_y).abs() <= half)[:, :, None] & ((x - middle_x).abs() <= half)[:, None, :]
    return cells.index_copy(0, rows, cells[rows].masked_fill(inside[:, None], 0.0))
