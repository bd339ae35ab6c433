"""What a version must show before it becomes champion, gate by gate, each with its figure and its limit.

Files and signature come first: nothing else that a package says is worth reading where its files were changed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from blastwatch import history, noninferiority
from blastwatch.comparison import compare
from blastwatch.engine_gates import engine_gates
from blastwatch.engines import choose
from blastwatch.entry import Entry
from blastwatch.errors import BlastwatchError, DataError, PackageError, SignatureInvalid, VersionNotFound
from blastwatch.evidence_gates import (
    audit_gate,
    baseline_gate,
    calibration_gate,
    cameras_gate,
    card_gate,
    floor_gates,
    groups_gate,
    initial_weights_gate,
    read_card,
    reference_gates,
    split_gate,
)
from blastwatch.gate import AT_LEAST, GATES, OFF, Gate
from blastwatch.manifest import read_cells
from blastwatch.package import Package
from blastwatch.parity import parity_gate
from blastwatch.policy import NonInferiority, Policy
from blastwatch.registry import CHAMPION, Registry
from blastwatch.rounding import against, fixed, percent
from blastwatch.stored_answers import answers_gate
from blastwatch.two_persons import two_persons_gate

__all__ = ["GATES", "Gate", "evaluate"]


def evaluate(
    registry: Registry, entry: Entry, policy: Policy, cells: Path | None, actor: str, *, key: str = ""
) -> list[Gate]:
    """Judge a version by every gate, in the order of `GATES`; by `digests` alone where its files were changed.

    Args:
        cells: imported data set, for test cells that the champion was never tested on.
        actor: who would promote it. key: fingerprint of the key that would sign it, "" where that is not known.

    Raises:
        RegistryError: where the registry cannot be read. A version that fails is no error.
    """
    found = _judged(registry, entry, policy, cells, actor, key=key)
    return [replace(gate, policy=policy.digest) for gate in found]


def _judged(
    registry: Registry, entry: Entry, policy: Policy, cells: Path | None, actor: str, *, key: str
) -> list[Gate]:
    intact = "every file as it was registered"
    known = history.registered(registry.records(), entry.version)
    if known is not None and known.digest != entry.digest:
        value = f"registered as package {known.digest[:12]}, but MLflow has it as {entry.digest[:12]}"
        return [Gate(name="digests", passed=False, value=value, limit=intact)]
    try:
        package = registry.fetch_entry(entry, fresh=True)
    except PackageError as error:
        return [Gate(name="digests", passed=False, value=str(error), limit=intact)]
    engine, threads = choose(registry.settings.engine, package), registry.settings.threads
    latency, golden = engine_gates(package, policy, engine, threads=int(threads) if threads else None)
    return [
        Gate(name="digests", passed=True, value=package.digest[:12], limit=intact),
        signature_gate(registry, entry),
        *_read(["audit"], lambda: [audit_gate(package)]),
        *_read(["split"], lambda: [split_gate(package)]),
        *_read(["groups"], lambda: [groups_gate(package)]),
        answers_gate(package),
        *_read(["initial-weights"], lambda: [initial_weights_gate(package)]),
        *_read(["sensitivity", "specificity"], lambda: floor_gates(package, policy)),
        *_read(["calibration"], lambda: [calibration_gate(package, policy)]),
        *_read(["cameras"], lambda: [cameras_gate(package, policy)]),
        *_read(["baseline"], lambda: [baseline_gate(package, policy)]),
        parity_gate(package, policy, engine),
        latency,
        *_read(["reference-cells", "reference-groups"], lambda: reference_gates(package, policy)),
        *_read(["card"], lambda: [card_gate(read_card(package), policy)]),
        golden,
        two_persons_gate(known, actor, policy, settings=registry.settings, key=key),
        champion_gate(registry, package, policy.non_inferiority, cells),
    ]


def _read(names: Sequence[str], ask: Callable[[], list[Gate]]) -> list[Gate]:
    """The gates of these names, which read what travels in the package; each fails where that is of another shape, off
    by the policy or not, since nobody knows what else such a package holds."""
    try:
        return ask()
    except PackageError as error:
        return [Gate(name=name, passed=False, value=str(error), limit="evidence that can be read") for name in names]


def signature_gate(registry: Registry, entry: Entry) -> Gate:
    """Somebody who may register did register this version, and signed the package's digest."""
    limit = "a trusted key's signature of the package"
    try:
        registry.check_registered(entry)
    except SignatureInvalid as error:
        return Gate(name="signature", passed=False, value=str(error), limit=limit)
    return Gate(name="signature", passed=True, value="valid", limit=limit)


def champion_gate(registry: Registry, candidate: Package, policy: NonInferiority, cells: Path | None) -> Gate:
    """The candidate is not inferior to the present champion, see `blastwatch.noninferiority`.

    Which version and which package that is says the history: whoever may write to MLflow sets its alias and its tags.
    """
    name, margin = "non-inferiority", policy.margin
    if margin is None:
        return Gate(name=name, passed=True, value="not compared", limit=OFF)
    word = history.words(registry.records()).get(CHAMPION)
    if word is None:
        return Gate(name=name, passed=True, value="no champion yet", limit=-margin, bound=AT_LEAST)
    try:
        champion = registry.entry(word.after)
        if champion.digest != word.digest:
            raise PackageError(
                f"version {champion.version} became champion as package {word.digest[:12]} but MLflow has it as "
                f"{champion.digest[:12]}. Look with: blastwatch registry verify"
            )
        package = registry.fetch_entry(champion)
        found = compare(candidate, package, read_cells(cells) if cells else None)
    except (VersionNotFound, DataError, PackageError) as error:  # the first: it was deleted in MLflow
        return _incomparable(error, margin)
    counts = found.answers.drop_duplicates(["patient", "label"])["label"].value_counts()
    compared = {label: int(counts.get(label, 0)) for label in (noninferiority.ILL, noninferiority.HEALTHY)}
    told = " and ".join(f"{count} {label}" for label, count in compared.items())
    note = (
        f"against version {champion.version}: {len(found.answers)} cells of {told} patients, "
        f"{len(found.left_out)} patients left out because one of the two was trained on them, "
        f"{found.read_again} cells read again"
    )
    judged = None
    if min(compared.values()) >= policy.least_patients:
        columns = (found.answers[column].tolist() for column in ("patient", "label", "candidate", "champion"))
        judged = noninferiority.compare_by_patient(*columns, confidence=policy.confidence)
    if judged is None:
        value = f"cannot be judged: {told} patients, {policy.least_patients} of each are needed"
        return Gate(name=name, passed=False, value=value, limit=-margin, note=note, bound=AT_LEAST)
    fewest = min(compared.values())
    note += (
        "; not ruled out is a version that fails wholly on "
        f"{percent(noninferiority.unseen_share(fewest, confidence=policy.confidence), 0)} of the patients of a label, "
        f"none of them among the {fewest} compared"
    )
    difference, level = fixed(judged.difference, 4, sign=True), against(100 * policy.confidence, 100.0)[0]
    figure = f"lower bound at {level}% of a difference of {difference} in balanced accuracy"
    return Gate(
        name=name, passed=judged.within(margin), value=judged.low, limit=-margin, note=f"{figure}, {note}",
        bound=AT_LEAST,
    )  # fmt: skip


def _incomparable(error: BlastwatchError, margin: float) -> Gate:
    value = f"cannot be compared: {error}"
    return Gate(name="non-inferiority", passed=False, value=value, limit=-margin, bound=AT_LEAST)
