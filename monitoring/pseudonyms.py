"""Patients without their names: a keyed hash, HMAC-SHA-256, whose key never leaves this home.

Whoever has the database alone cannot tell a patient by trying all hospital numbers. Services that write into one
database need one key: copy the file to each home, or one patient counts as several.
"""

import hashlib
import hmac
import os
import secrets
import tempfile
from pathlib import Path

from blastwatch.errors import BlastwatchError

SALT = "patient.salt"
SALT_BYTES = 32


class Pseudonyms:
    """Hashes patient keys. The salt lies in `folder`, is made at the first use, and is read once."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / SALT
        self._salt = b""

    def __call__(self, key: str) -> str:
        """64 hexadecimal digits for a key, the same for the same key; "" for none.

        Raises:
            BlastwatchError: the salt can be neither read nor made.
        """
        if not key:
            return ""
        if not self._salt:
            self._salt = _salt(self._path)
        return hmac.new(self._salt, key.encode(), hashlib.sha256).hexdigest()


def _salt(path: Path) -> bytes:
    try:
        if not path.exists():
            _make(path)
        found = path.read_bytes()
    except OSError as error:
        raise BlastwatchError(f"The salt of the patients, {path}, can be neither read nor made: {error}.") from error
    if len(found) != SALT_BYTES:
        raise BlastwatchError(f"Expected {SALT_BYTES} random bytes in {path} but found {len(found)}. Restore the file.")
    return found


def _make(path: Path) -> None:
    """Written whole under another name, readable by its owner only; of several workers the first one's stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    written = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(SALT_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(written, path)
    except FileExistsError:
        return
    finally:
        written.unlink()
