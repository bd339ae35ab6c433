"""Patients without their names: a keyed hash, HMAC-SHA-256, whose key never leaves this home.

Whoever has the database alone cannot tell a patient by trying all hospital numbers. Services that write into one
database need one key (`BLASTWATCH_PATIENT_SALT`), or one patient counts as several.
"""

import hashlib
import hmac
import secrets
from pathlib import Path

from blastwatch.errors import BlastwatchError
from blastwatch.private_file import create_once

SALT_BYTES = 32


class Pseudonyms:
    """Hashes patient keys. The salt lies in a file of its own, is made at the first use, and is read once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._salt = b""

    def __call__(self, key: str) -> str:
        """64 hexadecimal digits for a key, the same for the same key; "" for none.

        Raises:
            BlastwatchError: the salt can be neither read nor made.
        """
        if not key:
            return ""
        self.prepare()
        return hmac.new(self._salt, key.encode(), hashlib.sha256).hexdigest()

    def prepare(self) -> None:
        """Read the salt, or make it, before any patient comes. Raises as a call does."""
        if not self._salt:
            self._salt = _salt(self._path)


def _salt(path: Path) -> bytes:
    try:
        if not path.exists():
            create_once(path, secrets.token_bytes(SALT_BYTES))
        found = path.read_bytes()
    except OSError as error:
        raise BlastwatchError(f"The salt of the patients, {path}, can be neither read nor made: {error}.") from error
    if len(found) != SALT_BYTES:
        raise BlastwatchError(f"Expected {SALT_BYTES} random bytes in {path} but found {len(found)}. Restore the file.")
    return found
