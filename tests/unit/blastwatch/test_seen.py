"""What a version has seen, by the pixels: against Python's own sets."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from blastwatch.errors import PackageError
from blastwatch.package import SEEN, Package, open_package
from blastwatch.seen import BYTES, SEEN_SIDES, SeenImages, read_seen, write_seen
from tests.packages import make_package

# Few values a byte, so that equal ones and those that end in nothing come often: numpy drops zeros at an end of text.
DIGESTS = st.lists(st.sampled_from([b"\0", b"\1", b"\xff"]), min_size=BYTES, max_size=BYTES).map(b"".join)


@pytest.fixture
def package(tmp_path) -> Package:
    return open_package(make_package(tmp_path / "package"))


def unsealed(package, rows) -> Package:
    write_seen(package.folder, pd.DataFrame(rows, columns=["side", "pixel_sha256"]))
    return package


@given(known=st.lists(DIGESTS, max_size=20), asked=st.lists(DIGESTS, max_size=20))
def test_membership_is_that_of_a_set(known, asked):
    seen = SeenImages(np.unique(np.array(known, dtype=f"S{BYTES}")))
    asked = [*asked, *known]
    assert seen.among([digest.hex() for digest in asked]).tolist() == [digest in set(known) for digest in asked]
    assert len(seen) == len(set(known)) and all(digest.hex() in seen for digest in known)


def test_each_side_is_kept_and_the_test_side_is_not(package):
    rows = [
        (side, f"{place:064x}") for place, side in enumerate(("train", "validation", "calibration", "test", "train"))
    ]
    found = unsealed(package, rows)
    asked = [digest for _, digest in rows]
    assert read_seen(found).among(asked).tolist() == [True, True, True, False, True]
    assert read_seen(found, "train", "validation").among(asked).tolist() == [True, True, False, False, True]


def test_sides_without_an_image(package):
    found = read_seen(unsealed(package, []))
    assert len(found) == 0 and f"{7:064x}" not in found


def test_a_package_of_a_format_before_does_not_say(package):
    (package.folder / SEEN).unlink()
    assert read_seen(replace(package, info=replace(package.info, format=6))) is None
    with pytest.raises(PackageError, match=f"{SEEN} of the package cannot be read"):
        read_seen(package)


@pytest.mark.parametrize(
    "part", [np.zeros((2, 31), np.uint8), np.zeros((2, BYTES), np.float32), np.zeros(64, np.uint8)]
)
def test_what_is_no_digest_in_the_file_is_refused(package, part):
    (package.folder / SEEN).write_bytes(save(dict.fromkeys(SEEN_SIDES, part)))
    with pytest.raises(PackageError, match=r"Expected uint8 of shape \(n, 32\)"):
        read_seen(package)


@pytest.mark.parametrize("digest", ["no hex", "", "ab", None])
def test_what_is_no_digest_is_not_asked(package, digest):
    with pytest.raises(PackageError, match="Expected digests of pixels"):
        read_seen(package).among([digest])
