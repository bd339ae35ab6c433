"""What one looks at in a cell image without a network: size, shape, stain, brightness, focus. With numpy and Pillow.

The numbers describe the crop that the network sees (`blastwatch.images.crop_cell`), in pixels of the original image,
so that an input of 64 px and one of 224 px give nearly the same. The exceptions are `focus` and `chroma_noise`, which
live in the detail that a smaller input no longer has; they are compared within one model version only.

Every value is finite for every image: black, one colour, or a whole field without a black background.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blastwatch.images import Pixels, Preprocessing


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One column.

    title: in plain words, for the drift page. low_reason, high_reason: why one image is referred; without them none is,
    and only windows are compared by it. ratio: its spread is compared as a factor (sizes). margin: least width of its
    quality limits.
    """

    name: str
    title: str
    unit: str
    low_reason: str = ""
    high_reason: str = ""
    ratio: bool = False
    margin: float = 0.0


TABLE: tuple[Statistic, ...] = (
    Statistic(
        name="cell_area",
        title="area of the cell",
        unit="px of the image, squared",
        low_reason="the cell is too small",
        high_reason="the cell is too large, or this is a field and not a single segmented cell",
        ratio=True,
    ),
    Statistic(
        name="cell_height",
        title="height of the cell",
        unit="px of the image",
        low_reason="the cell is too flat",
        high_reason="the cell is too tall, or this is a field and not a single segmented cell",
        ratio=True,
    ),
    Statistic(
        name="cell_width",
        title="width of the cell",
        unit="px of the image",
        low_reason="the cell is too narrow",
        high_reason="the cell is too wide, or this is a field and not a single segmented cell",
        ratio=True,
    ),
    Statistic(
        name="elongation",
        title="elongation of the cell",
        unit="ratio of the axes of the ellipse of equal second moments, 1 for a disc",
        low_reason="the outline is rounder than any known cell",
        high_reason="the outline is too elongated",
        margin=0.5,
    ),
    Statistic(
        name="border",
        title="cell at the edge of the picture",
        unit="share of the crop's edge that is not background, 0 to 1",
        low_reason="the cell lies too far from the edge",
        high_reason="the cell reaches the edge: it is cut off, or this is not a single segmented cell",
        margin=0.1,
    ),
    Statistic(
        name="od_red",
        title="darkness in red light",
        unit="mean optical density of the cell, red",
        low_reason="the stain is too pale in red",
        high_reason="the stain is too dark in red",
        margin=0.1,
    ),
    Statistic(
        name="od_green",
        title="darkness in green light",
        unit="mean optical density of the cell, green",
        low_reason="the stain is too pale in green",
        high_reason="the stain is too dark in green",
        margin=0.1,
    ),
    Statistic(
        name="od_blue",
        title="darkness in blue light",
        unit="mean optical density of the cell, blue",
        low_reason="the stain is too pale in blue",
        high_reason="the stain is too dark in blue",
        margin=0.1,
    ),
    Statistic(
        name="dark_share",
        title="share of the dark part",
        unit="share of the cell's inside in the darker class of its red channel by Otsu's method, 0 to 1",
        low_reason="the dark part of the cell is too small",
        high_reason="the dark part of the cell is too large",
        margin=0.2,
    ),
    Statistic(
        name="brightness",
        title="brightness",
        unit="mean grey level of the cell, 0 to 255",
        low_reason="the cell is too dark",
        high_reason="the cell is too bright",
        margin=20.0,
    ),
    Statistic(
        name="contrast",
        title="contrast",
        unit="standard deviation of the grey level within the cell, 0 to 127.5",
        low_reason="the cell has too little contrast",
        high_reason="the cell has too much contrast",
        ratio=True,
    ),
    Statistic(
        name="focus",
        title="sharpness",
        unit="root mean square gradient of the grey level within the cell, per px of the image",
        low_reason="the cell is blurred",
        high_reason="the cell is noisier or sharper than any known cell",
        ratio=True,
    ),
    Statistic(
        name="chroma_noise",
        title="fine grain of colour",
        unit="standard deviation of the noise in the blue-difference chroma within the cell, in grey levels",
        ratio=True,  # no reason to refer: cameras differ by more than patients, and a cell saved as JPEG can be read
    ),
)

STATISTICS: tuple[str, ...] = tuple(statistic.name for statistic in TABLE)
"""Names of the columns, in this order wherever they are stored."""

# Segmented cells lie on exact black; bicubic resampling leaves a fringe of faint values around them. A pixel belongs
# to the cell when its brightest channel exceeds this level: the darkest pixels of C-NMC cells have about 40.
BACKGROUND_LEVEL = 12

# Optical density -log10(I / I0) of each level (Ruifrok & Johnston 2001, Anal Quant Cytol Histol 23:291-299) with the
# full scale as I0; level 0 counts as 1, which bounds the density at 2.41.
OPTICAL_DENSITY: NDArray[np.float64] = -np.log10(np.maximum(np.arange(256), 1) / 255.0)

# Rec. 601 luma and blue-difference chroma (Cb) in 256ths, so that levels stay whole numbers.
_LUMA = (77, 150, 29)
_CHROMA = (-43, -85, 128)
_LEVELS = np.arange(256, dtype=np.float64)

Plane = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def image_statistics(crop: Pixels, preprocessing: Preprocessing) -> dict[str, float]:
    """The statistics of one cell.

    Args:
        crop: uint8, shape (size, size, 3), from `crop_cell` with the same preprocessing.

    Returns:
        One finite number for each name in `STATISTICS`, in the units of `TABLE`. Without any cell (a black image)
        all are 0 but `elongation`, which is 1.
    """
    if crop.ndim != 3 or crop.shape[2] != 3 or crop.dtype != np.uint8:
        raise ValueError(f"Expected uint8 of shape (size, size, 3) but got {crop.dtype} of shape {crop.shape}")
    span = _span(crop)
    if span is None:
        return dict.fromkeys(STATISTICS, 0.0) | {"elongation": 1.0}
    part = _part(crop, *span)  # most of a crop is background, of which nothing below takes notice
    inside = _inside(part)
    reds, greens, blues = _histograms(part, inside)
    brightness, contrast = _brightness_and_contrast(part.grey, inside)
    scale = preprocessing.scale
    values = _shape(part, scale) | {
        "cell_height": (span[0].stop - span[0].start) * scale,
        "cell_width": (span[1].stop - span[1].start) * scale,
        "border": _border(crop, *span),
        "od_red": float(reds @ OPTICAL_DENSITY),
        "od_green": float(greens @ OPTICAL_DENSITY),
        "od_blue": float(blues @ OPTICAL_DENSITY),
        "dark_share": _darker_share(reds),
        "brightness": brightness,
        "contrast": contrast,
        "focus": _focus(part, inside) / scale,
        "chroma_noise": _chroma_noise(part, inside),
    }
    return {name: values[name] for name in STATISTICS}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The part of a crop with the cell, and one more row and column on each side where the crop has one.

    Planes are flat, so that numpy takes each in one stride: the neighbours of a pixel to the right and below stand 1
    and `width` further on. Each row ends with a column of background that the crop does not have, which keeps the
    end of a row from being taken for a neighbour of the next one's start.

    pixels: uint8, shape (height, width - 1, 3), as in the crop. planes: uint8, shape (3, height * width).
    mask: bool, shape (height * width): whether the pixel belongs to the cell. grey: uint8, shape (height * width).
    """

    pixels: Pixels
    planes: Plane
    mask: Mask
    grey: Plane
    height: int
    width: int


def _span(crop: Pixels) -> tuple[slice, slice] | None:
    """Rows and columns from the cell's first to its last; None where there is no cell."""
    lines = crop.reshape(len(crop), -1)
    rows = np.flatnonzero(lines.max(axis=1) > BACKGROUND_LEVEL)
    if not rows.size:
        return None
    columns = np.flatnonzero(lines.max(axis=0).reshape(-1, 3).max(axis=1) > BACKGROUND_LEVEL)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _part(crop: Pixels, rows: slice, columns: slice) -> _Part:
    around = (slice(max(0, rows.start - 1), rows.stop + 1), slice(max(0, columns.start - 1), columns.stop + 1))
    pixels = crop[around]
    height, width = pixels.shape[0], pixels.shape[1] + 1
    planes = np.zeros((3, height, width), np.uint8)
    planes[:, :, :-1] = pixels.transpose(2, 0, 1)
    red, green, blue = planes = planes.reshape(3, -1)
    brightest = np.maximum(red, green)
    np.maximum(brightest, blue, out=brightest)
    luma = red * np.uint16(_LUMA[0])
    luma += green * np.uint16(_LUMA[1])
    luma += blue * np.uint16(_LUMA[2])
    return _Part(
        pixels=pixels,
        planes=planes,
        mask=brightest > BACKGROUND_LEVEL,
        grey=(luma >> 8).astype(np.uint8),
        height=height,
        width=width,
    )


def _inside(part: _Part) -> Mask:
    """The cell without its outermost pixels, which resampling mixes with the background; all of it where none remain.

    Pixels at the edge of the crop stay: beyond them nothing was mixed in.
    """
    beside = part.mask.copy()
    beside.reshape(part.height, part.width)[:, -1] = True  # no background of the crop: it takes nothing away
    inside = part.mask.copy()
    for step in (1, part.width):
        inside[step:] &= beside[:-step]
        inside[:-step] &= beside[step:]
    return inside if inside.any() else part.mask


def _histograms(part: _Part, inside: Mask) -> NDArray[np.float64]:
    """Share of the chosen pixels at each of the 256 levels, one row a channel. Pillow counts them in one pass."""
    chosen = Image.fromarray(np.ascontiguousarray(_rows(inside.view(np.uint8), part)))
    counts = np.array(Image.fromarray(np.ascontiguousarray(part.pixels)).histogram(chosen), np.int64).reshape(3, 256)
    return np.asarray(counts / counts[0].sum())


def _rows(plane: Plane, part: _Part) -> Plane:
    """A flat plane as rows, without the column that the crop does not have."""
    return plane.reshape(part.height, part.width)[:, :-1]


def _brightness_and_contrast(grey: Plane, inside: Mask) -> tuple[float, float]:
    chosen = grey * inside.view(np.uint8)
    pixels, total = np.count_nonzero(inside), int(chosen.sum(dtype=np.int64))
    # Whole numbers to the end: one level has a contrast of exactly 0.
    spread = pixels * _squares(chosen) - total**2
    return total / pixels, math.sqrt(spread) / pixels


def _squares(levels: Plane) -> int:
    """Sum of the squares, exact."""
    return int(np.multiply(levels, levels, dtype=np.uint16).sum(dtype=np.int64))


def _shape(part: _Part, scale: float) -> dict[str, float]:
    """Area and elongation of the cell from its two profiles and, for the mixed moment, its row centres."""
    # Float32 counts pixels exactly, and faster than truths are summed. Nothing here is left to BLAS (`@`), which for so
    # many numbers may wake a thread on every core, beside an engine that needs them.
    weights = _rows(part.mask.view(np.uint8), part).astype(np.float32)
    height, width = weights.shape
    rows, columns = (np.einsum(f"yx->{axis}", weights).astype(np.float64) for axis in "yx")
    area = rows.sum()
    y, x = np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64)
    y -= rows @ y / area
    x -= columns @ x / area
    # A pixel is a square and not a point: 1/12 is the variance of a uniform distribution over one pixel.
    yy, xx = rows @ y**2 / area + 1 / 12, columns @ x**2 / area + 1 / 12
    xy = float(y @ np.einsum("yx,x->y", weights, x.astype(np.float32))) / area
    root = math.hypot((yy - xx) / 2, xy)
    larger, smaller = (yy + xx) / 2 + root, max((yy + xx) / 2 - root, 1 / 12)
    return {"cell_area": float(area * scale**2), "elongation": math.sqrt(larger / smaller)}


def _border(crop: Pixels, rows: slice, columns: slice) -> float:
    """Share of the crop's edge that belongs to the cell."""
    height, width = crop.shape[:2]
    if rows.start > 0 and columns.start > 0 and rows.stop < height and columns.stop < width:
        return 0.0
    edge = np.concatenate([crop[0], crop[-1], crop[1:-1, 0], crop[1:-1, -1]])
    return float((edge.max(axis=1) > BACKGROUND_LEVEL).mean())


def _darker_share(levels: NDArray[np.float64]) -> float:
    """Share of the darker class by Otsu's threshold (Otsu 1979, IEEE Trans SMC 9:62-66); 1 where there is one level.

    The dyes of the nucleus absorb red, so in a cell with much cytoplasm the darker class is the nucleus; a blast that
    is nearly all nucleus is split by its chromatin instead. It describes, it does not segment.
    """
    share = np.cumsum(levels)[:-1]
    partial = np.cumsum(levels * _LEVELS)[:-1]
    total = levels @ _LEVELS
    both = share * (1 - share)
    split = both > 1e-12
    if not split.any():
        return 1.0
    between = np.zeros_like(share)
    between[split] = (total * share[split] - partial[split]) ** 2 / both[split]
    return float(share[np.argmax(between)])


def _focus(part: _Part, inside: Mask) -> float:
    """Root mean square of the differences between neighbours that both lie inside the cell.

    The squared-gradient family is among the most reliable autofocus measures (Santos et al. 1997, J Microsc 188:264).
    """
    total = pairs = 0
    for step in (1, part.width):
        first, second = part.grey[:-step], part.grey[step:]
        both = inside[:-step] & inside[step:]
        difference = np.maximum(first, second)
        difference -= np.minimum(first, second)
        difference *= both.view(np.uint8)
        total += _squares(difference)
        pairs += int(np.count_nonzero(both))
    return math.sqrt(total / pairs) if pairs else 0.0


def _chroma_noise(part: _Part, inside: Mask) -> float:
    """Standard deviation of the noise by Immerkaer's estimate (1996, Comput Vis Image Underst 64:300): the mean size of
    the second difference of rows and columns, which no plane and no edge along an axis leaves.

    Of the chroma and not of the grey level: JPEG halves its resolution and rounds it coarsely, so compression takes
    this noise away where it hardly moves any other statistic. 0 where no pixel has all its neighbours in the cell.
    """
    chroma = np.zeros(part.mask.shape, np.int16)  # within 32,640
    for plane, weight in zip(part.planes, _CHROMA, strict=True):
        chroma += plane * np.int16(weight)
    levels, whole = chroma.astype(np.float32), inside  # whole numbers below 2**24: exact
    for step in (part.width, 1):
        middle = levels[step:-step]
        levels = levels[: -2 * step] + levels[2 * step :]
        levels -= middle
        levels -= middle
        whole = whole[: -2 * step] & whole[step:-step] & whole[2 * step :]
    pixels = np.count_nonzero(whole)
    if not pixels:
        return 0.0
    np.abs(levels, out=levels)
    levels *= whole
    return float(levels.sum(dtype=np.float64) / pixels * np.sqrt(np.pi / 2) / 6 / 256)
