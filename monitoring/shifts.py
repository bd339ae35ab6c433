"""Shifts as life brings them, simulated on images of single cells: to measure what is found, and to tell causes.

Each takes an image as it comes from the camera, segmented cell on black, and a strength from 0 (the image itself) to
1 (what a person would see at a glance). What happens before the cell is cut out (blur, compression, noise) is kept
from bleeding over its outline: the background stays exactly black and the outline where it was.

    name           at strength 1                                           source
    stain          another laboratory's stain, mixed in optical density    Macenko et al. 2009, ISBI:1107
    white_balance  red times 1.25, blue times 0.75                         von Kries's diagonal model of colour
    defocus        Gaussian point spread of 3 px standard deviation        Santos et al. 1997, J Microsc 188:264
    darker         0.6 of the light                                        Beer and Lambert: equal in all channels
    uneven         light falls from 1 to 0.4 across 320 px                 linear vignetting
    jpeg           JPEG at quality 50, colour at half resolution           ITU-T T.81, as Pillow writes it
    pixel_size     1.25 times as many pixels along a length                another objective or camera
    noise          normal noise of 20 levels in each channel               Hendrycks & Dietterich 2019, ICLR

Two shifts are no change of an image but of which images come: a changed disease mix, and `field`, whole fields among
the cells. The benchmark `tests/benchmarks/shifts.py` draws those.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blastwatch.images import Pixels
from monitoring.stain import restain

Floats = NDArray[np.float32]

RED_GAIN, BLUE_GAIN = 0.25, -0.25
BLUR = 3.0  # px of the image
DARKER = 0.4
UNEVEN, UNEVEN_OVER = 0.6, 320  # share of the light that is lost, over so many px of the image
JPEG_FROM, JPEG_TO = 100, 50
ZOOM = 0.25
NOISE = 20.0  # grey levels
BRIGHT = (222, 212, 218)  # the empty ground of a stained smear


def shift(image: Pixels, name: str, strength: float, *, random: np.random.Generator) -> Pixels:
    """The image under one shift.

    Args:
        image: uint8, shape (height, width, 3), in pixels of the camera; black is background.
        name: one of `SHIFTS`.
        strength: 0 gives the image back, 1 is the table's; between them gradual.
        random: draws the noise; the others do not use it.

    Returns:
        uint8 of the same shape. Background stays black, except under `pixel_size`, which moves the outline; a pixel
        of the cell never becomes black.

    Raises:
        ValueError: for another name, strength or kind of array.
    """
    if name not in SHIFTS:
        raise ValueError(f"Expected a shift among {', '.join(SHIFTS)} but got {name!r}")
    if not 0 <= strength <= 1:
        raise ValueError(f"Expected a strength from 0 to 1 but got {strength}")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"Expected uint8 of shape (height, width, 3) but got {image.dtype} of shape {image.shape}")
    if strength == 0 or not image.any():
        return image
    if name in OF_THE_FRAME:
        return SHIFTS[name](image, strength, random)
    top, bottom, left, right = _box(image)
    shifted = image.copy()
    shifted[top:bottom, left:right] = SHIFTS[name](image[top:bottom, left:right], strength, random)
    return shifted


def field(cells: Pixels, *, random: np.random.Generator) -> Pixels:
    """A stand-in for a whole field: cells at half their size on a bright ground, none of them cut out.

    Args:
        cells: uint8, shape (n, side, side, 3), one or more segmented cells on black.

    Returns:
        uint8, shape (side, side, 3), without black.
    """
    side = cells.shape[1]
    canvas = np.empty((side, side, 3), dtype=np.uint8)
    canvas[:] = np.clip(BRIGHT + random.normal(0, 2, (side, side, 1)), 0, 255)
    half = side // 2
    for top in (0, half):
        for left in (0, half):
            cell = cells[random.integers(len(cells))]
            small = np.asarray(Image.fromarray(cell).resize((half, half), Image.Resampling.BICUBIC))
            part = canvas[top : top + half, left : left + half]
            inside = small.max(axis=2) > 40  # without the dark fringe that resampling leaves
            part[inside] = small[inside]
    return canvas


def _put(image: Pixels, values: NDArray[np.floating]) -> Pixels:
    """Values where the cell is, at least 1 there; black elsewhere."""
    cell = _cell(image)
    shifted = np.zeros_like(image)
    shifted[cell] = np.clip(np.rint(values[cell]), 1, 255)
    return shifted


def _stain(image: Pixels, strength: float, _random: np.random.Generator) -> Pixels:
    return restain(image, strength=strength)


def _white_balance(image: Pixels, strength: float, _random: np.random.Generator) -> Pixels:
    return _put(image, image * (1 + strength * np.array([RED_GAIN, 0.0, BLUE_GAIN])))


def _darker(image: Pixels, strength: float, _random: np.random.Generator) -> Pixels:
    return _put(image, image * (1 - DARKER * strength))


def _uneven(image: Pixels, strength: float, _random: np.random.Generator) -> Pixels:
    width = image.shape[1]
    across = (np.arange(width) - (width - 1) / 2) / UNEVEN_OVER + 0.5
    light = 1 - UNEVEN * strength * np.clip(across, 0, 1)
    return _put(image, image * light[None, :, None])


def _defocus(image: Pixels, strength: float, _random: np.random.Generator) -> Pixels:
    """Blur of the cell alone: what the outline lets through is divided by how much of the kernel lay in the cell."""
    from scipy.ndimage import gaussian_filter

    levels = image.astype(np.float32)
    cell = _cell(image).astype(np.float32)
    share = np.maximum(gaussian_filter(cell, BLUR * strength, mode="constant"), 1e-6)
    blurred = gaussian_filter(levels, (BLUR * strength, BLUR * strength, 0), mode="constant")
    return _put(image, blurred / share[..., None])


def _jpeg(image: Pixels, strength: float, _random: np.random.Generator) -> Pixels:
    """Compressed on the cell's mean colour: on black, the outline itself would ring."""
    cell = _cell(image)
    filled = np.where(cell[..., None], image, image[cell].mean(axis=0)).astype(np.uint8)
    buffer = io.BytesIO()
    quality = round(JPEG_FROM - (JPEG_FROM - JPEG_TO) * strength)
    Image.fromarray(filled).save(buffer, format="JPEG", quality=quality, subsampling="4:2:0")
    return _put(image, np.asarray(Image.open(buffer), dtype=np.float32))


def _pixel_size(image: Pixels, strength: float, _random: np.random.Generator) -> Pixels:
    height, width = image.shape[:2]
    factor = 1 + ZOOM * strength
    keep_x, keep_y = width / factor, height / factor
    left, top = (width - keep_x) / 2, (height - keep_y) / 2
    box = (left, top, left + keep_x, top + keep_y)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(resized)


def _noise(image: Pixels, strength: float, random: np.random.Generator) -> Pixels:
    noise = random.standard_normal(image.shape, dtype=np.float32)
    return _put(image, image + NOISE * strength * noise)


def _cell(image: Pixels) -> NDArray[np.bool_]:
    """Where any channel is not black; three planes are faster than a reduction over so short an axis."""
    return np.asarray((image[..., 0] | image[..., 1] | image[..., 2]) > 0)


def _box(image: Pixels) -> tuple[int, int, int, int]:
    cell = _cell(image)
    rows, columns = np.flatnonzero(cell.any(axis=1)), np.flatnonzero(cell.any(axis=0))
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


SHIFTS: dict[str, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "stain": _stain,
    "white_balance": _white_balance,
    "defocus": _defocus,
    "darker": _darker,
    "uneven": _uneven,
    "jpeg": _jpeg,
    "pixel_size": _pixel_size,
    "noise": _noise,
}
"""Shifts of an image, by name."""

OF_THE_FRAME = ("uneven", "pixel_size")
"""Shifts that depend on where in the frame a pixel lies; the others need the cell's bounding box alone."""
