"""What one looks at in a cell image without a network: size, shape, stain, brightness, focus. With numpy and Pillow.

The numbers describe the crop that the network sees (`blastwatch.images.crop_cell`), in pixels of the original image,
so that an input of 64 px and one of 224 px give nearly the same. The exceptions are `focus` and `chroma_noise`, which
live in the detail that a smaller input no longer has; they are compared within one model version only.

Every value is finite for every image: black, one colour, or a whole field without a black background.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blastwatch.images import Pixels, Preprocessing


@dataclass(frozen=True, kw_only=True)
class Statistic:
    """One column.

    low_reason, high_reason: why one image is referred; without them none is, and only windows are compared by it.
    ratio: its spread is compared as a factor (sizes). margin: least width of its quality limits.
    """

    name: str
    unit: str
    low_reason: str = ""
    high_reason: str = ""
    ratio: bool = False
    margin: float = 0.0


TABLE: tuple[Statistic, ...] = (
    Statistic(
        name="cell_area",
        unit="px of the image, squared",
        low_reason="the cell is too small",
        high_reason="the cell is too large, or this is a field and not a single segmented cell",
        ratio=True,
    ),
    Statistic(
        name="cell_height",
        unit="px of the image",
        low_reason="the cell is too flat",
        high_reason="the cell is too tall, or this is a field and not a single segmented cell",
        ratio=True,
    ),
    Statistic(
        name="cell_width",
        unit="px of the image",
        low_reason="the cell is too narrow",
        high_reason="the cell is too wide, or this is a field and not a single segmented cell",
        ratio=True,
    ),
    Statistic(
        name="elongation",
        unit="ratio of the axes of the ellipse of equal second moments, 1 for a disc",
        low_reason="the outline is rounder than any known cell",
        high_reason="the outline is too elongated",
        margin=0.5,
    ),
    Statistic(
        name="border",
        unit="share of the crop's edge that is not background, 0 to 1",
        low_reason="the cell lies too far from the edge",
        high_reason="the cell reaches the edge: it is cut off, or this is not a single segmented cell",
        margin=0.1,
    ),
    Statistic(
        name="od_red",
        unit="mean optical density of the cell, red",
        low_reason="the stain is too pale in red",
        high_reason="the stain is too dark in red",
        margin=0.1,
    ),
    Statistic(
        name="od_green",
        unit="mean optical density of the cell, green",
        low_reason="the stain is too pale in green",
        high_reason="the stain is too dark in green",
        margin=0.1,
    ),
    Statistic(
        name="od_blue",
        unit="mean optical density of the cell, blue",
        low_reason="the stain is too pale in blue",
        high_reason="the stain is too dark in blue",
        margin=0.1,
    ),
    Statistic(
        name="dark_share",
        unit="share of the cell's inside in the darker class of its red channel by Otsu's method, 0 to 1",
        low_reason="the dark part of the cell is too small",
        high_reason="the dark part of the cell is too large",
        margin=0.2,
    ),
    Statistic(
        name="brightness",
        unit="mean grey level of the cell, 0 to 255",
        low_reason="the cell is too dark",
        high_reason="the cell is too bright",
        margin=20.0,
    ),
    Statistic(
        name="contrast",
        unit="standard deviation of the grey level within the cell, 0 to 127.5",
        low_reason="the cell has too little contrast",
        high_reason="the cell has too much contrast",
        ratio=True,
    ),
    Statistic(
        name="focus",
        unit="root mean square gradient of the grey level within the cell, per px of the image",
        low_reason="the cell is blurred",
        high_reason="the cell is noisier or sharper than any known cell",
        ratio=True,
    ),
    Statistic(
        name="chroma_noise",
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
    red, green, blue = (np.ascontiguousarray(crop[..., channel]) for channel in range(3))
    mask = np.maximum(np.maximum(red, green), blue) > BACKGROUND_LEVEL
    if not mask.any():
        return dict.fromkeys(STATISTICS, 0.0) | {"elongation": 1.0}
    shape, around = _shape(mask, preprocessing.scale)
    # Most of a crop is background, of which nothing below takes notice.
    red, green, blue, mask, cell = red[around], green[around], blue[around], mask[around], crop[around]
    inside = _inside(mask)
    grey = ((red * np.uint16(_LUMA[0]) + green * np.uint16(_LUMA[1]) + blue * np.uint16(_LUMA[2])) >> 8).astype(
        np.uint8
    )
    chosen = Image.fromarray(inside.view(np.uint8))
    reds, greens, blues, greys = (*_histograms(cell, chosen), *_histograms(grey, chosen))
    brightness = float(greys @ _LEVELS)
    values = shape | {
        "od_red": float(reds @ OPTICAL_DENSITY),
        "od_green": float(greens @ OPTICAL_DENSITY),
        "od_blue": float(blues @ OPTICAL_DENSITY),
        "dark_share": _darker_share(reds),
        "brightness": brightness,
        "contrast": float(np.sqrt(np.dot(greys, (_LEVELS - brightness) ** 2))),
        "focus": _focus(grey, inside) / preprocessing.scale,
        "chroma_noise": _chroma_noise(red, green, blue, inside),
    }
    return {name: values[name] for name in STATISTICS}


def _inside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cell without its outermost pixels, which resampling mixes with the background; all of it where none remain.

    Pixels at the edge of the crop stay: beyond them nothing was mixed in.
    """
    inside = mask.copy()
    inside[1:] &= mask[:-1]
    inside[:-1] &= mask[1:]
    inside[:, 1:] &= mask[:, :-1]
    inside[:, :-1] &= mask[:, 1:]
    return inside if inside.any() else mask


def _histograms(pixels: Pixels, chosen: Image.Image) -> NDArray[np.float64]:
    """Share of the chosen pixels at each of the 256 levels, one row a channel. Pillow counts them in one pass."""
    counts = np.array(Image.fromarray(np.ascontiguousarray(pixels)).histogram(chosen)).reshape(-1, 256)
    return np.asarray(counts / counts[0].sum())


def _shape(mask: NDArray[np.bool_], scale: float) -> tuple[dict[str, float], tuple[slice, slice]]:
    """Extent and moments of the cell from its two profiles and, for the mixed moment, its row centres; and its rows and
    columns with one more on each side where the crop has one, so that the edge of the crop stays it."""
    # Float32 counts pixels exactly, and faster than truths are summed. Nothing here is left to BLAS (`@`), which for so
    # many numbers may wake a thread on every core, beside an engine that needs them.
    weights = mask.astype(np.float32)
    height, width = mask.shape
    rows, columns = (np.einsum(f"yx->{axis}", weights).astype(np.float64) for axis in "yx")
    area = rows.sum()
    y, x = np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64)
    middle_y, middle_x = rows @ y / area, columns @ x / area
    # A pixel is a square and not a point: 1/12 is the variance of a uniform distribution over one pixel.
    yy = rows @ (y - middle_y) ** 2 / area + 1 / 12
    xx = columns @ (x - middle_x) ** 2 / area + 1 / 12
    centres = np.einsum("yx,x->y", weights, (x - middle_x).astype(np.float32))
    xy = float((y - middle_y) @ centres) / area
    root = np.hypot((yy - xx) / 2, xy)
    larger, smaller = (yy + xx) / 2 + root, max((yy + xx) / 2 - root, 1 / 12)
    edge = np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])
    (top, bottom), (left, right) = _ends(rows), _ends(columns)
    values = {
        "cell_area": float(area * scale**2),
        "cell_height": (bottom - top) * scale,
        "cell_width": (right - left) * scale,
        "elongation": float(np.sqrt(larger / smaller)),
        "border": float(edge.mean()),
    }
    return values, (slice(max(0, top - 1), bottom + 1), slice(max(0, left - 1), right + 1))


def _ends(profile: NDArray[np.float64]) -> tuple[int, int]:
    """First place that is filled, and the one behind the last."""
    filled = np.flatnonzero(profile)
    return int(filled[0]), int(filled[-1]) + 1


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


def _focus(grey: Plane, inside: NDArray[np.bool_]) -> float:
    """Root mean square of the differences between neighbours that both lie inside the cell.

    The squared-gradient family is among the most reliable autofocus measures (Santos et al. 1997, J Microsc 188:264).
    """
    levels = grey.astype(np.int16)
    total, pairs = 0.0, 0
    for first, second, both in (
        (levels[:, :-1], levels[:, 1:], inside[:, :-1] & inside[:, 1:]),
        (levels[:-1], levels[1:], inside[:-1] & inside[1:]),
    ):
        difference = (second - first)[both].astype(np.float64)
        total += float(np.einsum("i,i->", difference, difference))  # whole numbers: exact
        pairs += difference.size
    return float(np.sqrt(total / pairs)) if pairs else 0.0


def _chroma_noise(red: Plane, green: Plane, blue: Plane, inside: NDArray[np.bool_]) -> float:
    """Standard deviation of the noise by Immerkaer's estimate (1996, Comput Vis Image Underst 64:300): the mean size of
    the second difference of rows and columns, which no plane and no edge along an axis leaves.

    Of the chroma and not of the grey level: JPEG halves its resolution and rounds it coarsely, so compression takes
    this noise away where it hardly moves any other statistic. 0 where no pixel has all its neighbours in the cell.
    """
    chroma = red * np.int16(_CHROMA[0]) + green * np.int16(_CHROMA[1]) + blue * np.int16(_CHROMA[2])  # within 32,640
    levels = chroma.astype(np.int32)
    rows = levels[:-2] - 2 * levels[1:-1] + levels[2:]
    both = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    whole = inside[:-2] & inside[1:-1] & inside[2:]
    whole = whole[:, :-2] & whole[:, 1:-1] & whole[:, 2:]
    sizes = np.abs(both[whole])
    return float(sizes.mean() * np.sqrt(np.pi / 2) / 6 / 256) if sizes.size else 0.0
