"""A verified copy of a version on this machine, from the store where the local one is missing or was changed."""

import logging
import shutil

from blastwatch.entry import Entry
from blastwatch.errors import PackageError, TooLarge
from blastwatch.package import Package
from blastwatch.registry import Registry

DISK_RESERVE = 256 << 20  # bytes that stay free on the disk of the packages

_log = logging.getLogger("blastwatch.fetching")


def fetch(registry: Registry, entry: Entry) -> Package:
    """The copy, verified.

    Raises:
        TooLarge: where the disk has no room for it. PackageError, RegistryError: as `Registry.fetch_entry`.
    """
    kept = registry.settings.packages / entry.digest
    if kept.exists():
        try:
            return registry.fetch_entry(entry)
        except PackageError as error:
            _log.warning("The local copy of version %s is fetched again: %s", entry.version, error)
    kept.parent.mkdir(parents=True, exist_ok=True)
    size, free = registry.size_of(entry), shutil.disk_usage(kept.parent).free
    if size + DISK_RESERVE > free:
        raise TooLarge(
            f"Version {entry.version} has {size >> 20} MiB but {free >> 20} MiB are free in {kept.parent}, of which "
            f"{DISK_RESERVE >> 20} MiB stay free. Make room: copies of versions that serve no more may be removed."
        )
    return registry.fetch_entry(entry, fresh=True)
