"""The model that serves: which version it is, its verified package, and its engine, warm.

Before any worker starts, `settle` asks the registry once and writes what it found as a small file. The workers load
what the file names, so all of them start with one version, also one that is started anew while the registry is away.
From then on the follower replaces the file (`serving.follower`), and each worker follows it (`serving.following`).

A bento carries such a file and the package beside its code: it needs no registry and stays on its version. So does a
service with BLASTWATCH_FOLLOW_SECONDS=0.

    {"package": folder, relative to this file, "alias": ..., "entry": {the registry's facts},
     "source": {"model": ..., "registry": ...}}

A file of another source, as after BLASTWATCH_MODEL_NAME was changed over the same home, is nobody's fallback.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from blastwatch.cores import cores
from blastwatch.embedded_store import check_made
from blastwatch.engines import choose, open_engine
from blastwatch.entry import Entry
from blastwatch.errors import (
    AliasMoved,
    BlastwatchError,
    FlipsTooOften,
    NotOpened,
    PackageError,
    RegistryError,
    RegistryUnreachable,
)
from blastwatch.golden import check_golden
from blastwatch.history import MOVE_SECONDS
from blastwatch.inference import Engine
from blastwatch.package import Package, open_package
from blastwatch.parity import parity_gate
from blastwatch.policy import load_policy
from blastwatch.registry import Registry
from blastwatch.settings import Settings
from blastwatch.state_files import write_state
from serving.apart import ENGINE_NICE, apart
from serving.batcher import batch_sizes
from serving.fetching import fetch
from serving.live_folder import LiveFolder, Refusal, Status, now, reason_of
from serving.memory import check_memory, room_for_all
from serving.resting import Rest

HANDOVER_VARIABLE = "BLASTWATCH_LIVE"
"""Set by `blastwatch serve` for its workers, not by people: path of the file whose version is served, and no other."""

BENTO_MODEL = "model"
"""Folder beside the code of a bento that holds its live.json and its package."""

WARM_UP_ROUNDS = 2  # the first inference of an engine allocates, the second runs as all later ones

_log = logging.getLogger("blastwatch.service")


@dataclass(frozen=True, kw_only=True)
class Served:
    """One version to be served. `alias` is the name under which it was asked for.

    source: model and registry it is of, as `source_of` has them; {} where that is not known.
    """

    entry: Entry
    package: Package
    alias: str
    source: Mapping[str, str] = field(default_factory=dict)

    def facts(self, model_name: str) -> dict[str, object]:
        """What every answer says of the model."""
        return {
            "name": model_name,
            "version": self.entry.version,
            "digest": self.package.digest,
            "alias": self.alias,
            "synthetic": self.package.info.synthetic,
        }

    def intervals(self) -> dict[str, dict[str, float]]:
        """Low and high end of each of the package's headline figures: 95 % intervals by patient."""
        cells = self.package.metrics()["cells"]
        found = {name: cells[name] for name in self.package.headline}
        return {name: {"low": row["low"], "high": row["high"]} for name, row in found.items()}


@dataclass(frozen=True, kw_only=True)
class LiveModel:
    """A version with its engine, warmed up."""

    served: Served
    engine: Engine


def follows(settings: Settings, environment: Mapping[str, str]) -> bool:
    """Whether this service moves with its alias."""
    return settings.follow_seconds > 0 and find_handover(environment) is None


def find(settings: Settings, environment: Mapping[str, str] | None = None) -> Served:
    """The version to serve: the one handed over, else what the alias names in the registry.

    Raises:
        AliasNotSet: nothing was promoted yet; the message names the command that does.
        RegistryError, PackageError: the registry is away or was never made, the alias was moved behind its back, or
            the package is not what was registered and signed.
    """
    handed_over = find_handover(os.environ if environment is None else environment)
    if handed_over:
        return take_over(handed_over)
    check_made(settings)
    registry = Registry(settings)
    entry = registry.proven(settings.model_alias)
    package = fetch(registry, entry)
    return Served(entry=entry, package=package, alias=settings.model_alias, source=source_of(settings))


def settle(settings: Settings, environment: Mapping[str, str]) -> tuple[Served, dict[str, str]]:
    """Decide, before any worker starts, which version all of them serve at first.

    Returns:
        The version, and the variables that its workers need in their environment.

    Raises:
        As `find`, where no verified copy of an earlier start lies on this machine.
    """
    if find_handover(environment) is not None:
        return find(settings, environment), {}
    folder = LiveFolder(settings.home)
    served = _settled(settings, environment, folder)
    if settings.follow_seconds > 0:
        return served, {}
    path = hand_over(served, folder.path / f"version-{served.entry.version}.json")
    return served, {HANDOVER_VARIABLE: str(path)}


def _settled(settings: Settings, environment: Mapping[str, str], folder: LiveFolder) -> Served:
    """What the alias names, written down; else the last verified copy, and why it is that one."""
    alias = settings.model_alias
    rest = Rest(settings, folder, [alias])
    rest.end()
    seen = rest.seen()
    try:
        served = _find_patiently(settings, environment)
        check_order(served.entry, written(folder, settings))
    except (RegistryError, PackageError) as error:
        served = last_verified(folder, settings, error)
        if source_written(folder.wanted(alias)) != served.source:  # the workers load what that file names
            hand_over(served, folder.wanted(alias))
        refusal = Refusal(reason=reason_of(error), version="", message=str(error), since=now())
        folder.write_status(alias, Status(refused=refusal))
        _log.warning("Serving version %s from its verified local copy: %s", served.entry.version, error)
    else:
        hand_over(served, folder.wanted(alias))
        folder.write_status(alias, Status(reached=time.time()))
        if seen:
            rest.begin(seen)
    return served


def check_order(entry: Entry, before: Entry | None) -> None:
    """Refuse a word older than one that was believed: whoever may write to MLflow but not promote can put back an
    alias together with the signed word that once moved it there.

    Raises:
        AliasMoved: naming what to do where the registry itself was set back.
    """
    if before is not None and 0 < entry.word < before.word:
        raise AliasMoved(
            f"The alias stands on version {entry.version} by entry {entry.word} of the history, but entry "
            f"{before.word} had moved it to version {before.version}: an old word was put back. If the registry was "
            "restored from a backup, remove live/ALIAS.json of this alias in BLASTWATCH_HOME."
        )


def written(folder: LiveFolder, settings: Settings) -> Entry | None:
    """The entry that was handed over last; None where there is none, or it is of another model or registry."""
    path = folder.wanted(settings.model_alias)
    try:
        return read_handover(path)[0] if source_written(path) == source_of(settings) else None
    except PackageError:
        return None


def _find_patiently(settings: Settings, environment: Mapping[str, str]) -> Served:
    """`find`, and once more where a promotion is just being written."""
    end = time.monotonic() + MOVE_SECONDS
    while True:
        try:
            return find(settings, environment)
        except AliasMoved:
            if time.monotonic() > end:
                raise
            time.sleep(0.3)


def last_verified(folder: LiveFolder, settings: Settings, error: BlastwatchError) -> Served:
    """The copy that serves in spite of an error, which is raised where there is none. A file that does not say what it
    is of, as those of earlier versions, counts while the registry is away: then nothing speaks against it."""
    own = [source_of(settings), *([{}] if isinstance(error, RegistryUnreachable) else [])]
    for path in (folder.wanted(settings.model_alias), folder.good(settings.model_alias)):
        try:
            served = take_over(path)
        except PackageError:
            continue
        if served.source in own:
            return served
        said = " in ".join(served.source.values()) or "an unknown model"
        _log.warning("Passed over %s, which is of %s.", path, said)
    raise error


def open_first(settings: Settings, environment: Mapping[str, str]) -> tuple[LiveModel, Refusal | None]:
    """What a worker starts with: the version that was settled, else the last one that was good.

    Returns:
        The model, and why it is not the wanted one where it is not.
    """
    if not follows(settings, environment):
        return open_live(find(settings, environment), settings), None
    folder, alias = LiveFolder(settings.home), settings.model_alias
    wanted, good = folder.wanted(alias), folder.good(alias)
    try:
        served = take_over_or_fetch(wanted, settings)
        # Nobody waits for an answer of this worker yet, so what one at a time could spare is memory alone.
        with nullcontext() if room_for_all(served.package, settings) else folder.loading():
            return open_live(served, settings), None
    except PackageError as error:
        if not good.is_file() or source_written(good) not in (source_of(settings), source_written(wanted)):
            raise
        refusal = Refusal(reason=reason_of(error), version=version_of(wanted), message=str(error), since=now())
        live = open_live(take_over(good), settings)
        _log.warning(
            "Version %s does not serve, version %s does: %s", refusal.version, live.served.entry.version, error
        )
        return live, refusal


def find_handover(environment: Mapping[str, str]) -> Path | None:
    """The file that was handed over, or the one that stands in this bento; None where there is neither."""
    if environment.get(HANDOVER_VARIABLE):
        return Path(environment[HANDOVER_VARIABLE])
    inside = Path(__file__).parents[1] / BENTO_MODEL / "live.json"
    return inside if inside.is_file() else None


def hand_over(served: Served, path: Path, *, package: Path | None = None) -> Path:
    """Write the file that `take_over` reads.

    Args:
        package: where the package will stand; default: where it stands.
    """
    folder = Path(os.path.relpath(package or served.package.folder, path.parent))
    value = {"package": folder.as_posix(), "alias": served.alias, "entry": served.entry.to_dict()}
    return write_state(path, value | {"source": dict(served.source)})


def read_handover(path: Path) -> tuple[Entry, str, Path]:
    """Entry, alias and package folder of a handover; nothing is verified.

    Raises:
        PackageError: where the file cannot be read.
    """
    try:
        value = json.loads(path.read_text())
        return Entry(**value["entry"]), str(value["alias"]), (path.parent / str(value["package"])).resolve()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PackageError(f"The handover {path} cannot be read: {error!r}. Start the service again.") from error


def source_of(settings: Settings) -> dict[str, str]:
    """Model and registry of a service. The address has no account, which may change; that of the registry under home is
    left out, since home and what lies in it move together."""
    registry = "the registry under home" if settings.embedded_registry else settings.tracking_shown
    return {"model": settings.model_name, "registry": registry}


def source_written(path: Path) -> dict[str, str]:
    """Model and registry that a handover says it is of; {} where it does not say, or cannot be read."""
    try:
        return dict(json.loads(path.read_text())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def foreign(path: Path, settings: Settings) -> bool:
    """Whether a handover says that it is of another model or registry."""
    return source_written(path) not in ({}, source_of(settings))


def version_of(path: Path) -> str:
    """The version that a handover names, "" where it cannot be read."""
    try:
        return read_handover(path)[0].version
    except PackageError:
        return ""


def take_over(path: Path) -> Served:
    """Read a handover and verify its package.

    Raises:
        PackageError: where the file or the package is not what was handed over.
    """
    entry, alias, folder = read_handover(path)
    package = open_package(folder)
    if package.digest != entry.digest:
        raise PackageError(f"Expected package {entry.digest} in {package.folder} but it holds {package.digest}.")
    return Served(entry=entry, package=package, alias=alias, source=source_written(path))


def take_over_or_fetch(path: Path, settings: Settings) -> Served:
    """`take_over`; where the copy on this machine is not what was handed over, it is fetched anew.

    Raises:
        PackageError: as `take_over`, where the registry cannot be asked or has no other.
    """
    try:
        return take_over(path)
    except PackageError as error:
        entry, alias, _ = read_handover(path)
        try:
            package = fetch(Registry(settings), entry)
        except RegistryError:
            raise error from None
        return Served(entry=entry, package=package, alias=alias, source=source_written(path))


@contextmanager
def opening(version: str) -> Iterator[None]:
    """Whatever goes wrong while a version is opened beside the one that serves is a refusal: that one goes on.

    Raises:
        NotOpened: for an error that is no refusal by itself, such as a GPU without room for both.
    """
    try:
        yield
    except PackageError:
        raise
    except Exception as error:
        raise NotOpened(f"Version {version} cannot be opened on this machine: {error!r}.") from error


def open_live(served: Served, settings: Settings, beside: Package | None = None) -> LiveModel:
    """Open the engine beside that of a package which serves, run it on black cells until it is warm, and let it answer
    the golden cells.

    In a thread of its own: OpenVINO gives the thread that opens it a stack for signals, and unmaps that stack when the
    engine goes, whoever's it is. A main thread that lost it so dies of the next signal. The threads with which OpenVINO
    computes are born of the first one, and as nice.

    Raises:
        TooLarge: before anything is loaded.
        FlipsTooOften, GoldenMismatch, PackageError: the version must not serve with this engine on this machine.
    """
    return apart(lambda: _open_live(served, settings, beside), nice=ENGINE_NICE)


def check_flips(served: Served, settings: Settings) -> None:
    """The engine that serves here says what float32 says, as often as the policy of promotions wants it.

    A promotion that overrode this gate with a reason holds here too.

    Raises:
        FlipsTooOften: naming the rate, the limit, and what to do.
    """
    gate = parity_gate(served.package, load_policy(settings.policy), choose(settings.engine, served.package))
    if gate.passed or gate.name in served.entry.overridden:
        return
    raise FlipsTooOften(
        f"Expected labels that differ from float32 on at most a share of {gate.limit} of the cells but got "
        f"{gate.value} ({gate.note}). Serve with another engine (BLASTWATCH_ENGINE=openvino-f32), give the service a "
        "policy that bears it (BLASTWATCH_POLICY), or promote the version with --override parity."
    )


def _open_live(served: Served, settings: Settings, beside: Package | None) -> LiveModel:
    check_memory(served.package, settings, beside)
    check_flips(served, settings)
    threads = int(settings.threads) if settings.threads else max(1, cores() // settings.workers)
    engine = open_engine(served.package, settings.engine, threads=threads, beside=True)
    size = served.package.info.preprocessing.size
    for infer in (engine.infer, engine.infer_beside):
        for _ in range(WARM_UP_ROUNDS):
            infer(np.zeros((1, size, size, 3), np.uint8))
    sizes = batch_sizes(engine, settings.max_batch_size)
    check_golden(served.package, engine, batch_size=sizes.alone)
    if engine.abreast > 1:
        check_golden(served.package, engine, batch_size=sizes.beside, beside=True)
    engine.rest()  # a lone caller never needs what batches side by side took
    return LiveModel(served=served, engine=engine)
