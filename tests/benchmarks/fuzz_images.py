"""Files for the fuzzing of the decoder: mutated cells in five formats, bombs, polyglots; each made from a number."""

import io
import pickle
import struct
import zipfile
import zlib
from functools import lru_cache

import numpy as np
from PIL import Image

from tests.service_packages import draw_cell

SIDES = (24, 48, 96, 150)
NUMBERS = (0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
TOKENS = (b"\x00" * 8, b"\xff" * 8, b"IHDR", b"IDAT", b"IEND", b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"RIFF", b"VP8X")


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@lru_cache(maxsize=1)
def seeds():
    """Intact files by name: what the mutations begin with."""
    files = {}
    for side in SIDES:
        image = Image.fromarray(draw_cell(side, side=side, radius=side / 5))
        grey, palette = image.convert("L"), image.quantize(32)
        alpha = image.convert("RGBA")
        deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        twice = {"save_all": True, "append_images": [image]}
        made = {
            "bmp rgb": (image, "BMP", {}), "bmp palette": (palette, "BMP", {}), "bmp alpha": (alpha, "BMP", {}),
            "bmp bilevel": (image.convert("1"), "BMP", {}), "png rgb": (image, "PNG", {}), "png 16": (deep, "PNG", {}),
            "png palette": (palette, "PNG", {}), "png alpha": (alpha, "PNG", {}), "png frames": (image, "PNG", twice),
            "jpeg": (image, "JPEG", {}), "jpeg grey": (grey, "JPEG", {}), "jpeg mpo": (image, "MPO", twice),
            "jpeg progressive": (image, "JPEG", {"progressive": True, "restart_marker_blocks": 4}),
            "jpeg cmyk": (image.convert("CMYK"), "JPEG", {}), "webp": (image, "WEBP", {}),
            "webp lossless": (alpha, "WEBP", {"lossless": True}), "webp frames": (image, "WEBP", twice),
            "tiff pages": (image, "TIFF", twice), "tiff 16": (deep, "TIFF", {}),
            "tiff big": (image, "TIFF", {"big_tiff": True}),
        }  # fmt: skip
        for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "lzma", "zstd"):
            made[f"tiff {compression}"] = (image, "TIFF", {"compression": compression})
        made["tiff group4"] = (image.convert("1"), "TIFF", {"compression": "group4"})
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "x" * 300
        made["jpeg exif"] = (image, "JPEG", {"exif": exif})
        for name, (picture, kind, options) in made.items():
            files[f"{name} {side}"] = encode(picture, kind, **options)
    return files


def make(seed, number):
    """The file of a number: its kind (`mutant`, `bomb`, `polyglot`), its name, its bytes; the same each time."""
    random = np.random.default_rng((seed, number))
    turn = number % 20
    if turn < 17:
        names = sorted(seeds())
        name = names[int(random.integers(len(names)))]
        return "mutant", name, mutate(seeds()[name], random)
    if turn < 18:
        names = sorted(POLYGLOTS)
        name = names[int(random.integers(len(names)))]
        return "polyglot", name, _perhaps_mutated(POLYGLOTS[name](_any(random), random), random)
    names = sorted(BOMBS)
    name = names[int(random.integers(len(names)))]
    return "bomb", name, _perhaps_mutated(BOMBS[name](random), random)


def mutate(data, random):
    """One to eight changes, half of them in the head, where sizes and offsets stand."""
    if data.startswith(b"\x89PNG") and random.random() < 0.5:
        return png_with_good_sums(data, random)
    data = bytearray(data)
    for _ in range(int(random.integers(1, 9))):
        data = _change(data, random) or bytearray(b"x")
    return bytes(data)


def _change(data, random):
    reach = len(data) if random.random() < 0.5 else min(len(data), 256)
    at, kind = int(random.integers(reach)), int(random.integers(8))
    length = int(random.integers(1, 64))
    if kind == 0:
        data[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        data[at : at + length] = random.bytes(min(length, len(data) - at))
    elif kind == 2:
        value = int(NUMBERS[int(random.integers(len(NUMBERS)))])
        packed = struct.pack("<I" if random.random() < 0.5 else ">I", value)[: int(random.choice((1, 2, 4)))]
        data[at : at + len(packed)] = packed
    elif kind == 3:
        del data[at : at + length]
    elif kind == 4:
        data[at:at] = data[at : at + length]
    elif kind == 5:
        data[at:at] = TOKENS[int(random.integers(len(TOKENS)))]
    elif kind == 6:
        other = _any(random)
        data[at:] = other[int(random.integers(len(other))) :]
    elif random.random() < 0.3:
        del data[int(random.integers(len(data))) :]
    return data


def _any(random):
    names = sorted(seeds())
    return seeds()[names[int(random.integers(len(names)))]]


def _perhaps_mutated(data, random):
    return mutate(data, random) if random.random() < 0.5 else data


# -- PNG, whose checksums would keep most mutations out ---------------------------------------------------------


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks)


def ihdr(width, height, depth=8, colour=2, interlace=0):
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)


def png_with_good_sums(data, random):
    """Change, drop, double and swap chunks, and write the right checksum under each."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], bytearray(data[at + 8 : at + 8 + length])))
        at += length + 12
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(chunks)))
        kind, body = chunks[place]
        turn = int(random.integers(4))
        if turn == 0 and body:
            chunks[place] = kind, _change(bytearray(body), random)
        elif turn == 1 and len(chunks) > 1:
            del chunks[place]
        elif turn == 2:
            chunks.insert(place, (kind, bytearray(body)))
        else:
            extra = (b"tRNS", b"PLTE", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"gAMA", b"pHYs")
            chunks.insert(
                place, (extra[int(random.integers(len(extra)))], bytearray(random.bytes(int(random.integers(40)))))
            )
    return png(*((kind, bytes(body)) for kind, body in chunks))


# -- bombs: small files that would be large ---------------------------------------------------------------------


@lru_cache(maxsize=4)
def zeros(megabytes):
    """So many megabytes of nothing, deflated: a thousandth of them."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(b"\0" * 2**20) for _ in range(megabytes)) + packer.flush()


def _side(random):
    return int(random.choice((1999, 2000, 2001, 20_000, 65_535, 2**31 - 1, 2**32 - 1)))


def _jpeg_of(random):
    data = bytearray(seeds()["jpeg progressive 96" if random.random() < 0.5 else "jpeg 96"])
    for mark in (b"\xff\xc0", b"\xff\xc2"):
        at = data.find(mark)
        if at > 0:
            struct.pack_into(">HH", data, at + 5, _side(random) % 65536, _side(random) % 65536)
    return bytes(data)


def segment(marker, body):
    """One segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def _segments(random):
    """A JPEG of a few hundred thousand tiny ones, of which Pillow joins those of one kind."""
    kinds = ((0xE1, b"Exif\0\0"), (0xE2, b"ICC_PROFILE\0\1\1"), (0xED, b"Photoshop 3.0\0"), (0xFE, b""))
    marker, head = kinds[int(random.integers(len(kinds)))]
    jpeg, one = seeds()["jpeg 96"], segment(marker, head + b"x" * int(random.integers(12)))
    return jpeg[:2] + one * (int(random.choice((500, 8_000_000))) // len(one)) + jpeg[2:]


@lru_cache(maxsize=2)
def tiff_of_pages(count):
    """A grey TIFF of 16x16 px and so many pages, each of the same pixels: 42 bytes a page."""
    tags = ((256, 3, 16), (257, 3, 16), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 16))
    first = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in (*tags, (279, 4, 256)))
    start = 8 + 256
    following = start + 2 + len(first) + 4
    parts = [b"II*\0", struct.pack("<I", start), bytes(256), struct.pack("<H", 9), first, struct.pack("<I", following)]
    short = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in (tags[0], tags[1], tags[5]))
    for left in range(count - 2, -1, -1):
        following += 42
        parts.append(struct.pack("<H", 3) + short + struct.pack("<I", following if left else 0))
    return b"".join(parts)


def _tiff_of(random):
    """Tags with large counts, sizes and offsets, also to themselves."""
    compression, count = int(random.choice((1, 5, 8, 32773, 50000))), int(random.choice((1, 2**20, 2**31 - 1)))
    tags = [
        (256, 4, 1, _side(random)), (257, 4, 1, _side(random)), (258, 3, 1, 8), (259, 3, 1, compression),
        (262, 3, 1, 1), (273, 4, count, 8), (277, 3, 1, 1), (278, 4, 1, _side(random)),
        (279, 4, 1, int(random.choice((0, 8, 2**31 - 1)))),
    ]  # fmt: skip
    body = b"".join(struct.pack("<HHII", tag, kind, count, value % 2**32) for tag, kind, count, value in tags)
    following = int(random.choice((0, 8)))  # 8: its own next page
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + struct.pack("<I", following) + zeros(4)[:4000]


def tiff_of_tags(more, values=b"", *, big=False):
    """A grey TIFF of 16x16 px with more tags: tag, type, count and where their values are, None where `values` are."""
    head, entry, count = (16, "<HHQQ", "<Q") if big else (8, "<HHII", "<H")
    needed = ((256, 16), (257, 16), (258, 8), (259, 1), (262, 1), (273, head), (277, 1), (278, 16), (279, 256))
    given = {tag for tag, *_ in more}
    tags = [*((tag, 3, 1, value) for tag, value in needed if tag not in given), *more]
    start = head + 256
    behind = start + struct.calcsize(count) + len(tags) * struct.calcsize(entry) + struct.calcsize(entry[0] + entry[-1])
    first = b"II+\0" + struct.pack("<HHQ", 8, 0, start) if big else b"II*\0" + struct.pack("<I", start)
    rows = (struct.pack(entry, *tag, behind if place is None else place) for *tag, place in tags)
    directory = struct.pack(count, len(tags)) + b"".join(rows) + struct.pack(entry[0] + entry[-1], 0)
    return first + bytes(256) + directory + values


def nowhere(count):
    """So many tags whose values are beyond the end of the file, for each of which Pillow warns."""
    return [(1000 + number % 60_000, 2, 2**24, 2**31 - 1) for number in range(count)]


@lru_cache(maxsize=3)
def _tiff_of_nowhere(count):
    return tiff_of_tags(nowhere(count), big=count > 65_000)


def _tiff_of_tags(random):
    return _tiff_of_nowhere(int(random.choice((1000, 60_000, 390_000))))


def _tiff_of_numbers(random):
    tag, kind = int(random.choice((258, 273, 282, 320, 324, 338, 34665))), int(random.choice((1, 3, 4, 5, 12)))
    count = int(random.choice((1000, 30_000, 990_000)))
    return tiff_of_tags([(tag, kind, count, None)], bytes(8 * count))


def with_exif(kind, exif):
    """A cell of 24 px as PNG, WebP or JPEG, with tags in the form of a TIFF."""
    if kind == "png":
        data = seeds()["png rgb 24"]
        return data[:33] + chunk(b"eXIf", exif) + data[33:]
    if kind == "webp":
        return encode(Image.fromarray(draw_cell(24, side=24, radius=5)), "WEBP", exif=b"Exif\0\0" + exif)
    data = seeds()["jpeg 24"]
    pieces = (exif[at : at + 65_000] for at in range(0, len(exif), 65_000))
    return data[:2] + b"".join(segment(0xE1, b"Exif\0\0" + piece) for piece in pieces) + data[2:]


def _exif_of(random):
    kind = ("png", "webp", "jpeg")[int(random.integers(3))]
    tags, numbers = int(random.choice((1000, 60_000))), int(random.choice((1000, 900_000)))
    return with_exif(kind, tiff_of_tags([(274, 5, numbers, None), *nowhere(tags)], bytes(8 * numbers)))


def _bmp_of(random):
    depth, packed = ((8, 1), (4, 2), (24, 0), (32, 3), (1, 0))[int(random.integers(5))]
    head = struct.pack(
        "<IiiHHIIiiII", 40, _side(random) % 2**31, -(_side(random) % 2**31), 1, depth, packed, 0, 0, 0, 2**31, 0
    )
    return b"BM" + struct.pack("<IHHI", 2**31, 0, 0, 54) + head + b"\0" * 2000


def _webp_of(random):
    size = (_side(random) - 1) % 2**24
    canvas = struct.pack("<I", size)[:3] * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([int(random.choice((0, 2, 16, 18))), 0, 0, 0]) + canvas
    return b"RIFF" + struct.pack("<I", len(body) + 2000) + body + seeds()["webp 96"][12:]


def _text(random):
    packed = b"key\0\0" + zeros(int(random.choice((8, 64))))
    kind = (b"zTXt", b"iCCP")[int(random.integers(2))]
    if random.random() < 0.3:
        kind, packed = b"iTXt", b"key\0\x01\0\0\0" + zeros(64)
    picture = zlib.compress(b"\0" * (49 * 3 * 48))
    return png(ihdr(48, 48), *[(kind, packed)] * int(random.choice((1, 40))), (b"IDAT", picture), (b"IEND", b""))


def png_of_empty_chunks(count, *, first=True):
    """A cell of 24 px as PNG with so many chunks of 12 bytes that mean nothing, before its pixels or behind them."""
    data = seeds()["png rgb 24"]
    at = 33 if first else len(data) - 12
    return data[:at] + chunk(b"xxXx", b"") * count + data[at:]


def _empty_chunks(random):
    return png_of_empty_chunks(int(random.choice((1000, 100_000))), first=bool(random.integers(2)))


BOMBS = {
    "png of any size": lambda random: png(
        ihdr(_side(random), _side(random), interlace=int(random.integers(2))), (b"IDAT", zeros(16)), (b"IEND", b"")
    ),
    "png that holds more": lambda random: png(ihdr(64, 64), (b"IDAT", zeros(64)), (b"IEND", b"")),
    "png of the largest size": lambda random: png(ihdr(2000, 2000), (b"IDAT", zeros(12)), (b"IEND", b"")),
    "png of texts": _text,
    "png of many chunks": lambda random: png(
        ihdr(48, 48), *[(b"tEXt", b"a\0b")] * 20_000, (b"IDAT", zeros(1)), (b"IEND", b"")
    ),
    "png of empty chunks": _empty_chunks,
    "jpeg": _jpeg_of,
    "jpeg of many scans": lambda random: (data := seeds()["jpeg progressive 150"])[:-2]
    + data[data.rfind(b"\xff\xda") : -2] * 300 + b"\xff\xd9",
    "jpeg of many segments": _segments,
    "tiff": _tiff_of,
    "tiff of many pages": lambda random: tiff_of_pages(int(random.choice((2, 190_000)))),
    "tiff of many tags": _tiff_of_tags,
    "tiff of many numbers": _tiff_of_numbers,
    "exif of many tags": _exif_of,
    "bmp": _bmp_of,
    "webp": _webp_of,
}  # fmt: skip


# -- polyglots: files that are two things -----------------------------------------------------------------------


def _archive(data, _random):
    buffer = io.BytesIO(data)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(zipfile.ZipInfo("x.txt"), "x" * 100)  # else the time of the day would be in it
    return buffer.getvalue()


POLYGLOTS = {
    "and an archive": _archive,
    "and a page": lambda data, random: data + b"<html><script>alert(1)</script></html>",
    "page before": lambda data, random: b"<html>" + data,
    "and a pickle": lambda data, random: data + pickle.dumps({"a": list(range(50))}),
    "pickle before": lambda data, random: pickle.dumps([1]) + data,
    "and another image": lambda data, random: data + _any(random),
    "pdf before": lambda data, random: b"%PDF-1.7\n" + data,
    "bmp around": lambda data, random: b"BM" + struct.pack("<IHHI", len(data), 0, 0, 2 + 12 + 40) + data,
    "gif before": lambda data, random: b"GIF89a" + data,
    "script in bmp": lambda data, random: b"BM=1;/*" + data[7:] + b"*/",
    "eps before": lambda data, random: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n" + data,
}
