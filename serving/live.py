"""The model that serves: which version it is, its verified package, and its engine, warm.

It is found once, before any worker starts, and handed to the workers as a small file. So all workers of one service
answer with the same version, also one that is started anew after the alias has moved, or while the registry is away.
A bento carries the same file and the package beside its code, and needs no registry at all.

    live.json   {"package": folder, relative to this file, "alias": ..., "entry": {the registry's facts}}
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blastwatch.engines import Engine, open_engine
from blastwatch.errors import PackageError
from blastwatch.package import Package, open_package
from blastwatch.registry import Entry, Registry
from blastwatch.settings import Settings

HANDOVER_VARIABLE = "BLASTWATCH_LIVE"
"""Set by `blastwatch serve` for its workers, not by people: path of the live.json to serve."""

BENTO_MODEL = "model"
"""Folder beside the code of a bento that holds its live.json and its package."""

WARM_UP_ROUNDS = 2  # the first inference of an engine allocates, the second runs as all later ones


@dataclass(frozen=True, kw_only=True)
class Served:
    """One version to be served. `alias` is the name under which it was asked for."""

    entry: Entry
    package: Package
    alias: str

    def facts(self, model_name: str) -> dict[str, object]:
        """What every answer says of the model."""
        return {
            "name": model_name,
            "version": self.entry.version,
            "digest": self.package.digest,
            "alias": self.alias,
            "synthetic": self.package.info.synthetic,
        }


@dataclass(frozen=True, kw_only=True)
class LiveModel:
    """A version with its engine, warmed up."""

    served: Served
    engine: Engine


def find(settings: Settings, environment: Mapping[str, str] | None = None) -> Served:
    """The version to serve: the one handed over, else what the alias names in the registry.

    Raises:
        AliasNotSet: nothing was promoted yet; the message names the command that does.
        RegistryError, PackageError: the registry is away, or the package is not what was registered.
    """
    handed_over = find_handover(os.environ if environment is None else environment)
    if handed_over:
        return take_over(handed_over)
    fetched = Registry(settings).fetch(settings.model_alias)
    return Served(entry=fetched.entry, package=fetched.package, alias=settings.model_alias)


def find_handover(environment: Mapping[str, str]) -> Path | None:
    """The live.json that was handed over, or the one that stands in this bento; None where there is neither."""
    if environment.get(HANDOVER_VARIABLE):
        return Path(environment[HANDOVER_VARIABLE])
    inside = Path(__file__).parents[1] / BENTO_MODEL / "live.json"
    return inside if inside.is_file() else None


def hand_over(served: Served, path: Path, *, package: Path | None = None) -> Path:
    """Write the file that `take_over` reads.

    Args:
        package: where the package will stand; default: where it stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.path.relpath(package or served.package.folder, path.parent)
    value = {"package": Path(folder).as_posix(), "alias": served.alias, "entry": served.entry.to_dict()}
    written = path.with_name(f"{path.name}.{os.getpid()}")
    written.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    return written.replace(path)


def take_over(path: Path) -> Served:
    """Read a handover and verify its package.

    Raises:
        PackageError: where the file or the package is not what was handed over.
    """
    try:
        value = json.loads(path.read_text())
        entry, alias, folder = Entry(**value["entry"]), str(value["alias"]), str(value["package"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"The handover {path} cannot be read: {error!r}. Start the service again.") from error
    package = open_package((path.parent / folder).resolve())
    if package.digest != entry.digest:
        raise PackageError(f"Expected package {entry.digest} in {package.folder} but it holds {package.digest}.")
    return Served(entry=entry, package=package, alias=alias)


def open_live(served: Served, settings: Settings) -> LiveModel:
    """Open the engine and run it on black cells until it is warm."""
    threads = int(settings.threads) if settings.threads else max(1, len(os.sched_getaffinity(0)) // settings.workers)
    engine = open_engine(served.package, settings.engine, threads=threads)
    size = served.package.info.preprocessing.size
    for _ in range(WARM_UP_ROUNDS):
        engine.infer(np.zeros((1, 3, size, size), np.float32))
    return LiveModel(served=served, engine=engine)
