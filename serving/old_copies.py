"""Copies of versions that serve no more are removed, so that a service that follows for years fills no disk."""

import logging
import os
import re
import shutil
import time
from pathlib import Path

from blastwatch.errors import PackageError
from blastwatch.registry import SCRATCH
from serving.live import read_handover
from serving.live_folder import LiveFolder

KEPT = 4  # of the copies that nothing names: a rollback mostly goes to one of the last
LEAST_AGE = 24 * 3600.0  # seconds since it was last handed over or fetched; others (`score`, a gate) read copies too
LEAVING = ".old-"  # begins the name of a copy that is being removed
_DIGEST = re.compile(r"[0-9a-f]{64}")

_log = logging.getLogger("blastwatch.follower")


def remove_old_copies(packages: Path, folder: LiveFolder) -> list[str]:
    """Remove the copies that no file of `live/` names, but for the latest `KEPT` and what is younger than a day.

    Returns:
        The digests of what was removed.
    """
    _remove_scratch(packages)
    named = {path.name for path in _named(folder)}
    copies = [path for path in packages.glob("*") if _DIGEST.fullmatch(path.name) and path.name not in named]
    copies.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    old = [path for path in copies[KEPT:] if time.time() - path.stat().st_mtime > LEAST_AGE]
    for path in old:
        gone = path.with_name(f"{LEAVING}{os.getpid()}-{path.name}")
        path.rename(gone)  # in one step: nobody finds half of a package
        shutil.rmtree(gone)
        _log.info("The copy %s of a version that serves no more was removed.", path.name[:12])
    return [path.name for path in old]


def _remove_scratch(packages: Path) -> None:
    """What a fetch, or a removal, left behind that was killed: nobody works in it after a day."""
    for path in packages.glob(".*"):
        if path.name.startswith((SCRATCH, LEAVING)) and time.time() - path.stat().st_mtime > LEAST_AGE:
            shutil.rmtree(path)


def _named(folder: LiveFolder) -> list[Path]:
    found = []
    for path in folder.path.glob("*.json"):
        try:
            found.append(read_handover(path)[2])
        except PackageError:
            continue  # a status, or a handover that cannot be read
    return found
