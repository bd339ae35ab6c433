"""The process that follows the registry for all workers of a service: `python -m serving.follower ALIAS ...`.

It polls MLflow, fetches and verifies what an alias names, and writes it down for the workers (`serving.live_folder`).
It is a process of its own, so that MLflow, downloads and digests take nothing from the ones that answer. A worker
starts it and holds its standard input: when that closes the follower ends, however the worker came to its end.
"""

import logging
import os
import sys
import threading
import time
from pathlib import Path

from blastwatch.absent import DATA_FRAMES, leave_out
from blastwatch.entry import Entry
from blastwatch.errors import (
    AliasMoved,
    AliasNotSet,
    BlastwatchError,
    PackageError,
    PolicyError,
    RegistryError,
    RegistryUnreachable,
    SignatureInvalid,
    VersionNotFound,
)
from blastwatch.history import MOVE_SECONDS
from blastwatch.package import Package
from blastwatch.registry import Registry
from blastwatch.settings import Settings, load
from serving.apart import LOADING_NICE
from serving.fetching import fetch
from serving.live import Served, check_order, hand_over, read_handover, source_of, source_written
from serving.live_folder import HEARTBEAT_SECONDS, LiveFolder, Refusal, Status, mark, now, reason_of
from serving.offspring import leave_the_end_to_the_worker
from serving.old_copies import remove_old_copies
from serving.resting import RESTS_AFTER, Rest

NUDGE_SECONDS = 0.1  # between two looks at the file that a webhook touches
LONGEST_WAIT = 10.0  # seconds between two tries to reach a registry that is away
FIRST_RETRY, LONGEST_RETRY = 5.0, 300.0  # seconds until a version that could not be fetched is tried again

SAID = (AliasNotSet, SignatureInvalid, VersionNotFound, PackageError)
"""Errors over what the registry said of an alias or a version. With another one it said nothing."""

Touched = tuple[str, int, int, int]
"""Name, size, and both times of change (ns) of a file."""

_log = logging.getLogger("blastwatch.follower")


class Pursued:
    """One alias: what it last stood on, and why that is not served where it is not."""

    def __init__(self, alias: str, registry: Registry, folder: LiveFolder) -> None:
        self.alias = alias
        self._registry = registry
        self._folder = folder
        self._written = self._already_written()
        self._status = folder.read_status(alias)
        self._wrote_status = 0.0
        self._failed: Entry | None = None
        self._verified: dict[str, tuple[Package, list[Touched]]] = {}
        self._retry_at = 0.0
        self._retry_after = FIRST_RETRY
        self._moved_at = 0.0

    def look(self) -> None:
        """Ask the registry once; fetch and write down what is new."""
        refusal: Refusal | None = None
        reached, entry = time.time(), None
        if not self._folder.wanted(self.alias).exists():  # removed, as after a registry was set back: begin anew
            self._written = None
        try:
            entry = self._registry.proven(self.alias)
            check_order(entry, self._written)
            self._moved_at = 0.0
            if entry != self._written:
                refusal = self._take(entry)
        except AliasMoved as error:
            self._moved_at = self._moved_at or time.monotonic()
            refusal = self._status.refused if self.settling else self._refuse(error, entry)
        except RegistryUnreachable as error:
            refusal, reached = self._refuse(error, entry), self._status.reached
        except (RegistryError, PackageError, PolicyError) as error:  # the policy is read for an alias that was moved
            refusal = self._refuse(error, entry)
            if entry is None and not isinstance(error, SAID):
                reached = self._status.reached
        self._say(Status(reached=reached, refused=refusal))

    @property
    def reachable(self) -> bool:
        return self._status.refused is None or self._status.refused.reason != "unreachable"

    @property
    def at_rest(self) -> bool:
        """Whether what the alias names was handed over, or it names nothing: nothing is left to try again."""
        refused = self._status.refused
        return (refused is None or refused.reason == "alias-not-set") and not self.settling

    @property
    def settling(self) -> bool:
        """Whether alias and signed word disagree, but not for longer than between the two writes of a promotion."""
        return self._moved_at > 0 and time.monotonic() - self._moved_at < MOVE_SECONDS

    def _take(self, entry: Entry) -> Refusal | None:
        """Fetch, verify, hand over. What failed is not tried again before its time, unless the registry says new."""
        if entry == self._failed and time.monotonic() < self._retry_at:
            return self._status.refused
        if entry != self._failed:
            self._retry_after = FIRST_RETRY
        try:
            package = self._fetch(entry)
        except BlastwatchError:
            self._failed = entry
            self._retry_at = time.monotonic() + self._retry_after
            self._retry_after = min(LONGEST_RETRY, 2 * self._retry_after)
            raise
        source = source_of(self._registry.settings)
        served = Served(entry=entry, package=package, alias=self.alias, source=source)
        hand_over(served, self._folder.wanted(self.alias))
        if self._written is None or self._written.digest != entry.digest:
            _log.info("The alias %s stands on version %s (%s): fetched.", self.alias, entry.version, entry.digest[:12])
        self._written, self._failed = entry, None
        self._tidy(package)
        return None

    def _tidy(self, package: Package) -> None:
        """Make room. Where that fails, the version is followed all the same."""
        try:
            os.utime(package.folder)  # `old_copies` goes by it
            remove_old_copies(self._registry.settings.packages, self._folder)
        except OSError as error:
            _log.warning("Old copies could not be removed: %s", error)

    def _fetch(self, entry: Entry) -> Package:
        """A verified package. One that this process verified and nobody touched since is not read again: the workers
        verify what they load in any case."""
        known = self._verified.get(entry.digest)
        if known is not None and known[1] == touched(known[0].folder):
            return known[0]
        package = fetch(self._registry, entry)
        self._verified[entry.digest] = (package, touched(package.folder))
        return package

    def _already_written(self) -> Entry | None:
        """What an earlier follower, or the start of the service, left; None for what another model's did."""
        path = self._folder.wanted(self.alias)
        try:
            entry, _, folder = read_handover(path)
        except PackageError:
            return None
        own = source_written(path) == source_of(self._registry.settings)
        return entry if own and folder.is_dir() else None

    def _refuse(self, error: BlastwatchError, entry: Entry | None) -> Refusal:
        reason, version = reason_of(error), entry.version if entry else ""
        known = self._status.refused
        if known is not None and (known.reason, known.version) == (reason, version):
            return known
        return Refusal(reason=reason, version=version, message=str(error), since=now())

    def _say(self, status: Status) -> None:
        """Write the status down; into the log only what is new."""
        news = status.refused != self._status.refused
        if news and status.refused is not None:
            refused = status.refused
            what = f"version {refused.version}" if refused.version else f"the alias {self.alias}"
            _log.warning("Not followed (%s), %s: %s", refused.reason, what, refused.message)
        elif news:
            _log.info("The alias %s is followed again.", self.alias)
        self._status = status
        if news or time.monotonic() - self._wrote_status > HEARTBEAT_SECONDS:
            self._folder.write_status(self.alias, status)
            self._wrote_status = time.monotonic()


def touched(folder: Path) -> list[Touched]:
    """Of every file below a folder, sorted; [] where there is no such folder."""
    found = ((str(path), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file())
    return [(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in found]


def follow(settings: Settings, aliases: list[str]) -> None:
    """Look at every alias, again and again, until the process ends or has nothing to look at (`serving.resting`)."""
    folder = LiveFolder(settings.home)
    registry = Registry(settings)
    pursued = [Pursued(alias, registry, folder) for alias in aliases]
    rest = Rest(settings, folder, aliases)
    seen, still_since = rest.seen(), time.monotonic()
    wait = settings.follow_seconds
    while True:
        nudge = mark(folder.nudge)
        if (before := rest.seen()) != seen:
            seen, still_since = before, time.monotonic()
        for one in pursued:
            one.look()
        if seen and time.monotonic() - still_since > RESTS_AFTER and all(one.at_rest for one in pursued):
            rest.begin(seen)
            return
        reachable = all(one.reachable for one in pursued)
        wait = settings.follow_seconds if reachable else min(LONGEST_WAIT, 2 * max(wait, settings.follow_seconds))
        if any(one.settling for one in pursued):
            wait = min(wait, NUDGE_SECONDS)
        end = time.monotonic() + wait
        while time.monotonic() < end and mark(folder.nudge) == nudge:
            time.sleep(min(NUDGE_SECONDS, settings.follow_seconds))


def _end_with_parent() -> None:
    """Wait until standard input closes: the parent closed it, or is no more."""
    while os.read(0, 4096):
        pass
    os._exit(0)  # at once: a download that is cut off leaves nothing but a scratch folder


def main() -> None:
    leave_the_end_to_the_worker()
    leave_out(*DATA_FRAMES)
    os.nice(LOADING_NICE)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s [%(levelname)s] %(name)s: %(message)s")
    logging.getLogger("blastwatch").setLevel(logging.INFO)
    follow(load(), sys.argv[1:])


if __name__ == "__main__":
    main()
