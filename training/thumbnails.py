"""Small pictures of cells that travel inside a page."""

import base64
import io
from pathlib import Path

from PIL import Image

from blastwatch.errors import DataError
from blastwatch.images import Preprocessing, crop_cell, decode

SIDE = 112  # px
QUALITY = 80


def thumbnail(path: Path) -> str:
    """The cell, cropped as the network sees it, as a `data:` address of a WebP image.

    Raises:
        DataError: where the file cannot be read, or is no image that can be used.
    """
    try:
        read = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"Expected the image {path}, which the manifest names, but it cannot be read: {error.strerror}. Put the "
            "images back where they were imported from, or import them anew."
        ) from error
    crop = crop_cell(decode(read), Preprocessing(crop=320, size=SIDE))
    data = io.BytesIO()
    Image.fromarray(crop).save(data, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()
