"""How many tags and numbers a TIFF file or Exif may have: few enough to be read at once, and all that others write."""

import io
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from blastwatch.errors import ImageRejected
from blastwatch.images import decode
from blastwatch.tiff_tags import HEADS, LOOKED_AT, MOST_NUMBERS, MOST_TAGS, check_tags
from tests.benchmarks.fuzz_images import nowhere, tiff_of_tags, with_exif

NEEDED = 9  # tags that `tiff_of_tags` has by itself
EXIF, GPS, INTEROPERABILITY, ORIENTATION = 34665, 34853, 40965, 274

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")


def refused(data):
    """The message of a refusal that takes no time."""
    began = time.thread_time()
    with pytest.raises(ImageRejected) as caught:
        decode(data)
    assert time.thread_time() - began < 0.5
    assert caught.value.reason == "truncated"
    return str(caught.value)


def directory(*tags):
    """One within a classic TIFF."""
    return struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)


@pytest.mark.parametrize("big", [False, True])
def test_a_tiff_of_many_tags_is_refused_before_pillow_warns_of_each(monkeypatch, big):
    most = nowhere(MOST_TAGS - NEEDED)
    assert decode(tiff_of_tags(most, big=big)).shape == (16, 16, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    for more in (nowhere(MOST_TAGS - NEEDED + 1), nowhere(390_000 if big else 60_000)):
        assert f"at most {MOST_TAGS} tags" in refused(tiff_of_tags(more, big=big))


@pytest.mark.parametrize("tag", [258, 273, 282, 320, 324, 338, 339, ORIENTATION, 530, EXIF])
@pytest.mark.parametrize("kind", [3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 16])
def test_a_tiff_of_many_numbers_is_refused(monkeypatch, tag, kind):
    """Pillow makes an object of each: of 990,000 fractions in 6 s, of 1,990,000 places of strips in 15 s."""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
    assert f"at most {MOST_NUMBERS} numbers" in refused(tiff_of_tags([(tag, kind, 900_000, None)], bytes(7_200_000)))


@pytest.mark.parametrize("kind", [3, 4, 5, 6, 12])
def test_numbers_that_nobody_looks_at_are_let_through(kind):
    """IPTC, the words of microscopes, 16-bit transfer curves: Pillow makes them numbers only when asked for them."""
    for tag in (301, 1000, 33723, 34412, 65000):
        file, began = tiff_of_tags([(tag, kind, 900_000, None)], bytes(7_200_000)), time.thread_time()
        assert decode(file).shape == (16, 16, 3)
        assert time.thread_time() - began < 0.5
        assert decode(with_exif("png", file)).shape == (24, 24, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}, {"tiffinfo": {ORIENTATION: 6}}]
)
def test_pillow_looks_at_no_other_tags(monkeypatch, mode, options):
    file, more, asked = io.BytesIO(), {"tiffinfo": {65000: "x", 270: "y", 33723: "z"}} | options, set()
    Image.new(mode, (32, 24)).save(file, "TIFF", dpi=(300, 300), **more)
    look = TiffImagePlugin.ImageFileDirectory_v2.__getitem__

    def noted(directory, tag):
        asked.add(tag)
        return look(directory, tag)

    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "__getitem__", noted)
    decode(file.getvalue())
    assert {256, 257, 258, 259} <= asked <= LOOKED_AT


@pytest.mark.parametrize("kind", [1, 2, 7])
def test_bytes_and_text_are_numbers_where_pillow_goes_through_them(kind):
    for tag in (258, 273, 320, 324, 338, 339):
        assert "numbers" in refused(tiff_of_tags([(tag, kind, 900_000, None)], bytes(900_000)))
    for tag in (270, 34675, 50839, 37500):  # a description, a colour profile, ImageJ's words, a camera's
        assert decode(tiff_of_tags([(tag, kind, 900_000, None)], bytes(900_000))).shape == (16, 16, 3)


def test_the_directories_of_exif_and_gps_count_too():
    deep = directory((INTEROPERABILITY, 4, 1, 256 + 8 + 2 + 12 * (NEEDED + 1) + 4 + 2 + 12 + 4))
    for tag, below in ((EXIF, b""), (GPS, b""), (EXIF, deep)):
        for many, words in ((nowhere(60_000), "tags"), ([(1, 5, 6000, 600)], "numbers")):
            file = tiff_of_tags([(tag, 4, 1, None)], below + directory(*many) + bytes(60_000))
            assert words in refused(file)
        file = tiff_of_tags([(tag, 4, 1, None)], below + directory(*nowhere(100)))
        assert decode(file).shape == (16, 16, 3)


def test_directories_that_lead_to_themselves_end():
    itself = 8 + 256
    check_tags(tiff_of_tags([(EXIF, 4, 1, itself), (GPS, 4, 1, itself), (INTEROPERABILITY, 4, 1, itself)]), whole=True)
    again = tiff_of_tags([(EXIF, 4, 1, itself)] * 500)
    with pytest.raises(ImageRejected):
        check_tags(again, whole=True)
    check_tags(again, whole=False)


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_exif_of_many_tags_or_numbers_is_refused(kind):
    assert "tags" in refused(with_exif(kind, tiff_of_tags(nowhere(60_000))))
    fractions = tiff_of_tags([(ORIENTATION, 5, 900_000, None)], bytes(7_200_000))
    assert "numbers" in refused(with_exif(kind, fractions))
    upright = with_exif(kind, tiff_of_tags([(ORIENTATION, 3, 1, 6), *nowhere(MOST_TAGS - NEEDED - 1)]))
    assert decode(upright).shape == (24, 24, 3)


def test_exif_in_the_text_of_a_png_is_counted_too():
    exif, text, file = tiff_of_tags(nowhere(30_000)), PngInfo(), io.BytesIO()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n", zip=True)
    Image.new("RGB", (32, 32)).save(file, "PNG", pnginfo=text)
    assert "tags" in refused(file.getvalue())


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF"])
def test_every_orientation_is_applied_as_pillow_does(kind):
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    for turned in range(1, 9):
        exif, file = Image.Exif(), io.BytesIO()
        exif[ORIENTATION], exif[0x010E] = turned, "a cell"
        exif.get_ifd(EXIF)[0x829A] = 0.25
        picture.save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        whole = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
        np.testing.assert_array_equal(decode(file.getvalue()), np.asarray(whole.convert("RGB")))


@pytest.mark.parametrize("options", [
    {"tile": (16, 16)}, {"rowsperstrip": 1}, {"bigtiff": True, "tile": (16, 16)}, {"byteorder": ">", "tile": (16, 16)},
    {"description": "x" * 100_000}, {"compression": "zlib", "tile": (16, 16)},
])  # fmt: skip
def test_a_field_in_the_smallest_tiles_is_read(options):
    field, file = np.random.default_rng(0).integers(0, 256, (1536, 2048, 3), dtype=np.uint8), io.BytesIO()
    tifffile.imwrite(file, field, photometric="rgb", **options)
    np.testing.assert_array_equal(decode(file.getvalue()), field)


def test_a_field_in_the_smallest_tiles_of_each_colour_is_read():
    file = io.BytesIO()
    field = np.random.default_rng(0).integers(0, 256, (3, 1536, 2048), dtype=np.uint8)
    tifffile.imwrite(file, field, photometric="rgb", planarconfig="separate", tile=(16, 16))
    np.testing.assert_array_equal(decode(file.getvalue()), np.moveaxis(field, 0, 2))


def test_all_bytes_are_counted_or_let_through():
    random = np.random.default_rng(3)
    for _ in range(3000):
        head = HEADS[int(random.integers(len(HEADS)))]
        check = head + random.bytes(int(random.integers(60)))
        try:
            check_tags(check, whole=True)
        except ImageRejected as error:
            assert error.reason == "truncated"


def test_a_service_keeps_no_warnings():
    """In a process of its own, since filters belong to the process; damaged tags are warned of with their numbers."""
    script = """
import sys
import PIL.TiffImagePlugin
from blastwatch.images import decode, without_warnings
from tests.benchmarks.fuzz_images import nowhere, tiff_of_tags
if sys.argv[1] == "quiet":
    without_warnings()
assert decode(tiff_of_tags(nowhere(200))).shape == (16, 16, 3)
print(len(getattr(PIL.TiffImagePlugin, "__warningregistry__", {})))
"""
    said = {}
    for how in ("loud", "quiet"):
        words = [sys.executable, "-W", "default", "-c", script, how]
        done = subprocess.run(words, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
        said[how] = int(done.stdout), done.stderr
    assert said["loud"][0] > 200 and "Skipping tag" in said["loud"][1]
    assert said["quiet"][0] <= 1 and "Skipping tag" not in said["quiet"][1]
