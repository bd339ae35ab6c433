"""A cell that is drawn, not photographed. Needs numpy and Pillow alone."""

from pathlib import Path

import numpy as np


def draw_cell(seed: int = 0, *, side: int = 450, radius: float = 90.0):
    """A purple disc with a darker one in it, on black: uint8 (side, side, 3)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] - side / 2
    distance = np.hypot(y, x) * random.uniform(0.9, 1.1)
    image = np.zeros((side, side, 3), np.float64)
    image[distance < radius] = (170, 130, 190)
    image[distance < 0.75 * radius] = (110, 60, 150)
    image[distance < radius] += random.normal(0, 8, (int((distance < radius).sum()), 3))
    return image.clip(0, 255).astype(np.uint8)


def write_cell(path: Path, seed: int = 0) -> Path:
    """Save a drawn cell; the suffix names the format."""
    from PIL import Image

    Image.fromarray(draw_cell(seed)).save(path)
    return path
