"""At the door of every /v1 address, before a byte of the body is read: who asks, may they, and not too often?

Health, metrics, pages and the description of the interface are open: they show counts, the version and how to ask,
never a cell, a patient or the name of a key. MLflow's webhook brings a signature of its own instead of a key.
"""

import functools
import logging
import math
from collections.abc import Callable
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from blastwatch.browsers import from_elsewhere
from blastwatch.settings import Settings
from serving.binding import folder_is_missing
from serving.header import header
from serving.keys import LABEL, PREDICT, READ, ApiKey, KeyFolder, KeysUnreadable, match
from serving.live_folder import Mark, mark
from serving.problems import RATE_LIMITED, Problem
from serving.rate import RateLimiter, address_of

GUARDED = "/v1/"
SIGNED = ("/v1/webhook",)
NEEDED = {"/v1/predict": PREDICT, "/v1/predict_batch": PREDICT, "/v1/explain": PREDICT, "/v1/labels": LABEL}
"""The permission that an address needs; every other one needs `READ`."""

NO_ROOM = "overloaded"  # the problem of a call that the service has no room for
LONGEST_KEY = 128  # characters; a longer one is refused unhashed

_log = logging.getLogger("blastwatch.service")
_address_of = functools.lru_cache(maxsize=1024)(address_of)  # parsing one takes longer than all else at the door


class Keyring:
    """The keys of a folder as they are at this moment: a key that is made or revoked counts from the next request on.

    Args:
        folder: of the keys.
        keyless: whether a folder in which there never was a key leaves the service open, because only this machine
            reaches it.
    """

    def __init__(self, folder: Path, *, keyless: bool) -> None:
        self._folder = KeyFolder(folder)
        self._open = keyless and self._folder.empty
        self._told = False
        self._marks: tuple[Mark | None, Mark | None] = (None, None)  # of the list and of the secret that were read
        self._rows: list[ApiKey] = []
        self._secret = b""

    def find(self, given: str) -> ApiKey | None:
        """The key that the text is, None where no key is needed.

        Raises:
            Problem: none came, or none that is good, or the keys cannot be read.
        """
        self._follow()
        if self._open:
            return None
        if not given:
            raise _unauthorized("key-missing", "Expected the header `Authorization: Bearer KEY` but got none.")
        found = match(given, self._rows, self._secret) if len(given) <= LONGEST_KEY else None
        if found is None:
            raise _unauthorized("key-refused", "Expected a key that is good but got another.")
        return found

    def in_use(self) -> bool:
        """Whether a key is needed now; it is where the keys cannot be read."""
        try:
            self._follow()
        except Problem:
            return True
        return not self._open

    def _follow(self) -> None:
        """Read the files again where one of them was replaced."""
        now = mark(self._folder.list_file), mark(self._folder.secret_file)
        if self._open and now[0] is None:  # no key yet
            return
        if now == self._marks and now[0] is not None:
            return
        self._open = False  # once there were keys, a list that is gone opens nothing
        try:
            if now[0] is None:
                raise KeysUnreadable(f"The API keys in {self._folder.list_file} are gone. Restore the file.")
            rows = self._folder.read()
            self._secret = self._folder.secret()
        except KeysUnreadable as error:
            if not self._told:
                _log.error("Every request is refused: %s", error)
            self._told = True
            self._marks, self._rows = (None, None), []
            raise Problem(
                "keys-unavailable", "The keys cannot be checked just now.", headers={"Retry-After": "5"}
            ) from error
        self._marks, self._rows, self._told = now, rows, False


class Guard:
    """Lets requests in or raises the problem that keeps them out.

    Args:
        keyring: the keys.
        limiter: what one caller may send; None: as much as it likes.
        refused: called with the name of the problem of each request that is kept out.
    """

    def __init__(
        self,
        keyring: Keyring,
        limiter: RateLimiter | None = None,
        *,
        refused: Callable[[str], object] = lambda _name: None,
    ) -> None:
        self._keyring = keyring
        self._limiter = limiter
        self._refused = refused

    def admit(self, scope: Scope) -> None:
        """Check one request by its head, and leave in its state the name of its key and who pays for it.

        Raises:
            Problem: 401, 403, 429 or 503.
        """
        path = scope["path"]
        if not path.startswith(GUARDED) or path in SIGNED:
            return
        try:
            payer = f"address {_address_of(scope['client'][0])}" if scope.get("client") else "address unknown"
            try:
                key = self._keyring.find(bearer(scope))
            except Problem:
                self._take(payer)  # who tries keys is slowed down by address
                raise
            if key is None:
                # Before it pays: other sites must not use up what the own page may.
                if reason := from_elsewhere(Headers(scope=scope)):
                    raise Problem("origin-refused", reason)
            else:
                scope["state"]["key"], payer = key.name, f"key {key.name}"
            scope["state"]["payer"] = payer
            self._take(payer)
            if key is not None:
                _check_permission(key, NEEDED.get(path, READ))
        except Problem as problem:
            self._refused(problem.kind.name)
            raise

    def wants_keys(self) -> bool:
        """Whether requests need a key now."""
        return self._keyring.in_use()

    def charge(self, scope: Scope, cells: int) -> None:
        """Let a call that was let in pay for its further cells."""
        if self._limiter is not None:
            self._limiter.charge(scope["state"]["payer"], cells - 1)

    def settle(self, scope: Scope) -> None:
        """Give back what a call paid that was let in here and then turned away for want of room, its body unread. Once
        a body was read its call pays, however it ends: else a caller could have any number read for nothing.
        """
        state = scope["state"]
        if self._limiter is not None and state.get("problem") == NO_ROOM and "payer" in state:
            self._limiter.give_back(state["payer"], 1)

    def close(self) -> None:
        if self._limiter is not None:
            self._limiter.close()

    def _take(self, payer: str) -> None:
        wait = self._limiter.take(payer) if self._limiter is not None else 0.0
        if wait:
            seconds = math.ceil(wait)
            detail = f"Expected fewer cells or calls a second of one caller. Try again in {seconds} s."
            raise Problem(RATE_LIMITED, detail, headers={"Retry-After": str(seconds)})


def open_guard(settings: Settings, *, keyless: bool, refused: Callable[[str], object]) -> Guard:
    """The guard that the settings ask for.

    Raises:
        OSError: there is a limit and its file under home cannot be made.
    """
    limiter = None
    if settings.rate_limit:
        limiter = RateLimiter(settings.home / "live", rate=settings.rate_limit, burst=settings.rate_burst)
    keyring = Keyring(settings.api_keys, keyless=keyless and not folder_is_missing(settings))
    return Guard(keyring, limiter, refused=refused)


def bearer(scope: Scope) -> str:
    """The key of an Authorization header (RFC 6750), "" where there is none."""
    scheme, _, key = header(scope, b"authorization").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _check_permission(key: ApiKey, needed: str) -> None:
    if needed not in key.may:
        challenge = {"WWW-Authenticate": f'Bearer realm="blastwatch", error="insufficient_scope", scope="{needed}"'}
        detail = f"Expected a key with the permission `{needed}` but this one has {', '.join(key.may)}."
        raise Problem("not-permitted", detail, headers=challenge)


def _unauthorized(name: str, detail: str) -> Problem:
    error = ', error="invalid_token"' if name == "key-refused" else ""
    return Problem(name, detail, headers={"WWW-Authenticate": f'Bearer realm="blastwatch"{error}'})
