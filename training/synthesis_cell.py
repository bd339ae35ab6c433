"""Draw one synthetic cell: a nucleus with chromatin and nucleoli in a rim of cytoplasm, segmented, on black.

The picture is made in optical density, as light makes it: each pixel is the illumination times exp(-density), and the
density is that of the stained nucleus or cytoplasm, modulated by chromatin. The means were set by measuring 199 real
cells of C-NMC 2019: radius about 108 px for blasts and 93 px for normal cells, nucleus about (68, 28, 80) in RGB, a
rim of a few pixels about (89, 51, 99), and texture of 0.7 to 1.5 grey levels at scales of 2 to 16 px.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blastwatch.images import Pixels

SIDE = 450  # px, side of a C-NMC image
PATCH = 340  # px, side of the square that the cell is drawn in; a cell is cut off at its edge
PITCHES = (4, 8, 16, 32)  # px, distance of the grid points of the four layers of chromatin texture
SLOW_PITCH = 48  # px, of the layer that changes the colour
ANGLES = 1024  # steps of an outline around the circle

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Style:
    """What the cells of one patient have in common. Colours are in the order R, G, B.

    radius: mean radius of the cell in px; radius_spread: standard deviation from cell to cell, as a share;
    elongation: logarithm of the factor by which the long axis exceeds the radius, about; roughness: amplitude of the
    outline's waves, as a share of the radius;
    nucleus_share: share of the cell's area that the nucleus takes; nucleus, cytoplasm: optical densities (natural
    logarithm); illumination: gain per channel; slope: how far the gain rises or falls across the image, as a share;
    chromatin: amplitude of the texture at each of `PITCHES`, as a share of the density; tint: change of density
    per unit of a second, slow texture; nucleoli: mean number in a cell; depth: how far a nucleolus lowers the density,
    as a share; noise: of the camera, in grey levels.
    """

    radius: float
    radius_spread: float
    elongation: float
    roughness: float
    nucleus_share: float
    nucleus: tuple[float, float, float]
    cytoplasm: tuple[float, float, float]
    illumination: tuple[float, float, float]
    slope: tuple[float, float]
    chromatin: tuple[float, float, float, float]
    tint: tuple[float, float, float]
    nucleoli: float
    depth: float
    noise: float


def draw_cell(style: Style, random: np.random.Generator) -> Pixels:
    """One cell of a patient: uint8, shape (450, 450, 3), black outside of the cell."""
    radius = style.radius * np.exp(style.radius_spread * random.standard_normal())
    share = float(np.clip(style.nucleus_share + 0.04 * random.standard_normal(), 0.35, 0.97))
    outline = _outline(style, radius, random)
    side = min(2 * int(np.ceil(outline.max())) + 2, PATCH)  # all that follows happens on the smallest square
    inside = _depth_inside(outline, (0, 0), side)
    seen = np.flatnonzero((inside > 0) & _segmentation(radius, side, random))  # and is put together on these pixels

    shift = np.rint(0.35 * radius * (1 - np.sqrt(share)) * random.standard_normal(2)).astype(int)
    nucleus_outline = np.sqrt(share) * outline * (1 + 0.5 * style.roughness * _waves(random, 2, 5))
    in_nucleus = _depth_inside(nucleus_outline.astype(np.float32), (int(shift[0]), int(shift[1])), side)
    # The border of a nucleus is soft, about 5 px wide, and never leaves the cell.
    nuclear = np.clip(np.minimum(in_nucleus, inside).ravel()[seen] / 5 + 0.5, 0, 1)

    texture = sum(
        (
            np.float32(amplitude) * _layer(random, pitch, side)
            for pitch, amplitude in zip(PITCHES, style.chromatin, strict=True)
        ),
        start=np.float32(-style.depth) * _nucleoli(style, radius * np.sqrt(share), shift, side, random),
    ).ravel()[seen]
    slow = _layer(random, SLOW_PITCH, side).ravel()[seen]
    rim = 1 - np.float32(0.22) * np.exp(-inside.ravel()[seen] / 4)  # a cell is thinner at its edge
    rim *= np.float32(1 + 0.03 * random.standard_normal())
    density = np.empty((len(seen), 3), dtype=np.float32)
    for channel in range(3):
        nucleus = np.float32(style.nucleus[channel]) * (1 + texture) + np.float32(style.tint[channel]) * slow
        cytoplasm = np.float32(style.cytoplasm[channel]) * (1 + texture / 2)
        density[:, channel] = rim * (cytoplasm + nuclear * (nucleus - cytoplasm))
    return _expose(style, density, seen, side, random)


def _expose(style: Style, density: Floats, seen: NDArray[np.intp], side: int, random: np.random.Generator) -> Pixels:
    """Light through the cell onto the camera; the background of a segmented cell is black.

    Args:
        density: optical density, shape (pixels seen, 3). seen: their places in the flattened square of `side` px.
    """
    down, right = _axes(side)
    gain = (1 + (style.slope[0] * down + style.slope[1] * right) / np.float32(PATCH / 2)).ravel()[seen]
    light = np.exp(-density)
    light *= 255 * np.asarray(style.illumination, dtype=np.float32)
    light *= gain[:, None]
    light += np.float32(style.noise) * random.standard_normal(light.shape, dtype=np.float32)
    square = np.zeros((side * side, 3), dtype=np.uint8)
    square[seen] = np.clip(np.rint(light), 1, 255)
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    edge = (SIDE - side) // 2
    image[edge : edge + side, edge : edge + side] = square.reshape(side, side, 3)
    return image


def _axes(side: int) -> tuple[Floats, Floats]:
    """Distance from the centre in px, down (side, 1) and to the right (1, side)."""
    line = np.arange(side, dtype=np.float32) - np.float32(side / 2)
    return line[:, None], line[None, :]


@lru_cache(maxsize=1)
def _polar() -> tuple[NDArray[np.intp], Floats]:
    """Index of the angle and distance in px from the centre, on a square twice as wide as the patch."""
    line = np.arange(2 * PATCH, dtype=np.float32) - PATCH
    angle = np.arctan2(line[:, None], line[None, :])
    index = np.floor((angle / (2 * np.pi)) % 1 * ANGLES).astype(np.intp) % ANGLES
    return index, np.hypot(line[:, None], line[None, :])


def _depth_inside(outline: Floats, shift: tuple[int, int], side: int) -> Floats:
    """How far each pixel of the square lies inside of an outline around the shifted centre, along the ray, in px."""
    index, distance = _polar()
    top, left = PATCH - side // 2 - shift[0], PATCH - side // 2 - shift[1]
    window = (slice(top, top + side), slice(left, left + side))
    return np.asarray(outline[index[window]] - distance[window], dtype=np.float32)


def _waves(random: np.random.Generator, first: int, last: int) -> NDArray[np.float64]:
    """A random periodic line over `ANGLES` steps, of waves `first` to `last` around the circle, about 1 in size."""
    turn = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False)
    orders = np.arange(first, last + 1)
    amplitude = random.standard_normal(len(orders)) / (orders - first + 1)
    phase = random.uniform(0, 2 * np.pi, len(orders))
    return np.asarray(amplitude @ np.cos(orders[:, None] * turn + phase[:, None]))


def _outline(style: Style, radius: float, random: np.random.Generator) -> Floats:
    """Radius of the cell, px, at each of `ANGLES` directions."""
    turn = np.linspace(0, 2 * np.pi, ANGLES, endpoint=False)
    axis = np.exp(style.elongation * abs(random.standard_normal()))
    along = turn + random.uniform(0, 2 * np.pi)
    ellipse = 1 / np.hypot(np.cos(along) / axis, np.sin(along) * axis)
    shape = ellipse * (1 + style.roughness * (_waves(random, 3, 7) + 0.15 * _waves(random, 14, 30)))
    return np.asarray(radius * np.clip(shape, 0.5, 1.5), dtype=np.float32)


def _segmentation(radius: float, side: int, random: np.random.Generator) -> NDArray[np.bool_]:
    """Where the segmentation kept the cell: now and then it cuts a straight edge or takes a bite out of the rim."""
    kind, turn = random.random(), random.uniform(0, 2 * np.pi)
    size = radius * random.uniform(0.06, 0.16)
    if kind >= 0.20:
        return np.ones((side, side), dtype=np.bool_)
    down, right = _axes(side)
    along = down * np.float32(np.sin(turn)) + right * np.float32(np.cos(turn))
    if kind < 0.05:
        return np.asarray(along < 0.86 * radius)
    across = down * np.float32(np.cos(turn)) - right * np.float32(np.sin(turn))
    return np.asarray((along - 0.97 * radius) ** 2 + across**2 > size**2)


def _layer(random: np.random.Generator, pitch: int, side: int) -> Floats:
    """Smooth noise over the square, standard deviation about 1, from random values `pitch` px apart."""
    points = side // pitch + 4
    grid = Image.fromarray(random.standard_normal((points, points), dtype=np.float32))
    start = (points - side / pitch) / 2
    box = (start, start, start + side / pitch, start + side / pitch)
    # Interpolation lowers the standard deviation of the values by about this factor.
    return np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC, box=box)) * np.float32(1.4)


def _nucleoli(style: Style, radius: float, shift: NDArray[np.int_], side: int, random: np.random.Generator) -> Floats:
    """Pale round spots in the nucleus, from 0 to 1 at their centres."""
    spots = np.zeros((side, side), dtype=np.float32)
    down, right = _axes(side)
    for _ in range(random.poisson(style.nucleoli)):
        away, turn = 0.75 * radius * np.sqrt(random.random()), random.uniform(0, 2 * np.pi)
        row, column = shift[0] + away * np.sin(turn), shift[1] + away * np.cos(turn)
        width = np.float32(radius * random.uniform(0.04, 0.09))
        # A product of two Gaussians: the exponential is taken of two lines, not of the whole square.
        vertical = np.exp(-(((down - np.float32(row)) / width) ** 2) / 2)
        horizontal = np.exp(-(((right - np.float32(column)) / width) ** 2) / 2)
        np.maximum(spots, vertical * horizontal, out=spots)
    return spots
