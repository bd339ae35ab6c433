"""Intact image files of many kinds, each made from a number: sizes from 16 px to twice the crop, colours, formats.

Some of them the decoder must refuse (16 bit, CMYK, transparency, several pages): everybody must refuse the same ones.
"""

import io

import numpy as np
from PIL import Image

SIDES = (16, 17, 31, 64, 99, 160, 319, 320, 321, 322, 449, 450, 451, 600, 641)
ORIENTATION = 0x0112
GREYS = ("L", "LA", "1", "I;16")

# Formats and their options, by what they keep.
WAYS = (
    ("BMP", {}), ("PNG", {}), ("PNG", {"interlace": 1}), ("PNG", {"compress_level": 1}), ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "packbits"}), ("TIFF", {"big_tiff": True}), ("WEBP", {"lossless": True}),
    ("WEBP", {"quality": 80}), ("JPEG", {"quality": 95}), ("JPEG", {"quality": 60, "subsampling": 2}),
    ("JPEG", {"progressive": True}),
)  # fmt: skip
MODES = ("RGB", "RGB", "RGB", "L", "P", "P adaptive", "1", "RGBA", "LA", "RGBA clear", "CMYK", "I;16", "pages")
BEARS = {
    "BMP": ("RGB", "L", "P", "P adaptive", "1", "RGBA"),
    "PNG": ("RGB", "L", "P", "P adaptive", "1", "RGBA", "LA", "RGBA clear", "I;16"),
    "TIFF": ("RGB", "L", "P", "P adaptive", "1", "RGBA", "CMYK", "I;16", "pages"),
    "WEBP": ("RGB", "L", "RGBA", "RGBA clear", "pages"),
    "JPEG": ("RGB", "L", "1", "CMYK"),
}
"""Modes that Pillow writes in each format."""

REFUSED = ("RGBA clear", "CMYK", "I;16", "pages")
SUFFIXES = {"BMP": ".bmp", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "JPEG": ".jpg"}


def odd_image(number: int, *, seed: int = 0) -> tuple[str, str, bytes]:
    """The file of a number: what is odd about it, its suffix, its bytes; the same each time."""
    random = np.random.default_rng((seed, number))
    kind, options = WAYS[int(random.integers(len(WAYS)))]
    mode = str(random.choice([mode for mode in MODES if mode in BEARS[kind]]))
    width, height = (int(side) for side in random.choice(SIDES, 2))
    image = _in_mode(_picture(width, height, random), mode)
    options = dict(options)
    if mode in ("1", "I;16") and kind == "TIFF":
        options.pop("compression", None)
    if mode == "pages":
        options |= {"save_all": True, "append_images": [image.rotate(90)]}
    if kind in ("JPEG", "TIFF", "WEBP", "PNG") and mode == "RGB" and random.random() < 0.3:
        exif = Image.Exif()
        exif[ORIENTATION] = int(random.integers(1, 9))
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return f"{kind} {mode} {width}x{height}", SUFFIXES[kind], buffer.getvalue()


def _picture(width: int, height: int, random: np.random.Generator) -> Image.Image:
    """A disc of noise on black somewhere near the middle, or noise throughout."""
    values = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if random.random() < 0.8:
        y, x = np.mgrid[:height, :width]
        radius = random.uniform(0.1, 0.6) * min(width, height)
        middle = random.uniform(0.4, 0.6, 2) * (height, width)
        values[np.hypot(y - middle[0], x - middle[1]) > radius] = 0
    return Image.fromarray(values)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if mode == "P adaptive":
        return image.quantize(64)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode == "RGBA clear":
        clear = image.convert("RGBA")
        clear.putpixel((0, 0), (9, 9, 9, 254))
        return clear
    return image if mode == "pages" else image.convert(mode)
