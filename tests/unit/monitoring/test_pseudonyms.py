"""Patient keys are stored hashed, under a salt that all workers of a home share."""

import hashlib
import hmac
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from blastwatch.errors import BlastwatchError
from monitoring.pseudonyms import Pseudonyms


def test_the_same_patient_gets_the_same_hash_from_every_worker(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: Pseudonyms(tmp_path / "home" / "patient.salt")("ward 3, no. 17"), range(32)))
    (value,) = found
    salt = (tmp_path / "home" / "patient.salt").read_bytes()
    assert value == hmac.new(salt, b"ward 3, no. 17", hashlib.sha256).hexdigest()
    assert stat.S_IMODE((tmp_path / "home" / "patient.salt").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["patient.salt"]
    assert Pseudonyms(tmp_path / "home" / "patient.salt")("ward 3, no. 18") != value
    assert Pseudonyms(tmp_path / "other" / "patient.salt")("ward 3, no. 17") != value


def test_without_a_key_nothing_is_made(tmp_path):
    assert Pseudonyms(tmp_path / "home" / "patient.salt")("") == ""
    assert not (tmp_path / "home").exists()


def test_a_damaged_salt_is_not_replaced(tmp_path):
    (tmp_path / "patient.salt").write_bytes(b"short")
    with pytest.raises(BlastwatchError, match="Expected 32 random bytes"):
        Pseudonyms(tmp_path / "patient.salt")("a")
    assert (tmp_path / "patient.salt").read_bytes() == b"short"
    (tmp_path / "file").touch()
    with pytest.raises(BlastwatchError, match="neither read nor made"):
        Pseudonyms(tmp_path / "file" / "patient.salt")("a")
