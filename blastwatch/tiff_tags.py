"""How much the tags of a TIFF file, or of the Exif of another one, may be, counted before Pillow reads them.

Pillow goes through every entry of a directory, several times in a TIFF and with a warning for each that is damaged, and
makes an object of every number that it looks at, so 8 MB of entries or of numbers take it 15 s and 300 MiB. They are
counted here as Pillow finds them; what it passes over, or cannot follow, is its own to say.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from blastwatch.errors import ImageRejected

HEADS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
"""What a TIFF file begins with for Pillow; some of them are no standard's."""

MOST_TAGS = 1024
"""Entries of all directories that are read. Cameras write some 100, microscopes fewer."""

MOST_NUMBERS = 80_000
"""Numbers that are looked at in them together, a fraction as 16. A field of 2048x1536 px in tiles of 16x16 px, the
smallest, has 24,576, and 73,728 where each colour has its own; it takes 0.6 s, mostly for the tiles."""

_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}  # of a value, by type
_WHOLE = {3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 13: "L", 16: "Q"}  # types whose values may be a place in the file
_ONE_PIECE = (1, 2, 7)  # types that Pillow takes as they are, as text or bytes, however long
# But of whatever type, it goes through bits a sample, places of strips and tiles, colours, and kinds of samples.
_GONE_THROUGH = (258, 273, 320, 324, 338, 339)
_FRACTIONS, _AS_MANY = (5, 10), 16  # numbers that one of them is as slow as
_EXIF, _GPS, _INTEROPERABILITY = 34665, 34853, 40965  # tags that lead to directories of their own
# What is looked at in the first directory: size, kind and place of the pixels, resolution, orientation, Adobe's words
# (XMP), colour profile, and what leads on. All others there, those of microscopes among them, may be as long as they
# like. In the other directories all are looked at.
LOOKED_AT = frozenset((
    256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 282, 283, 284, 296, 317, 320, 322, 323, 324, 338, 339, 530, 700,
    34675, _EXIF, _GPS, _INTEROPERABILITY,
))  # fmt: skip
_LEAD_ON = {0: (_EXIF, _GPS), _EXIF: (_INTEROPERABILITY,), _GPS: (), _INTEROPERABILITY: ()}  # 0: the first one


class _Form(NamedTuple):
    """How a file writes its directories, for `struct`: `place` is an offset, `length` the number of entries, `head` the
    tag, type and number of values of one."""

    order: str
    place: str
    length: str
    head: str


class _Entry(NamedTuple):
    """`at` is where its values stand, None where they are not read."""

    tag: int
    type: int
    values: int
    at: int | None


def check_tags(data: bytes, *, whole: bool) -> None:
    """Count what Pillow would read of a TIFF file, or of Exif, which has the same form.

    Args:
        data: from the byte order on; what begins otherwise is let through.
        whole: with the directories of Exif, GPS and interoperability, which Pillow reads too in a TIFF file.

    Raises:
        ImageRejected: there are too many entries or numbers.
    """
    if not data.startswith(HEADS):
        return
    order, big = ("<" if data.startswith(b"II") else ">"), data[2] == 43  # as Pillow tells BigTIFF
    form = (
        _Form(order, order + "Q", order + "Q", order + "HHQ")
        if big
        else _Form(order, order + "L", order + "H", order + "HHL")
    )
    left = [(0, _number(data, 8 if big else 4, form.place))]
    tags = numbers = 0
    while left:
        directory, at = left.pop()
        for entry in _entries(data, at, form):
            tags += 1
            looked_at = directory or entry.tag in LOOKED_AT
            if looked_at and (entry.type not in _ONE_PIECE or entry.tag in _GONE_THROUGH):
                numbers += entry.values * (_AS_MANY if entry.type in _FRACTIONS else 1)
            for found, most, words in ((tags, MOST_TAGS, "tags"), (numbers, MOST_NUMBERS, "numbers in its tags")):
                if found > most:
                    raise ImageRejected("truncated", f"The image is damaged: expected at most {most} {words}.")
            if whole and entry.tag in _LEAD_ON[directory] and entry.type in _WHOLE:
                left.append((entry.tag, _number(data, entry.at, order + _WHOLE[entry.type])))


def _entries(data: bytes, at: int | None, form: _Form) -> Iterator[_Entry]:
    """The entries of the directory at a place, as far as they lie in the file."""
    count = _number(data, at, form.length)
    if at is None or count is None:
        return
    head, room = struct.calcsize(form.head), struct.calcsize(form.place)  # values up to this size stand in the entry
    first = at + struct.calcsize(form.length)
    most = (len(data) - first) // (head + room)
    for place in range(first, first + min(count, most) * (head + room), head + room):
        tag, kind, values = struct.unpack_from(form.head, data, place)
        size = values * _BYTES.get(kind, 0)
        if not 0 < size <= len(data):  # Pillow passes over it
            yield _Entry(tag, kind, 0, None)
        else:
            yield _Entry(tag, kind, values, place + head if size <= room else _number(data, place + head, form.place))


def _number(data: bytes, at: int | None, form: str) -> int | None:
    """A whole number that stands at a place, None where that is none in the file."""
    if at is None or not 0 <= at <= len(data) - struct.calcsize(form):
        return None
    found: int = struct.unpack_from(form, data, at)[0]
    return found
