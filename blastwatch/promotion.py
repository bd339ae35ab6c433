"""Who becomes champion, and what undoes it: the gates, the rollback, and the check of the whole registry."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blastwatch import history
from blastwatch.comparison import compare
from blastwatch.errors import AliasNotSet, DataError, PackageError, PromotionRefused, RegistryError, UsageError
from blastwatch.manifest import read_cells
from blastwatch.package import Package
from blastwatch.registry import CHAMPION, Entry, Registry


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One condition: what was found, what was allowed, and the verdict. `limit` and `value` are numbers or words."""

    name: str
    passed: bool
    value: float | str
    limit: float | str

    def __str__(self) -> str:
        value, limit = (f"{part:.4f}" if isinstance(part, float) else part for part in (self.value, self.limit))
        return f"{'passed' if self.passed else 'FAILED'}  {self.name}: {value} (limit: {limit})"


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What `registry promote --json` prints."""

    version: str
    promoted: bool
    gates: list[Gate]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self) -> None:
        """Raise `PromotionRefused` naming the gates that failed."""
        failed = [str(gate) for gate in self.gates if not gate.passed]
        if failed:
            raise PromotionRefused(f"Version {self.version} was not promoted. " + "; ".join(failed))


def promote(registry: Registry, ref: str, *, reason: str, cells: Path | None) -> Promotion:
    """Make a version champion if it passes every gate; a refusal is written into the history too.

    Args:
        cells: imported data set, for test cells that the champion was never tested on.

    Raises:
        UsageError: where the version serves already.
    """
    entry = registry.entry(ref)
    if CHAMPION in entry.aliases:
        raise UsageError(f"Version {entry.version} already is the champion.")
    gates = _gates(registry, entry, cells)
    result = Promotion(version=entry.version, promoted=all(gate.passed for gate in gates), gates=gates)
    rows = [asdict(gate) for gate in gates]
    if result.promoted:
        registry.crown(entry, action="promote", why=reason, gates=rows)
    else:
        registry.record("refuse", version=entry.version, digest=entry.digest, why=reason, gates=rows)
    return result


def _gates(registry: Registry, entry: Entry, cells: Path | None) -> list[Gate]:
    """Digests first: nothing else of a package that was changed is worth reading."""
    try:
        candidate = registry.fetch(entry.version, fresh=True).package
    except PackageError as error:
        return [Gate(name="digests", passed=False, value=str(error), limit="every file as it was registered")]
    gates = [Gate(name="digests", passed=True, value=candidate.digest[:12], limit="every file as it was registered")]
    gates.append(_patient_gate(candidate))
    gates.append(_not_worse(registry, candidate, cells))
    return gates


def _patient_gate(candidate: Package) -> Gate:
    """Figures from a split that parts a patient say nothing about the next patient."""
    split = candidate.evidence("split")
    leaky = bool(split["leaky"])
    return Gate(
        name="split by patient", passed=not leaky, value=f"by {split['by']}", limit="no patient on two sides"
    )  # fmt: skip


def _not_worse(registry: Registry, candidate: Package, cells: Path | None) -> Gate:
    name, margin = "not worse than the champion (weighted F1, same test cells)", registry.settings.promotion_margin
    try:
        champion = registry.fetch(CHAMPION).package
    except AliasNotSet:
        return Gate(name=name, passed=True, value="no champion yet", limit=-margin)
    try:
        found = compare(candidate, champion, read_cells(cells) if cells else None)
    except DataError as error:
        return Gate(name=name, passed=False, value=str(error), limit=-margin)
    return Gate(name=name, passed=found.difference >= -margin, value=round(found.difference, 6), limit=-margin)


def rollback(registry: Registry, *, reason: str) -> Entry:
    """Give the alias back to the champion before the present one.

    Raises:
        AliasNotSet: where there is no champion, or none before it.
    """
    current = registry.entry(CHAMPION)
    stack = history.champions(registry.records())
    if not stack or stack[-1] != current.version:
        last = stack[-1] if stack else "none"
        raise RegistryError(
            f"The alias champion stands on version {current.version} but the history says {last}: it was moved "
            "behind the registry's back. Promote the version that shall serve."
        )
    if len(stack) < 2:
        raise AliasNotSet(f"Version {current.version} is the first champion; there is none to roll back to.")
    target = registry.entry(stack[-2])
    registry.fetch(target.version, fresh=True)
    registry.crown(target, action="rollback", why=reason, gates=[])
    return registry.entry(target.version)


def verify(registry: Registry) -> list[str]:
    """Faults of the registry, empty where all is well: changed package files, and aliases moved past the history."""
    faults = []
    for entry in registry.entries():
        try:
            registry.fetch(entry.version, fresh=True)
        except (PackageError, RegistryError) as error:
            faults.append(f"version {entry.version}: {error}")
    stack = history.champions(registry.records())
    serving = [entry.version for entry in registry.entries() if CHAMPION in entry.aliases]
    if serving != stack[-1:]:
        faults.append(
            f"the alias champion stands on version {', '.join(serving) or 'none'} but the history says "
            f"{', '.join(stack[-1:]) or 'none'}"
        )
    return faults
