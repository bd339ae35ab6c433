"""Is the registry what its history says? The chain, its signatures, what MLflow mirrors, the aliases, the files."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from blastwatch import clocks, history
from blastwatch.entry import Entry, entry_of
from blastwatch.errors import (
    HistoryBroken,
    NotPermitted,
    PackageError,
    RegistryError,
    RegistryUnreachable,
    SignatureInvalid,
)
from blastwatch.history import ALIASES, Record, Row
from blastwatch.model_store import Model
from blastwatch.recording import HEAD_TAG, cut_tail, gone_model, head_of, read_word
from blastwatch.registry import Registry
from blastwatch.two_persons import faults_of_one, not_examined

RESTORE = "blastwatch registry restore"
_GONE = ", where it was deleted: a backup of MLflow's store alone brings it back, and nothing else can or need be done"
_LOOKS, _PAUSE = 5, 0.5  # at the registry until it stands still, and seconds between two


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong. `entry`: number of the entry of the history that shows it, None where it is none's."""

    entry: int | None
    fault: str

    def __str__(self) -> str:
        return f"entry {self.entry}: {self.fault}" if self.entry is not None else self.fault


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What `registry verify --json` prints; the first entry of the chain that is not as signed comes first.

    unexamined: what the policy asks of the registry and nothing here can answer, each with what to do.
    """

    entries: int
    versions: int
    faults: list[Fault]
    unexamined: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"intact": self.intact}

    def check(self) -> None:
        """Raise `HistoryBroken` naming every fault."""
        if self.faults:
            raise HistoryBroken("The registry is not what its history says:\n  " + "\n  ".join(_lines(self.faults)))


def _lines(faults: Sequence[Fault]) -> list[str]:
    """A line for each that is wrong, in the order of the first: where many entries show the same, such as one key that
    is not trusted, they are named together."""
    numbers: dict[str, list[int | None]] = {}
    for fault in faults:
        numbers.setdefault(fault.fault, []).append(fault.entry)
    return [_line(text, [number for number in found if number is not None]) for text, found in numbers.items()]


def _line(text: str, numbers: Sequence[int]) -> str:
    if not numbers:
        return text
    return f"{'entry' if len(numbers) == 1 else 'entries'} {_ranges(numbers)}: {text}"


def _ranges(numbers: Sequence[int]) -> str:
    """
    >>> _ranges([1, 2, 3, 7, 9, 10])
    '1 to 3, 7, 9, 10'
    """
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def verify(registry: Registry, *, files: bool = True) -> Verification:
    """Check everything.

    Args:
        files: read the files of every version too.

    Raises:
        SettingsError: one of the trusted keys cannot be read, so what it signed would look like a fault.
        RegistryUnreachable, NotPermitted: the registry cannot be looked at.
    """
    registry.trusted.check_readable()
    rows, model, entries = _look(registry)
    chain = [Fault(entry=number, fault=text) for number, text in _chain(registry, rows)]
    readable = _readable(rows)
    chain += _ahead(readable)
    rest = _aliases(registry, readable, model, entries) + _versions(registry, readable, entries, files=files)
    rest += [Fault(entry=number, fault=text) for number, text in faults_of_one(registry.settings, readable)]
    # The chain first: where it is broken, what is made of it is wrong too.
    rest.sort(key=lambda fault: (fault.entry is None, fault.entry or 0))
    faults, unexamined = chain + _mirror(registry, rows, model) + rest, not_examined(registry.settings)
    return Verification(
        entries=len(rows), versions=len(entries), faults=faults, unexamined=[unexamined] if unexamined else []
    )


def _chain(registry: Registry, rows: Sequence[Row]) -> list[tuple[int, str]]:
    return history.faults(rows, registry.trusted, model=registry.name)


def _ahead(records: Sequence[Record]) -> list[Fault]:
    """Entries of a time that is still to come: `history --at` does not tell of them until then."""
    now = datetime.fromisoformat(history.now())
    ahead = clocks.ahead(records, now)
    text = f"its time is still to come: one of two clocks is wrong. {clocks.remedy(records, now)}" if ahead else ""
    return [Fault(entry=record.number, fault=text) for record in ahead]


def _look(registry: Registry) -> tuple[list[Row], Model | None, list[Entry]]:
    """The history and what MLflow says at the same moment: an action that comes between, or is under way, looks like a
    cut tail or an interrupted one. After the last look what was seen is taken as it is."""
    for look in range(_LOOKS):
        if look:
            time.sleep(_PAUSE)
        rows, model = registry.ledger.rows(), registry.store.model()
        entries = _entries(registry, model)
        if registry.ledger.rows() == rows and not _under_way(registry, rows, model, entries):
            break
    return rows, model, entries


def _under_way(registry: Registry, rows: Sequence[Row], model: Model | None, entries: Sequence[Entry]) -> bool:
    """Whether it looks like a moment of an action: MLflow was not told of the last entry, or a version has none yet."""
    records = _readable(rows)
    try:
        head = head_of(model, rows, registry.trusted, name=registry.name)
    except HistoryBroken:
        return False
    if head.lost or len(records) != len(rows):
        return False
    registered = {record.version for record in records if record.action == "register"}
    return head.number == len(rows) - 1 or any(entry.version not in registered for entry in entries)


def _entries(registry: Registry, model: Model | None) -> list[Entry]:
    """The versions, with what MLflow alone says of them: the history may be unreadable."""
    found = [entry_of(version, model, None) for version in registry.store.versions()] if model else []
    return sorted(found, key=lambda entry: int(entry.version))


def _readable(rows: Sequence[Row]) -> list[Record]:
    """The entries whose text is the one that was hashed; the others are named by `history.faults` already."""
    found = []
    for row in rows:
        if history.hash_of(row.body) != row.hash:
            continue
        try:
            found.append(row.record())
        except HistoryBroken:
            continue
    return found


def _mirror(registry: Registry, rows: Sequence[Row], model: Model | None) -> list[Fault]:
    """The head that MLflow was told of, against the end of the chain."""
    try:
        head = head_of(model, rows, registry.trusted, name=registry.name)
    except HistoryBroken as error:
        return [Fault(entry=None, fault=f"what MLflow mirrors: {error}")]
    if rows and (model is None or (head.lost and not registry.store.versions())):
        return [Fault(entry=None, fault=gone_model(registry.name, len(rows)))]
    if head.number > len(rows):
        text = f"it is missing: MLflow was told of {head.number} entries (a cut tail)"
        return [Fault(entry=len(rows) + 1, fault=cut_tail(head, len(rows)) if head.unknown else text)]
    if head.lost:
        said = head.number or model is None or HEAD_TAG not in model.tags
        return [Fault(entry=head.number + 1 if said else None, fault=head.lost)]
    if model is not None and HEAD_TAG in model.tags:
        try:
            read_word(model.tags[HEAD_TAG], registry.trusted, model=registry.name)
        except SignatureInvalid as error:
            return [Fault(entry=None, fault=f"what MLflow mirrors: {error} Put it back: {RESTORE}")]
    if head.number < len(rows):
        text = "MLflow was not told of it: an action was interrupted. The next registry command finishes it"
        return [Fault(entry=head.number + 1, fault=text)]
    return []


def _aliases(
    registry: Registry, records: Sequence[Record], model: Model | None, entries: Sequence[Entry]
) -> list[Fault]:
    carried, there = model.aliases if model else {}, {entry.version for entry in entries}
    expected, words = history.aliases(records), history.words(records)
    faults = []
    for alias in ALIASES:
        found, said = carried.get(alias, "none"), expected.get(alias, "none")
        if found == "none" and said not in there:
            continue  # where it stood was deleted in MLflow, which `_versions` says; nothing can carry it
        if found != said:
            text = f"the alias {alias} stands on version {found} but the history says {said}. Put it back: {RESTORE}"
            faults.append(Fault(entry=words[alias].number if alias in words else None, fault=text))
        elif model is not None:
            faults += _word(registry, model, alias, words[alias])
    return faults


def _word(registry: Registry, model: Model, alias: str, last: Record) -> list[Fault]:
    """What MLflow has as the last word about an alias: a service believes it, and names who stands for the version."""
    try:
        word = registry.word(model, alias)
    except SignatureInvalid as error:
        return [Fault(entry=None, fault=f"the word about the alias {alias}: {error}")]
    if word != last:
        text = f"MLflow holds entry {word.number} as the last word about {alias}, which this one is. Put it back: "
        return [Fault(entry=last.number, fault=text + RESTORE)]
    return []


def _versions(registry: Registry, records: Sequence[Record], entries: Sequence[Entry], *, files: bool) -> list[Fault]:
    """Every version against the entry that registered it, and its files against its digest."""
    # As `history.registered`, the first: a later one that says otherwise is no other registration.
    registered = {record.version: record for record in reversed(records) if record.action == "register"}
    faults = []
    for entry in entries:
        record = registered.get(entry.version)
        number = record.number if record else None
        if record is None:
            faults.append(
                Fault(entry=None, fault=f"version {entry.version} is in MLflow but nobody registered it here")
            )
        elif record.digest != entry.digest:
            text = f"it registered package {record.digest[:12]} but MLflow has version {entry.version} as "
            faults.append(Fault(entry=number, fault=text + (entry.digest[:12] or "no package")))
        for name in history.ORIGIN:
            said, signed = getattr(entry, name), getattr(record, name) if record else ""
            if record is not None and said != signed:
                text = f"it registered version {entry.version} with {name} {signed[:12] or 'none'} but MLflow says "
                faults.append(Fault(entry=number, fault=text + (said[:12] or "none")))
        try:
            registry.check_signature(entry)
            if files:
                registry.check_files(entry)
        except (RegistryUnreachable, NotPermitted):
            raise  # nothing was looked at
        except (PackageError, RegistryError) as error:
            faults.append(Fault(entry=number, fault=f"version {entry.version}: {error}"))
    gone = registered.keys() - {entry.version for entry in entries}
    return faults + [
        Fault(entry=registered[version].number, fault=f"version {version} is no longer in MLflow{_GONE}")
        for version in sorted(gone, key=int)
    ]
