"""Which pictures are kept, that they hold the pixels and nothing else, and that what waits is bounded."""

import io
import random
import uuid
import weakref

import numpy as np
import pytest
from PIL import Image

from blastwatch.images import decode
from blastwatch.settings import load
from monitoring import image_capture
from monitoring.database import StoreUnavailable
from monitoring.image_capture import ImageCapture, reason_to_keep
from monitoring.image_store import open_image_store
from monitoring.store import open_store
from tests.cohorts import record
from tests.drawn import draw_cell
from tests.running import until

PATIENCE = 20  # seconds
REFERRED = record(uuid.uuid4().hex)
SURE = record(uuid.uuid4().hex, decision="hem")


@pytest.fixture
def keep(tmp_path):
    """Opens a capture with these settings; counts what it tells."""
    opened = []

    def start(policy="sampled", share="1"):
        settings = load(
            {"BLASTWATCH_HOME": str(tmp_path), "BLASTWATCH_KEEP_IMAGES": policy, "BLASTWATCH_KEEP_SHARE": share}
        )
        told = {"stored": 0, "dropped": 0, "failed": 0}

        def counting(what):
            def count(number):
                told[what] += number

            return {f"on_{what}": count}

        capture = ImageCapture(settings, **counting("stored"), **counting("dropped"), **counting("failed"))
        opened.append(capture)
        return capture, told, settings.predictions_url

    yield start
    for capture in opened:
        capture.close()


def bmp(seed=0, side=64):
    out = io.BytesIO()
    Image.fromarray(draw_cell(seed, side=side, radius=20)).save(out, "BMP")
    return out.getvalue()


@pytest.mark.parametrize(
    ("policy", "share", "cell", "reason"),
    [
        ("never", 1.0, REFERRED, ""),
        ("sampled", 1.0, REFERRED, "sampled"),
        ("sampled", 0.0, REFERRED, ""),
        ("referred", 0.0, REFERRED, "referred"),
        ("referred", 0.0, SURE, ""),
        ("referred", 1.0, SURE, "sampled"),
    ],
)
def test_the_policy(policy, share, cell, reason):
    assert reason_to_keep(policy, share, cell) == reason


def test_a_share_is_kept_and_a_larger_one_keeps_the_same():
    draw = random.Random(1)
    cells = [record(uuid.UUID(int=draw.getrandbits(128), version=4).hex) for _ in range(4000)]
    kept = {share: {cell.id for cell in cells if reason_to_keep("sampled", share, cell)} for share in (0.1, 0.3)}
    assert kept[0.1] < kept[0.3]
    assert [len(kept[share]) / 4000 for share in (0.1, 0.3)] == pytest.approx([0.1, 0.3], abs=0.02)


def test_a_picture_holds_the_pixels_and_nothing_else_of_the_file(keep):
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "Mrs Example, ward 3", 6  # description, orientation
    out = io.BytesIO()
    Image.fromarray(draw_cell(1, side=64, radius=20)[:, :48]).save(out, "JPEG", exif=exif, comment=b"ward 3")
    capture, told, url = keep()
    capture.offer(REFERRED, out.getvalue())
    capture.close()
    assert told == {"stored": 1, "dropped": 0, "failed": 0}
    with open_image_store(url) as images:
        png = images.pictures([REFERRED.id, "another"])[REFERRED.id]
    assert np.array_equal(decode(png), decode(out.getvalue())) and decode(png).shape == (48, 64, 3)
    assert b"ward" in out.getvalue() and b"ward" not in png and not Image.open(io.BytesIO(png)).info


def test_what_waits_is_bounded_by_its_bytes_and_a_prediction_does_not_need_its_picture(keep, monkeypatch):
    def away(_url):
        raise StoreUnavailable("away")

    file = bmp()
    monkeypatch.setattr(image_capture, "QUEUE_BYTES", 3 * len(file))
    monkeypatch.setattr(image_capture, "open_image_store", away)
    capture, told, url = keep()
    for _ in range(10):
        capture.offer(record(uuid.uuid4().hex), file)
    until(lambda: told["failed"], PATIENCE)
    assert told["dropped"] == 7
    monkeypatch.undo()
    capture.close()
    assert (told["stored"], told["dropped"]) == (3, 7)
    with open_store(url) as store:
        store.add([REFERRED])
        assert store.count() == 1 and store.read(pictured=True).empty


def test_what_was_written_makes_room(keep, monkeypatch):
    file = bmp()
    monkeypatch.setattr(image_capture, "QUEUE_BYTES", len(file))
    capture, told, _ = keep()
    for number in range(3):
        capture.offer(record(uuid.uuid4().hex), file)
        until(lambda number=number: told["stored"] > number, PATIENCE)
    assert told == {"stored": 3, "dropped": 0, "failed": 0}


def test_while_the_database_is_away_no_more_than_one_picture_is_a_png(keep, monkeypatch):
    """A PNG is several times as large as the JPEG that it comes from, which is what the bound counts."""
    seen = []

    class Away:
        def add(self, records):
            seen.append([weakref.ref(one) for one in records])
            raise StoreUnavailable("away")

        def close(self):
            pass

    monkeypatch.setattr(image_capture, "open_image_store", lambda _url: Away())
    monkeypatch.setattr("monitoring.capture._log.disabled", True)  # what pytest keeps of a log keeps all of an error
    capture, told, _ = keep()
    for _ in range(10):
        capture.offer(record(uuid.uuid4().hex), bmp())
    until(lambda: told["failed"] > 1, PATIENCE)
    assert {len(records) for records in seen} == {1}
    until(lambda: not any(one() for records in seen[:2] for one in records), PATIENCE)
    monkeypatch.setattr(capture._writer, "_deadline", 0.0)  # nothing more to wait for
