"""Fingerprints of cells that a copy keeps: re-encoded, rescaled, brightened, shifted, turned or mirrored.

Each image is reduced to a patch, cut around the centre of its content at a scale set by the content's area, so that
shift and size fall out. The low frequencies of a patch's cosine transform, as in pHash (Zauner 2010, "Implementation
and benchmarking of perceptual image hash functions"), are made blind to quarter turns and mirrors: mirroring changes
signs of coefficients and transposing swaps the two frequencies, so what stays are absolute values, the larger and the
smaller of each swapped pair.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blastwatch.images import Pixels

Patch = NDArray[np.uint8]
"""Grey levels over the background, uint8, shape (SIDE, SIDE); all 0 where the image has no content."""

SIDE = 32  # px of a patch
CONTENT = 20  # grey levels over the background from which a pixel is content
REACH = 1.45  # half the side of the patch, in radii of the disc of the content's area
LEAST = 64  # px of content below which an image has none
FREQUENCIES = 8  # of each axis; with their mirrored twins 63 numbers
LENGTH = FREQUENCIES**2 - 1


def patch(image: Pixels) -> Patch:
    """Cut the content of an image at normalised position and scale.

    Args:
        image: uint8, shape (height, width, 3).
    """
    grey = Image.fromarray(image).convert("L")
    level = np.asarray(grey)
    background = int(np.percentile(level[::4, ::4], 1))
    content = level > min(background + CONTENT, 254)
    area = int(content.sum())
    if area < LEAST:
        return np.zeros((SIDE, SIDE), np.uint8)
    height, width = level.shape
    middle_x = float(content.sum(axis=0) @ (np.arange(width) + 0.5)) / area
    middle_y = float(content.sum(axis=1) @ (np.arange(height) + 0.5)) / area
    reach = REACH * float(np.sqrt(area / np.pi))
    # Pillow resamples within an image only: cut generously first, which fills what lies outside with black.
    left, top = int(np.floor(middle_x - reach)) - 2, int(np.floor(middle_y - reach)) - 2
    side = int(np.ceil(2 * reach)) + 5
    box = (middle_x - reach - left, middle_y - reach - top, middle_x + reach - left, middle_y + reach - top)
    cut = grey.point(lambda value: max(value - background, 0)).crop((left, top, left + side, top + side))
    return np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box))


def fingerprints(patches: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The numbers that copies share.

    Args:
        patches: uint8, shape (n, SIDE, SIDE).

    Returns:
        float32, shape (n, LENGTH), of Euclidean norm 1; all 0 for an empty patch. Brightening by a factor, quarter
        turns and mirrors change nothing but the rounding.
    """
    from scipy.fft import dctn

    low = slice(FREQUENCIES)
    # The mean is no part of the numbers, and in float32 its rounding would drown what little an even patch has beside.
    levels = patches.astype(np.float32) - patches.mean(axis=(1, 2), keepdims=True).astype(np.float32)
    sizes = np.abs(dctn(levels, axes=(1, 2), norm="ortho")[:, low, low])
    above = np.triu_indices(FREQUENCIES, 1)
    swapped = sizes.transpose(0, 2, 1)
    own = np.arange(1, FREQUENCIES)
    numbers = np.concatenate(
        [np.maximum(sizes, swapped)[:, *above], np.minimum(sizes, swapped)[:, *above], sizes[:, own, own]], axis=1
    )
    norms = np.linalg.norm(numbers, axis=1, keepdims=True)
    return np.asarray(np.divide(numbers, norms, out=np.zeros_like(numbers), where=norms > 0), dtype=np.float32)
