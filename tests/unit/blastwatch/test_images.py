import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, TiffImagePlugin

from blastwatch.errors import ImageRejected
from blastwatch.images import Preprocessing, crop_cell, decode, normalise, pixel_digest, to_input
from tests.benchmarks import fuzz_images

SHAPE = Preprocessing(crop=64, size=32)


def encode(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture():
    values = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", ["BMP", "PNG", "TIFF"])
def test_lossless_formats_have_one_pixel_digest(picture, kind):
    assert pixel_digest(decode(encode(picture, kind))) == pixel_digest(np.asarray(picture))


def test_lossless_webp_too(picture):
    assert pixel_digest(decode(encode(picture, "WEBP", lossless=True))) == pixel_digest(np.asarray(picture))


def test_the_shape_is_part_of_the_pixel_digest():
    flat = np.zeros((20, 40, 3), np.uint8)
    assert pixel_digest(flat) != pixel_digest(flat.reshape(40, 20, 3))


def test_grey_palette_and_opaque_alpha_become_rgb(picture):
    for mode in ("L", "P", "RGBA", "1"):
        assert decode(encode(picture.convert(mode), "PNG")).shape == (80, 90, 3)


def test_exif_orientation_is_applied(picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(picture, "JPEG", exif=exif)).shape == (90, 80, 3)


def made_to_be_refused(picture, reason):
    if reason == "mode":
        clear = picture.convert("RGBA")
        clear.putalpha(100)
        return encode(clear, "PNG")
    if reason == "frames":
        return encode(picture, "TIFF", save_all=True, append_images=[picture])
    if reason == "too-large":
        return encode(Image.new("1", (30000, 30000)), "PNG")
    return {
        "empty": b"",
        "not-an-image": b"this is text, not an image",
        "truncated": encode(picture, "BMP")[:5000],
        "too-small": encode(picture.resize((8, 8)), "PNG"),
    }[reason]


@pytest.mark.parametrize(
    "reason", ["empty", "not-an-image", "truncated", "mode", "frames", "too-small", "too-large"]
)  # fmt: skip
def test_each_refusal_has_its_reason(picture, reason):
    with pytest.raises(ImageRejected) as caught:
        decode(made_to_be_refused(picture, reason))
    assert caught.value.reason == reason in ImageRejected.REASONS


def tiff_with(picture, page, tag, changed):
    """A TIFF of two pages; in one a tag's entry (number, kind, count, value), or with None the link, is another."""
    data = bytearray(encode(picture, "TIFF", save_all=True, append_images=[picture]))
    (at,) = struct.unpack_from("<I", data, 4)
    for _ in range(page):
        at = struct.unpack_from("<I", data, at + 2 + 12 * struct.unpack_from("<H", data, at)[0])[0]
    (count,) = struct.unpack_from("<H", data, at)
    places = {struct.unpack_from("<H", data, at + 2 + 12 * n)[0]: at + 2 + 12 * n for n in range(count)}
    if tag is None:
        struct.pack_into("<I", data, at + 2 + 12 * count, changed)
    else:
        struct.pack_into("<HHII", data, places[tag], *changed)
    return bytes(data)


DAMAGED_TIFFS = {
    "a second page without a width": (1, 256, (255, 4, 1, 90)),
    "a third page that is nowhere": (1, None, 0xFFFFFF),
    "a second page of no known colours": (1, 262, (262, 3, 1, 9999)),
}


@pytest.mark.parametrize("fault", sorted(DAMAGED_TIFFS))
def test_a_further_page_is_refused_whatever_stands_in_it(picture, fault):
    """Found by `tests.benchmarks.fuzzing`: Pillow raises all kinds of errors where it is asked to read one."""
    with pytest.raises(ImageRejected) as caught:
        decode(tiff_with(picture, *DAMAGED_TIFFS[fault]))
    assert caught.value.reason == "frames"


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "MPO"])
def test_several_pages_or_frames_are_refused_and_one_is_not(picture, kind):
    other = picture.rotate(90)
    with pytest.raises(ImageRejected) as caught:
        decode(encode(picture, kind, save_all=True, append_images=[other]))
    assert caught.value.reason == "frames"
    assert decode(encode(picture, kind, save_all=True)).shape == (80, 90, 3)


def test_a_tiff_of_endless_pages_is_refused_by_its_first(monkeypatch):
    read = []
    load = TiffImagePlugin.ImageFileDirectory_v2.load
    monkeypatch.setattr(
        TiffImagePlugin.ImageFileDirectory_v2, "load", lambda self, file: read.append(file.tell()) or load(self, file)
    )
    data = fuzz_images.tiff_of_pages(190_000)
    assert 7_900_000 < len(data) < 8_000_000
    with pytest.raises(ImageRejected) as caught:
        decode(data)
    assert caught.value.reason == "frames" and len(set(read)) == 1


def refused_unopened(data, monkeypatch):
    """The message of a refusal that needs nothing of Pillow."""
    with monkeypatch.context() as patch, pytest.raises(ImageRejected) as caught:
        patch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was asked"))
        decode(data)
    assert caught.value.reason == "truncated"
    return str(caught.value)


@pytest.mark.parametrize(("marker", "head"), [
    (0xE1, b"Exif\0\0"), (0xE1, b""), (0xE2, b"ICC_PROFILE\0\1\1"), (0xED, b"Photoshop 3.0\0"), (0xFE, b""),
])  # fmt: skip
@pytest.mark.parametrize("before", [b"", b"\xff\xd9", b"\xff\xff", b"\xff\xe4\0\0junk", b"\xff\xd0\xff\xd8"])
def test_a_jpeg_of_many_segments_is_refused_before_pillow_joins_them(picture, monkeypatch, marker, head, before):
    jpeg = encode(picture, "JPEG")
    many = fuzz_images.segment(marker, head + b"x" * 10)
    data = jpeg[:2] + before + many * (8_000_000 // len(many)) + jpeg[2:]
    assert "at most 512 segments" in refused_unopened(data, monkeypatch)


@pytest.mark.parametrize("piece", [b"\xff\xd9", b"\xff\xd0", b"\xff\xf0"], ids=lambda piece: piece.hex())
def test_a_jpeg_of_markers_without_a_length_is_refused_unopened(picture, monkeypatch, piece):
    jpeg = encode(picture, "JPEG")
    assert "at most 512 segments" in refused_unopened(jpeg[:2] + 4_000_000 * piece + jpeg[2:], monkeypatch)


@pytest.mark.parametrize("byte", [b"\xff", b"\x00", b"x"])
@pytest.mark.parametrize("rest", [True, False])
def test_a_jpeg_of_much_between_its_segments_is_refused_unopened(picture, monkeypatch, byte, rest):
    jpeg = encode(picture, "JPEG")
    first = 4 + int.from_bytes(jpeg[4:6], "big")  # behind the first segment

    def filled(count):
        return jpeg[:first] + count * byte + jpeg[first:] * rest

    assert "bytes of no segment" in refused_unopened(filled(8_000_000), monkeypatch)
    if rest:
        assert np.array_equal(decode(filled(60_000)), decode(jpeg))


def test_a_jpeg_of_as_many_segments_as_there_may_be_is_read(picture, monkeypatch):
    jpeg = encode(picture, "JPEG")
    own = 1 + sum(jpeg.count(bytes([0xFF, marker])) for marker in (0xE0, 0xDB, 0xC0, 0xC4))  # and the scan
    comment = fuzz_images.segment(0xFE, b"x")
    assert np.array_equal(decode(jpeg[:2] + (512 - own) * comment + jpeg[2:]), decode(jpeg))
    assert "at most 512 segments" in refused_unopened(jpeg[:2] + (513 - own) * comment + jpeg[2:], monkeypatch)


@pytest.mark.parametrize("first", [True, False])
def test_a_png_of_many_chunks_is_refused_before_pillow_reads_each(monkeypatch, first):
    own = 3  # of which the end is not counted
    file = fuzz_images.png_of_empty_chunks(4096 - own, first=first)
    assert decode(file + bytes(12 * 5000)).shape == (24, 24, 3)  # what follows the end is nobody's chunk
    for more in (4096 - own + 1, 690_000):
        file = fuzz_images.png_of_empty_chunks(more, first=first)
        assert "at most 4096 chunks" in refused_unopened(file, monkeypatch)


def test_a_jpeg_of_many_scans_is_refused_before_each_goes_through_the_picture(picture, monkeypatch):
    jpeg = encode(picture, "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    scan, hidden = jpeg[last:-2], fuzz_images.segment(0xFE, b"\xff\xd9")  # a comment that looks like the end
    assert np.array_equal(decode(jpeg + 1000 * scan), decode(jpeg))  # nobody reads what follows the end
    assert "at most 100 scans" in refused_unopened(jpeg[:-2] + hidden + 100 * scan + b"\xff\xd9", monkeypatch)


def test_a_jpeg_of_a_camera_is_read(picture):
    """With as much beside the picture as there may be: a preview, a large colour profile and many words."""
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "x" * 60_000, 1
    jpeg = encode(picture, "JPEG", exif=exif, icc_profile=bytes(200 * 65_519), progressive=True, comment="x" * 60_000)
    preview = b"\xff\xd8" + b"\xff\xda\0\2" * 10_000 + b"\xff\xd9"
    words = [(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000))] * 100 + [(0xED, b"Photoshop 3.0\0")] * 40
    words.append((0xE1, b"Exif\0\0" + preview))
    more = b"".join(fuzz_images.segment(*word) for word in words)
    assert np.array_equal(decode(jpeg[:2] + more + jpeg[2:]), decode(encode(picture, "JPEG", progressive=True)))


def png(values, colours, *, bits=8, seen_through=b""):
    """A PNG file of values (height, width, channels) that Pillow itself does not write."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = values.shape[:2]
    lines = b"".join(b"\0" + line.astype(f">u{bits // 8}").tobytes() for line in values)
    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))]
    parts += [chunk(b"tRNS", seen_through)] if seen_through else []
    parts += [chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("colours", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_a_channel_are_refused_in_png(colours, channels):
    """Pillow opens all but grey as 8 bits and drops the lower half, and with it all of a camera's 12 bits but four."""
    values = np.random.default_rng(0).integers(0, 4096, (32, 40, channels))
    values[..., channels - 1] = 65535  # opaque
    with pytest.raises(ImageRejected) as caught:
        decode(png(values, colours, bits=16))
    assert caught.value.reason == "mode"
    if channels > 1:
        assert decode(png(values >> 8, colours)).shape == (32, 40, 3)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_16_bits_a_channel_are_refused_in_tiff(picture, compression, planar):
    values, written = np.asarray(picture).astype(np.uint16) << 4, io.BytesIO()
    if planar == "separate":
        values = np.moveaxis(values, -1, 0)
    tifffile.imwrite(written, values, photometric="rgb", planarconfig=planar, compression=compression)
    with pytest.raises(ImageRejected) as caught:
        decode(written.getvalue())
    assert caught.value.reason == "mode"


@pytest.mark.parametrize(("colours", "channels", "clear"), [(2, 3, (7, 7, 7)), (0, 1, (7,))])
def test_a_colour_that_is_seen_through_is_refused(colours, channels, clear):
    """PNG may name one, outside of a palette too."""
    values = np.full((32, 40, channels), 90)
    named = struct.pack(f">{len(clear)}H", *clear)
    assert decode(png(values, colours, seen_through=named)).max() == 90  # no pixel has it
    values[3, 4] = 7
    with pytest.raises(ImageRejected, match="transparent pixels"):
        decode(png(values, colours, seen_through=named))


def test_16_bit_and_cmyk_are_refused(picture):
    deep = Image.fromarray(np.full((40, 40), 40000, np.uint16))
    for data in (encode(deep, "PNG"), encode(picture.convert("CMYK"), "JPEG")):
        with pytest.raises(ImageRejected) as caught:
            decode(data)
        assert caught.value.reason == "mode"


def test_formats_off_the_list_are_refused(picture):
    with pytest.raises(ImageRejected):
        decode(encode(picture, "GIF"))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_an_image_or_a_refusal(data):
    for prefix in (b"", b"BM", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"\xff\xd8\xff", b"RIFF"):
        try:
            assert decode(prefix + data).ndim == 3
        except ImageRejected as refusal:
            assert refusal.reason in ImageRejected.REASONS


def test_crop_keeps_the_centre_and_pads_with_black(picture):
    values = np.asarray(picture)
    whole = crop_cell(values, Preprocessing(crop=64, size=64))
    assert np.array_equal(whole, values[8:72, 13:77])
    wide = crop_cell(values, Preprocessing(crop=100, size=100))
    assert np.array_equal(wide[10:90, 5:95], values) and wide[:10].max() == 0


def whole_by_pillow(image, shape):
    height, width = image.shape[:2]
    left, top = (width - shape.crop) // 2, (height - shape.crop) // 2
    square = Image.fromarray(image).crop((left, top, left + shape.crop, top + shape.crop))
    return np.asarray(square.resize((shape.size, shape.size), Image.Resampling.BICUBIC))


@settings(deadline=None, max_examples=300)
@given(
    st.tuples(st.integers(16, 140), st.integers(16, 140)),
    st.tuples(st.integers(16, 150), st.integers(16, 150)).filter(lambda sides: sides[0] != sides[1]),
    st.integers(0, 2**32 - 1),
)
def test_a_part_on_black_is_resampled_as_the_whole_is(sides, shape, seed):
    noise = np.random.default_rng(seed)
    image = np.zeros((*sides, 3), np.uint8)
    (top, bottom), (left, right) = (np.sort(noise.integers(0, side + 1, 2)) for side in sides)
    image[top:bottom, left:right] = noise.integers(0, 256, (bottom - top, right - left, 3))
    preprocessing = Preprocessing(crop=shape[0], size=shape[1])
    np.testing.assert_array_equal(crop_cell(image, preprocessing), whole_by_pillow(image, preprocessing))


@pytest.mark.parametrize("size", [64, 96, 128, 160, 224, 256, 384])
def test_wherever_the_part_begins_and_ends(size):
    preprocessing, noise = Preprocessing(crop=320, size=size), np.random.default_rng(size)
    for first in range(64, 76):
        image = np.zeros((450, 450, 3), np.uint8)
        image[first : first + 140, 450 - first - 170 : 450 - first] = noise.integers(0, 256, (140, 170, 3))
        np.testing.assert_array_equal(crop_cell(image, preprocessing), whole_by_pillow(image, preprocessing))


def test_scale_is_fixed_not_fitted():
    """A cell twice as wide stays twice as wide."""
    small, large = np.zeros((2, 450, 450, 3), np.uint8)
    small[200:250, 200:250] = 255
    large[175:275, 175:275] = 255
    widths = [(crop_cell(image, Preprocessing())[112, :, 0] > 127).sum() for image in (small, large)]
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)


@settings(deadline=None)
@given(arrays(np.uint8, (2, 16, 16, 3)))
def test_normalise_against_the_formula_and_against_torchvision(crops):
    import torch
    from torchvision.transforms.v2.functional import normalize

    shape = Preprocessing(crop=16, size=16)
    ours = normalise(crops, shape)
    scaled = torch.from_numpy(crops).permute(0, 3, 1, 2).double() / 255
    theirs = normalize(scaled, list(shape.mean), list(shape.std))
    assert ours.dtype == np.float32 and np.allclose(ours, theirs.numpy(), atol=1e-6)


def test_a_cell_has_the_same_bits_alone_and_in_a_batch(picture):
    data = encode(picture, "BMP")
    crops = np.stack([crop_cell(decode(data), SHAPE)] * 5)
    batch = normalise(crops, SHAPE)
    assert all(np.array_equal(to_input(data, SHAPE), row) for row in batch)


@pytest.mark.parametrize("wrong", [{"size": 4}, {"crop": 0}, {"std": (0.0, 1.0, 1.0)}])
def test_impossible_preprocessing(wrong):
    with pytest.raises(ValueError, match="Expected"):
        Preprocessing(**wrong)


def test_normalise_names_the_wrong_shape():
    with pytest.raises(ValueError, match=r"\(n, size, size, 3\)"):
        normalise(np.zeros((16, 16, 3), np.uint8), SHAPE)
