"""Small pictures of cells that travel inside a page."""

import base64
import io
from pathlib import Path

from PIL import Image

from blastwatch.images import Preprocessing, crop_cell, decode

SIDE = 112  # px
QUALITY = 80


def thumbnail(path: Path) -> str:
    """The cell, cropped as the network sees it, as a `data:` address of a WebP image."""
    crop = crop_cell(decode(path.read_bytes()), Preprocessing(crop=320, size=SIDE))
    data = io.BytesIO()
    Image.fromarray(crop).save(data, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
