"""The one way from the bytes of an image file to the input of the network.

    bytes --decode--> RGB image --crop_cell--> cell at fixed scale --normalise--> float32 input

Training, evaluation, serving, batch scoring and monitoring all call these functions, so that the same file gives
the same float32 bits everywhere. Cells keep their scale: size is part of the evidence, and a preprocessing that
makes each cell fill the frame throws it away.
"""

import hashlib
import io
import math
import re
import struct
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from blastwatch.errors import ImageRejected
from blastwatch.tiff_tags import HEADS, check_tags

Pixels = NDArray[np.uint8]
"""An RGB image, uint8, shape (height, width, 3)."""

Lines = NDArray[np.uint8]
"""The same, one line a row: uint8, shape (height, 3 * width)."""

FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")
MAX_BYTES = 8 * 1024 * 1024  # a 600x600 cell of 24 bits is 1.1 MB as BMP, a 2048x1536 field saved as JPEG about 2 MB
MAX_PIXELS = 4_000_000  # a microscope field of 2048x1536 px still fits; a cell image has 202,500 px
MIN_SIDE = 16  # px

# Mean and standard deviation of the ImageNet training images, in units of full scale, in the order R, G, B:
# what torchvision's pretrained weights were trained with, kept for networks trained from scratch.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What Pillow raises for a file that is damaged or says what is not so, at every step: its plugins turn some of what
# they trip over into OSError, and let the rest through. `tests/benchmarks/fuzzing.py` looks whether the list is whole.
_DAMAGE = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, struct.error,
    zlib.error,
)  # fmt: skip

_SUPPORT = 2  # px of the coarser of the two grids on either side that a bicubic filter looks at

# What a JPEG may consist of. Pillow copies all that it has of a file's Exif for each further piece, and libjpeg goes
# through the whole picture for each scan, so a small file of many small ones takes minutes. An ICC profile has at most
# 255 segments, extended XMP one for each 64 KB; a progressive picture mostly has 10 scans, and libtiff too bears 100.
# Before the first scan Pillow goes byte by byte through what stands between two segments.
MOST_SEGMENTS, MOST_SCANS, MOST_BETWEEN = 512, 100, 1 << 16
_MARKER = re.compile(rb"\xff([\x01-\xfe])")
_SEGMENT = re.compile(rb"\xff([\xc0-\xc7\xc9-\xcf\xd9-\xef\xfe])")  # the markers with a length, and the end
# A PNG of 8 MB may be 690,000 empty chunks, which take Pillow 5 s; libpng makes one of each 8 KiB.
MOST_CHUNKS = 4096
_PNG, _CHUNK_HEAD, _CHECKSUM = b"\x89PNG\r\n\x1a\n", struct.Struct(">I4s"), 4  # bytes
_JPEG, _END, _SCAN, _APP1 = b"\xff\xd8\xff", b"\xd9", b"\xda", b"\xe1"

_EXIF = b"Exif\0\0"
_EXIF_HEADS = re.compile(b"^(Exif\0\0){1,2}")  # what Pillow takes away before the tags
_EXIF_AS_TEXT = "Raw profile type exif"  # of a PNG: three lines, then the bytes in hexadecimal digits

_SIXTEEN_BITS = re.compile(r";16[BLN]$")
_BITS_PER_SAMPLE = 258  # of TIFF

# Modes that become RGB without a choice about what the values mean.
_PLAIN_MODES = ("RGB", "L", "P", "1")


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a decoded image becomes network input.

    crop: side of the centred square that is kept, in pixels of the image; what lies outside the image is black.
    size: side of the network's input in pixels; `crop` is resampled to it (bicubic, antialiased).
    mean, std: per channel (R, G, B), in units of full scale (0 to 1).
    """

    crop: int = 320
    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("crop", "size"):
            if getattr(self, name) < MIN_SIDE:
                raise ValueError(f"Expected `{name}` to be at least {MIN_SIDE} px but got {getattr(self, name)}")
        if min(self.std) <= 0:
            raise ValueError(f"Expected `std` to be positive but got {self.std}")

    @property
    def scale(self) -> float:
        """Pixels of the image per pixel of the network's input."""
        return self.crop / self.size


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an image file to RGB.

    Greyscale, palette and bilevel images are converted; an alpha channel is accepted where it is opaque throughout
    and dropped; an EXIF orientation is applied. Anything else (16-bit, CMYK, several pages, transparency) is refused.

    Returns:
        uint8 array of shape (height, width, 3), values 0 to 255.

    Raises:
        ImageRejected: with the reason, when the bytes are not one complete image of an allowed format.
    """
    if not data:
        raise ImageRejected("empty", "Expected an image but got no bytes.")
    if data.startswith(_JPEG):
        _check_segments(data)
    elif data.startswith(_PNG):
        _check_chunks(data)
    elif data.startswith(HEADS):
        check_tags(data, whole=True)
    try:
        # Reads the header alone. Warnings are left as they are: filters belong to the process, and decoding runs in
        # threads (`without_warnings`). Whatever size Pillow warns about is refused below, before a pixel is decoded.
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_header(image, max_pixels)
        image.load()
        _turn_upright(image)
        return np.asarray(_to_rgb(image))
    except UnidentifiedImageError as error:
        raise ImageRejected("not-an-image", f"Expected an image ({', '.join(FORMATS)}) but got other bytes.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageRejected("too-large", f"Expected at most {max_pixels} pixels but got far more.") from error
    except _DAMAGE as error:
        raise ImageRejected("truncated", f"The image is incomplete or damaged: {error}.") from error


def without_warnings() -> None:
    """From now on let Pillow say nothing of damaged tags in this process. For processes that decode what strangers
    send: Python keeps each such warning for ever, and writes it to the log."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _check_segments(data: bytes) -> None:
    """Count the parts of a JPEG as Pillow and libjpeg find them: whatever stands between two of them is skipped."""
    at, scans, between = 2, 0, 0  # behind the marker that begins the file
    exif: list[bytes] = []
    for _ in range(MOST_SEGMENTS + 1):
        found = (_SEGMENT if scans else _MARKER).search(data, at)
        if not scans:  # afterwards it is the picture, or what nobody reads
            between += (len(data) if found is None else found.start()) - at
        if between > MOST_BETWEEN:
            raise ImageRejected(
                "truncated", f"The image is damaged: expected at most {MOST_BETWEEN} bytes of no segment."
            )
        # Pillow takes no notice of an end before the first scan, and nobody reads beyond one after it.
        if found is None or (scans and found[1] == _END):
            _check_exif(b"".join(exif))
            return
        scans += found[1] == _SCAN
        if scans > MOST_SCANS:
            raise ImageRejected("truncated", f"The image is damaged: expected at most {MOST_SCANS} scans.")
        at = found.end()
        if found[1] != _END and _SEGMENT.match(found[0]):
            end = at + max(2, int.from_bytes(data[at : at + 2], "big"))
            if found[1] == _APP1 and not scans and data.startswith(_EXIF, at + 2):
                exif.append(data[at + 2 + (len(_EXIF) if exif else 0) : end])  # as Pillow joins them
            at = end
    raise ImageRejected("truncated", f"The image is damaged: expected at most {MOST_SEGMENTS} segments.")


def _check_chunks(data: bytes) -> None:
    """Count the chunks of a PNG by their lengths, up to its end: nobody reads beyond it."""
    at = len(_PNG)
    for _ in range(MOST_CHUNKS):
        if at + _CHUNK_HEAD.size > len(data):
            return
        length, kind = _CHUNK_HEAD.unpack_from(data, at)
        if kind == b"IEND":
            return
        at += _CHUNK_HEAD.size + length + _CHECKSUM
    raise ImageRejected("truncated", f"The image is damaged: expected at most {MOST_CHUNKS} chunks.")


def _check_header(image: ImageFile.ImageFile, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageRejected("too-large", f"Expected at most {max_pixels} pixels but got {width}x{height}.")
    if min(width, height) < MIN_SIDE:
        raise ImageRejected("too-small", f"Expected sides of at least {MIN_SIDE} px but got {width}x{height}.")
    # Where there are several channels Pillow reads 16 bits as 8: without their lower half, or one as two pixels.
    if _bits(image) > 8:
        raise ImageRejected("mode", "Expected 8 bits a channel but got 16.")
    # Not `n_frames`, for which Pillow goes through every page of a TIFF and looks for each among all before it.
    if getattr(image, "is_animated", False):
        raise ImageRejected("frames", "Expected a single image but got a file of several pages or frames.")


def _check_exif(exif: bytes) -> None:
    check_tags(_EXIF_HEADS.sub(b"", exif), whole=False)


def _turn_upright(image: ImageFile.ImageFile) -> None:
    """Apply the orientation that Exif tells. The image is loaded: a PNG may have its Exif behind the pixels."""
    exif = image.info.get("exif")
    if exif is None and _EXIF_AS_TEXT in image.info:
        exif = bytes.fromhex("".join(image.info[_EXIF_AS_TEXT].split("\n")[3:]))
    if exif is not None:
        _check_exif(exif)
    image.getexif()
    # Read by now. Where it finds them, Pillow writes all tags of an image that it turns anew, which takes long.
    image.info.pop("exif", None)
    image.info.pop(_EXIF_AS_TEXT, None)
    ImageOps.exif_transpose(image, in_place=True)


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits a channel of a TIFF file by its own word, of others 16 where a tile says that values lie so in the file."""
    told = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE)
    if told:
        return int(max(told))
    arguments = [part for tile in image.tile for part in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    return 16 if any(_SIXTEEN_BITS.search(str(part)) for part in arguments) else 8


def _to_rgb(image: Image.Image) -> Image.Image:
    seen_through = "transparency" in image.info  # of a palette, or one colour of PNG
    if image.mode == "RGB" and not seen_through:
        return image
    if image.mode in ("RGBA", "LA") or (seen_through and image.mode in _PLAIN_MODES):
        rgba = image.convert("RGBA")
        if rgba.getchannel("A").getextrema() != (255, 255):
            raise ImageRejected("mode", "Expected an opaque image but got one with transparent pixels.")
        return rgba.convert("RGB")
    if image.mode in _PLAIN_MODES:
        return image.convert("RGB")
    raise ImageRejected("mode", f"Expected 8 bits a channel in RGB or grey but got Pillow mode {image.mode!r}.")


def crop_cell(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Cut the centred square and resample it: the crop that the network sees.

    Args:
        image: uint8, shape (height, width, 3).

    Returns:
        uint8 array of shape (size, size, 3).
    """
    lines = _centred(image, preprocessing.crop)
    if preprocessing.crop == preprocessing.size:
        return np.ascontiguousarray(lines).reshape(len(lines), -1, 3)
    return _resampled(lines, preprocessing.size)


def _centred(image: Pixels, side: int) -> Lines:
    """The centred square. What lies outside the image is black, the background of segmented cells."""
    height, width = image.shape[:2]
    top, left = (height - side) // 2, (width - side) // 2
    if min(top, left) >= 0:
        return image.reshape(height, -1)[top : top + side, 3 * left : 3 * (left + side)]  # not copied
    square = np.zeros((side, side, 3), np.uint8)
    square[max(0, -top) : height - top, max(0, -left) : width - left] = image[
        max(0, top) : top + side, max(0, left) : left + side
    ]
    return square.reshape(side, -1)


def _resampled(lines: Lines, size: int) -> Pixels:
    """What Pillow's bicubic filter makes of a square, bit for bit, with the work for its black surroundings left out.

    The filter gives black where it sees nothing but black, which is more than half of a segmented cell's square.
    """
    result, side = np.zeros((size, size, 3), np.uint8), len(lines)
    rows = np.flatnonzero(lines.max(axis=1))
    if rows.size:
        columns = np.flatnonzero(lines.max(axis=0).reshape(-1, 3).max(axis=1))
        y, x = _Span.around(rows, side, size), _Span.around(columns, side, size)
        part = Image.fromarray(lines.reshape(side, side, 3)[y.seen, x.seen])
        # Each is rounded to 8 bits, so their order counts. Given both at once, Pillow begins with the one that a part's
        # shape makes cheaper; of a square it is this one.
        part = part.resize((x.count, part.height), Image.Resampling.BICUBIC, box=(x.start, 0, x.stop, part.height))
        part = part.resize((x.count, y.count), Image.Resampling.BICUBIC, box=(0, y.start, x.count, y.stop))
        result[y.made, x.made] = np.asarray(part)
    return result


@dataclass(frozen=True, kw_only=True)
class _Span:
    """One axis of the part of a square that is resampled.

    seen: px of the square that the filter looks at. made: px of the result. start, stop: the px of `seen` that those of
    the result stand for.
    """

    seen: slice
    made: slice
    start: int
    stop: int

    @property
    def count(self) -> int:
        return int(self.made.stop - self.made.start)

    @staticmethod
    def around(filled: NDArray[np.intp], side: int, size: int) -> "_Span":
        """Everything that the filled rows or columns of a square have a part in.

        It begins and ends where px of the square and of the result do so together: there Pillow takes the same weights
        as for the whole.
        """
        common = math.gcd(side, size)
        step = side // common
        reach = math.ceil(_SUPPORT * max(1, side / size)) + 1
        first = max(0, int(filled[0]) - reach) // step
        last = min(common, -((-1 - int(filled[-1]) - reach) // step))
        seen = slice(max(0, first * step - reach), min(side, last * step + reach))
        return _Span(
            seen=seen,
            made=slice(first * (size // common), last * (size // common)),
            start=first * step - seen.start,
            stop=last * step - seen.start,
        )


def normalise(crops: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Scale to the network's range: (value / 255 - mean) / std, per channel.

    Each of the 256 values is looked up, so the result does not depend on the batch, the order or the machine.

    Args:
        crops: uint8, shape (n, size, size, 3).

    Returns:
        float32, shape (n, 3, size, size), contiguous.
    """
    if crops.ndim != 4 or crops.shape[-1] != 3 or crops.dtype != np.uint8:
        raise ValueError(f"Expected uint8 of shape (n, size, size, 3) but got {crops.dtype} of shape {crops.shape}")
    out = np.empty((len(crops), 3, *crops.shape[1:3]), dtype=np.float32)
    for channel, table in enumerate(levels(preprocessing)):
        np.take(table, crops[..., channel], out=out[:, channel], mode="clip")  # "raise" would copy the result
    return out


FIRST_LEVELS = (0, 256, 512)
"""Where the row of each channel begins in `levels`, laid out in one line as engines look values up."""


def levels(preprocessing: Preprocessing) -> NDArray[np.float32]:
    """What `normalise` makes of each of the 256 values: float32, shape (3, 256), one row a channel (R, G, B)."""
    values = np.arange(256, dtype=np.float64) / 255.0
    rows = [(values - mean) / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)]
    return np.stack(rows).astype(np.float32)


def to_input(data: bytes, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """From the bytes of one image file to the network's input, float32, shape (3, size, size)."""
    crop = crop_cell(decode(data), preprocessing)
    return np.asarray(normalise(crop[None], preprocessing)[0])


def pixel_digest(image: Pixels) -> str:
    """SHA-256 (hex) of the decoded pixels and their shape: equal for one picture in two lossless formats."""
    height, width = image.shape[:2]
    digest = hashlib.sha256(f"{height}x{width}x3:".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
