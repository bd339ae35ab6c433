"""The files under `home/live` through which a service follows its registry. Each is small and replaced in one step.

ALIAS.json          the version that the alias names, fetched and verified; written by the follower (`serving.follower`)
ALIAS.good.json     the last version that passed its golden cells in a worker: what a start falls back to
ALIAS.status.json   what the follower thinks: when it last reached the registry, which version it refuses and why
nudge               touched by the webhook: look at the registry now
rest.json           what was looked at and stands still, so that no follower is needed (`serving.resting`)
follower.lock       held by the worker whose child is the follower, and the aliases that it asks for, a line each
load.lock           held by a worker that loads a version: one at a time, so that the others answer (at the start where
                    memory is short alone: nobody answers yet)
"""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from blastwatch.errors import (
    AliasMoved,
    AliasNotSet,
    BlastwatchError,
    EngineBroken,
    FlipsTooOften,
    GoldenMismatch,
    NotOpened,
    PackageError,
    RegistryUnreachable,
    SignatureInvalid,
    TooLarge,
)
from blastwatch.state_files import try_lock, write_state

# The whole list of reasons, safe as a metric label. The first that fits an error is its reason.
REASONS: dict[str, type[BlastwatchError]] = {
    "unreachable": RegistryUnreachable,
    "alias-not-set": AliasNotSet,
    "alias-moved": AliasMoved,
    "signature": SignatureInvalid,
    "too-large": TooLarge,
    "not-opened": NotOpened,
    "golden": GoldenMismatch,
    "flips": FlipsTooOften,
    "engine": EngineBroken,
    "corrupt": PackageError,
    "registry": BlastwatchError,
}


def reason_of(error: BlastwatchError) -> str:
    """The word of `REASONS` for an error."""
    return next(word for word, kind in REASONS.items() if isinstance(error, kind))


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a version, or whatever the alias stands on, does not serve. `version` is "" where it is not known."""

    reason: str
    version: str
    message: str
    since: str

    def shown(self) -> dict[str, str]:
        """What callers are told; the words stay in the log, they may show the inside."""
        return {"version": self.version, "reason": self.reason, "since": self.since}


@dataclass(frozen=True, kw_only=True)
class Status:
    """What the follower knows. `reached`: seconds since 1970 of the last answer of the registry, 0 for never."""

    reached: float = 0.0
    refused: Refusal | None = None


HEARTBEAT_SECONDS = 5.0  # the status is written at least so often

Mark = tuple[int, int, int]
"""Tells whether a file was replaced: inode, time, size."""


class LiveFolder:
    """Paths, atomic writes and locks. Nothing is created before something is written."""

    def __init__(self, home: Path) -> None:
        self.path = home / "live"

    def wanted(self, alias: str) -> Path:
        return self.path / f"{alias}.json"

    def good(self, alias: str) -> Path:
        return self.path / f"{alias}.good.json"

    def status(self, alias: str) -> Path:
        return self.path / f"{alias}.status.json"

    @property
    def nudge(self) -> Path:
        return self.path / "nudge"

    @property
    def rest(self) -> Path:
        return self.path / "rest.json"

    def nudged(self) -> None:
        """Ask the follower to look now."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.nudge.touch()

    def write_status(self, alias: str, status: Status) -> None:
        write_state(self.status(alias), asdict(status))

    def read_status(self, alias: str) -> Status:
        """The follower's status; an empty one where there is none that can be read."""
        try:
            value = json.loads(self.status(alias).read_text())
            refused = Refusal(**value["refused"]) if value["refused"] else None
            return Status(reached=float(value["reached"]), refused=refused)
        except (OSError, ValueError, KeyError, TypeError):
            return Status()

    @property
    def follower_lock(self) -> Path:
        return self.path / "follower.lock"

    def try_follower_lock(self, aliases: Sequence[str]) -> IO[str] | None:
        """The lock of the one that follows these, held as long as the file is open; None where another holds it."""
        file = try_lock(self.follower_lock)
        if file is not None:
            file.truncate(0)
            file.write("".join(f"{alias}\n" for alias in aliases))
            file.flush()
        return file

    def followed(self) -> list[str]:
        """The aliases that whoever holds the lock asks for; [] where that is just being written."""
        try:
            return self.follower_lock.read_text().split()
        except OSError:
            return []

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Wait until no other worker of this home is loading a version."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "load.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def mark(path: Path) -> Mark | None:
    """Differs whenever the file was replaced or touched; None where it is missing."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
