"""Who said it: Ed25519 signatures (RFC 8032, by the library `cryptography`) over canonical JSON, and whose keys count.

Public keys lie as ROLE/NAME.pem in a folder. A `trainer` may register a version; a `promoter` may do everything.
Without settings a key is made under home with the first version that is registered, or by `registry key`, and is
trusted there: one person on a laptop has both roles.
"""

import base64
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blastwatch.console import say
from blastwatch.errors import NotPermitted, SettingsError, SignatureInvalid
from blastwatch.private_file import create_once
from blastwatch.private_file import replace as replace_file
from blastwatch.settings import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TRAINER, PROMOTER = "trainer", "promoter"
ROLES = (TRAINER, PROMOTER)
_PRIVATE = "signing.pem"
_SIGNATURE_BYTES = 64  # RFC 8032, 5.1.6
_FINGERPRINT = re.compile("[0-9a-f]{64}")

_log = logging.getLogger("blastwatch.signing")


@dataclass(frozen=True, kw_only=True)
class Key:
    """A public key that is trusted. `fingerprint`: SHA-256 (hex) of its 32 bytes."""

    name: str
    role: str
    fingerprint: str
    public: "Ed25519PublicKey"

    def may(self, role: str) -> bool:
        """A promoter may do what a trainer may."""
        return self.role in (role, PROMOTER)


class TrustedKeys:
    """The keys of one folder, read each time that they are asked for.

    A file that holds no key is left out, and the log says so once: what others signed still counts, and a service goes
    on. What is done over them (`check_readable`) waits until it is mended.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._said: set[str] = set()

    def check_readable(self) -> None:
        """Raises `SettingsError` naming the first file that holds no key: by others' alone nothing is to be judged."""
        for _, path in self._files():
            _load_public(path)

    def find(self, fingerprint: str) -> Key:
        """Raises `SignatureInvalid` where no trusted key has the fingerprint."""
        for key in self._read():
            if key.fingerprint == fingerprint:
                return key
        raise SignatureInvalid(
            f"Signed by {f'the key {fingerprint[:16]}' if fingerprint else 'nobody'}, which is not among the trusted "
            f"keys in {self.folder}. If it is a colleague's, put the public key there as ROLE/NAME.pem."
        )

    def knows(self, fingerprint: str) -> bool:
        """Whether a trusted key has the fingerprint."""
        return any(key.fingerprint == fingerprint for key in self._read())

    def check(self, statement: Mapping[str, Any], signature: str, fingerprint: str, *, role: str) -> Key:
        """The key that signed a statement.

        Raises:
            SignatureInvalid: signed by no trusted key, by one without the role, or the statement is another.
        """
        from cryptography.exceptions import InvalidSignature

        key = self.find(fingerprint)
        if not key.may(role):
            raise SignatureInvalid(f"Expected the signature of a {role} but {key.name}'s key is that of a {key.role}.")
        try:
            raw = base64.b64decode(signature, validate=True)
            if base64.b64encode(raw).decode() != signature:  # bits that base64 ignores were changed
                raise ValueError("not the canonical base64")
            key.public.verify(raw, canonical(statement))
        except (InvalidSignature, ValueError) as error:
            raise SignatureInvalid(f"The signature of {key.name} does not fit: something was changed.") from error
        return key

    def _read(self) -> list[Key]:
        found = []
        for role, path in self._files():
            try:
                public = _load_public(path)
            except SettingsError as error:
                if str(error) not in self._said:
                    self._said.add(str(error))
                    _log.warning("Left out of the trusted keys: %s", error)
                continue
            found.append(Key(name=path.stem, role=role, fingerprint=fingerprint_of(public), public=public))
        return found

    def _files(self) -> list[tuple[str, Path]]:
        """Role and file of each. Whose key lies in both folders is a promoter, who may do what a trainer may."""
        return [(role, path) for role in reversed(ROLES) for path in sorted((self.folder / role).glob("*.pem"))]


class Signer:
    """Signs with one private key."""

    def __init__(self, private: "Ed25519PrivateKey") -> None:
        self._private = private
        self.fingerprint = fingerprint_of(private.public_key())

    def sign(self, statement: Mapping[str, Any]) -> str:
        """The signature of a statement, base64."""
        return base64.b64encode(self._private.sign(canonical(statement))).decode()


def open_signer(settings: Settings, role: str) -> Signer:
    """The signer that the settings name, with a key that is trusted for a role. The embedded key is made for the first
    version that is registered, and for nothing else: who promotes in a home without it is in the wrong one, and what a
    new key signed there nobody would trust.

    Raises:
        SettingsError: the key, or one of the trusted ones, cannot be read; or there is none yet, or it was lost.
        NotPermitted: it is not trusted, or not for this role.
    """
    path = private_path(settings)
    if settings.signing_key is None:
        _check_not_lost(settings)
        if role == PROMOTER and not path.is_file():
            raise SettingsError(
                f"Expected the signing key of this home in {path} but there is none: the first version that is "
                "registered makes it. Name the BLASTWATCH_HOME that is meant, or your key in BLASTWATCH_SIGNING_KEY."
            )
        _make_key(settings)
    signer = Signer(_load_private(path))
    trusted = open_trusted(settings)
    trusted.check_readable()
    try:
        key = trusted.find(signer.fingerprint)
    except SignatureInvalid as error:
        raise NotPermitted(
            f"The key in {path} is not among the trusted keys in {trusted.folder}. Have whoever keeps them add it as "
            f"{role}/NAME.pem: blastwatch registry key prints it."
        ) from error
    if not key.may(role):
        raise NotPermitted(f"Expected the key of a {role} but {key.name}'s key is that of a {key.role}. Ask a {role}.")
    return signer


def open_trusted(settings: Settings) -> TrustedKeys:
    """The trusted keys that the settings name."""
    return TrustedKeys(settings.trusted_keys or settings.keys)


def public_pem(settings: Settings) -> str:
    """The public half of the signing key, PEM, for a colleague's folder of trusted keys. Raises `SettingsError`."""
    if settings.signing_key is None:
        _make_key(settings)
    return pem_of(private_path(settings))


def private_path(settings: Settings) -> Path:
    """File of the key that signs: the one that is set, else the one under home, which may not be made yet."""
    return settings.signing_key or settings.keys / _PRIVATE


def own_fingerprint(settings: Settings) -> str:
    """Fingerprint of the key that would sign, whoever trusts it; "" where none can be read. None is made."""
    try:
        return fingerprint_of(_load_private(private_path(settings)).public_key())
    except SettingsError:
        return ""


def pem_of(private: Path) -> str:
    """The public half of a private key's file, PEM."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    public = _load_private(private).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def canonical(statement: Mapping[str, Any]) -> bytes:
    """The bytes that are signed: JSON with sorted keys and no white space, UTF-8."""
    text = json.dumps(statement, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def looks_signed(signature: str, fingerprint: str) -> bool:
    """Whether a signature and the fingerprint of its key have the form of Ed25519's; without the key nobody can say
    more."""
    try:
        raw = base64.b64decode(signature, validate=True)
    except ValueError:
        return False
    return len(raw) == _SIGNATURE_BYTES and _FINGERPRINT.fullmatch(fingerprint) is not None


def fingerprint_of(public: "Ed25519PublicKey") -> str:
    """SHA-256 (hex) of a public key's 32 bytes."""
    return sha256(public.public_bytes_raw()).hexdigest()


def make_private(path: Path) -> None:
    """Make a private key that its owner alone may read; whoever comes second leaves the first one's."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    create_once(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _embedded(settings: Settings) -> tuple[Path, Path]:
    """Files of the private and the public half of the key under home."""
    return settings.keys / _PRIVATE, settings.keys / PROMOTER / "embedded.pem"


def _check_not_lost(settings: Settings) -> None:
    """Raise `SettingsError` where the key under home has its public half alone. A new pair would take its place, and
    what the old one signed would be signed by nobody from then on."""
    private, public = _embedded(settings)
    # The public half is looked for first: where another process makes the pair just now, the private one comes before.
    if public.is_file() and not private.is_file():
        raise SettingsError(
            f"Expected the private half of {public} in {private} but there is none. Bring it back, or name your own "
            "key in BLASTWATCH_SIGNING_KEY. To begin with a new key, rename the public half within its folder, such as "
            f"to before-{public.name}: what the old key signed stays trusted then."
        )


def _make_key(settings: Settings) -> None:
    private, public = _embedded(settings)
    _check_not_lost(settings)
    if private.is_file() and public.is_file():
        return
    say(
        "No accounts and no signing key are set, so one key stands for everybody who acts as this user: it is made in "
        f"{settings.keys} now. A team sets BLASTWATCH_SIGNING_KEY and BLASTWATCH_TRUSTED_KEYS (docs/promotion.md)."
    )
    make_private(private)
    replace_file(public, pem_of(private).encode(), mode=0o644)


def _load_private(path: Path) -> "Ed25519PrivateKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"Expected a private key (Ed25519, PEM, no password) in {path} but {error}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(f"Expected an Ed25519 key in {path} but got {type(key).__name__}.")
    return key


def _load_public(path: Path) -> "Ed25519PublicKey":
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"Expected a public key (Ed25519, PEM) in {path} but {error}. Make it readable, or remove it; its owner "
            "writes it anew: blastwatch registry key --out FILE"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise SettingsError(f"Expected an Ed25519 key in {path} but got {type(key).__name__}.")
    return key
