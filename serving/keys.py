"""API keys: who may ask the service, and for what. The service keeps a keyed hash of each, never the key.

    keys.json    name, permissions, dates and hash of every key, also of the revoked ones
    hash.key     32 random bytes, the secret of the hash

A key is 32 bytes of the operating system's randomness, so there is nothing to guess, and a slow hash (scrypt, Argon2)
would only cost the service time at each request, of which a stranger may cause any number. The hash is HMAC-SHA-256
(RFC 2104) with a secret of its own file: whoever reads the list alone cannot even try a key on it, and whoever writes
to the list alone cannot add one.
"""

import fcntl
import hmac
import json
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from blastwatch import private_file
from blastwatch.errors import BlastwatchError, UsageError

PREDICT, LABEL, READ = "predict", "label", "read"
PERMISSIONS = (PREDICT, LABEL, READ)
PREFIX = "bw_"  # so that scanners of source code find a key that was committed
SECRET_BYTES = 32
MOST = 1000  # keys of one service: each request is compared with all of them
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class KeysUnreadable(BlastwatchError):
    """The list of keys, or the secret of their hash, is missing, changed or of another kind."""


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """One key as the list keeps it.

    name: stands in the audit log. may: some of `PERMISSIONS`. created, revoked: ISO 8601, UTC; revoked is "" while it
    is good. digest: HMAC-SHA-256, 64 hexadecimal digits.
    """

    name: str
    may: tuple[str, ...]
    created: str
    digest: str
    revoked: str = ""


class KeyFolder:
    """The two files of one service. Nothing is created before the first key is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.list_file = folder / "keys.json"
        self.secret_file = folder / "hash.key"

    @property
    def in_use(self) -> bool:
        """Whether a key was ever made here: from then on every request needs one."""
        return self.list_file.exists()

    @property
    def empty(self) -> bool:
        """Whether no key was ever made here; a lost list leaves its secret behind. False where nobody can tell."""
        try:
            return not (self.list_file.exists() or self.secret_file.exists())
        except OSError:
            return False

    def read(self) -> list[ApiKey]:
        """Every key, in the order in which they were made; none where there is no list.

        Raises:
            KeysUnreadable: the list is there and cannot be read.
        """
        try:
            text = self.list_file.read_text()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeysUnreadable(f"The API keys in {self.list_file} cannot be read: {error}.") from error
        try:
            rows = [ApiKey(**{**row, "may": tuple(row["may"])}) for row in json.loads(text)["keys"]]
            if not all(set(row.may) <= set(PERMISSIONS) and len(bytes.fromhex(row.digest)) == 32 for row in rows):
                raise ValueError("a permission or a hash is none")
        except (ValueError, KeyError, TypeError) as error:
            raise KeysUnreadable(
                f"Expected a list of API keys in {self.list_file} but {error!r}. Restore it."
            ) from error
        return rows

    def add(self, name: str, may: Sequence[str] = PERMISSIONS) -> str:
        """Make a key and return it; it can never be shown again.

        Raises:
            UsageError: the name or a permission is none, or another key has the name, or had it.
            KeysUnreadable: the list or the secret cannot be read or written, or the secret of good keys is gone.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"Expected a name of 1 to 64 letters, digits, '.', '_' or '-' but got {name[:80]!r}.")
        if not may or not set(may) <= set(PERMISSIONS):
            raise UsageError(
                f"Expected permissions out of {', '.join(PERMISSIONS)} but got {', '.join(may) or 'none'}."
            )
        key = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
        with self._writing():
            rows = self.read()
            if any(row.name == name for row in rows):
                raise UsageError(f"A key of the name {name!r} is there or was; the audit log needs another name.")
            if len(rows) >= MOST:
                raise UsageError(f"Expected at most {MOST} keys but there are {len(rows)}.")
            good = sum(not row.revoked for row in rows)
            if good and not self.secret_file.exists():  # with a new one all of them would be refused
                raise KeysUnreadable(
                    f"The secret of the API keys' hash, {self.secret_file}, is gone, and without it none of the {good} "
                    f"good keys is known. Restore the file. If that cannot be, remove {self.folder} and make all anew."
                )
            digest = digest_of(key, self.secret(make=True))
            ordered = tuple(word for word in PERMISSIONS if word in may)
            self._write([*rows, ApiKey(name=name, may=ordered, created=_now(), digest=digest)])
        return key

    def revoke(self, name: str) -> ApiKey:
        """Refuse a key from now on, in running services too.

        Raises:
            UsageError: no key has the name, or it was revoked before.
        """
        with self._writing():
            rows = self.read()
            found = next((row for row in rows if row.name == name), None)
            if found is None or found.revoked:
                good = ", ".join(row.name for row in rows if not row.revoked) or "none"
                raise UsageError(f"Expected the name of a key that is good ({good}) but got {name[:80]!r}.")
            gone = replace(found, revoked=_now())
            self._write([gone if row is found else row for row in rows])
        return gone

    def secret(self, *, make: bool = False) -> bytes:
        """The secret of the hash; made where there is none, if asked.

        Raises:
            KeysUnreadable: it cannot be read or made.
        """
        try:
            if make:
                private_file.create_once(self.secret_file, secrets.token_bytes(SECRET_BYTES))
            found = self.secret_file.read_bytes()
        except OSError as error:
            raise KeysUnreadable(f"The secret of the API keys' hash, {self.secret_file}: {error}.") from error
        if len(found) != SECRET_BYTES:
            raise KeysUnreadable(f"Expected {SECRET_BYTES} bytes in {self.secret_file} but found {len(found)}.")
        return found

    def _write(self, rows: list[ApiKey]) -> None:
        text = json.dumps({"keys": [asdict(row) for row in rows]}, indent=2) + "\n"
        try:
            private_file.replace(self.list_file, text.encode())
        except OSError as error:
            raise KeysUnreadable(f"The API keys in {self.list_file} cannot be written: {error}.") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = (self.folder / "lock").open("a")
        except OSError as error:
            raise KeysUnreadable(f"The folder of the API keys, {self.folder}, cannot be written: {error}.") from error
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def digest_of(key: str, secret: bytes) -> str:
    """HMAC-SHA-256 of a key, 64 hexadecimal digits."""
    return hmac.new(secret, key.encode(), sha256).hexdigest()


def match(key: str, rows: Sequence[ApiKey], secret: bytes) -> ApiKey | None:
    """The good key among `rows` that `key` is; None for a stranger's or a revoked one.

    Every row is compared, each in constant time, so that the time tells nothing of how near a guess came.
    """
    digest = digest_of(key, secret)
    found = None
    for row in rows:
        if hmac.compare_digest(row.digest, digest) and not row.revoked:
            found = row
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
