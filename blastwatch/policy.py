"""The policy: what a version needs to become champion, and what a finding starts; `policy.yaml` and a file over it."""

from collections.abc import Hashable
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import date
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import yaml

from blastwatch.digests import json_digest
from blastwatch.errors import PolicyError
from blastwatch.gate import GATES, NEVER_OVERRIDDEN

DEFAULTS = Path(__file__).with_name("policy.yaml")


@dataclass(frozen=True, kw_only=True)
class NonInferiority:
    """margin: bearable loss of balanced accuracy by patient; confidence: one-sided, see `blastwatch.noninferiority`;
    least_patients: of each label."""

    margin: float | None
    confidence: float
    least_patients: int


@dataclass(frozen=True, kw_only=True)
class Floors:
    """Lowest means over test patients."""

    sensitivity: float | None
    specificity: float | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """largest_ece: expected calibration error on test cells, after temperature scaling."""

    largest_ece: float | None


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """largest_loss: of mean accuracy over patients, under the worst of the simulated cameras."""

    largest_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """least_difference: lower end of the interval of the network's AUROC less that of three size numbers."""

    least_difference: float | None


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """Of the engine that serves here: flips against float32, median of one cell, and whether golden cells are asked."""

    largest_flip_rate: float | None
    largest_latency_ms: float | None
    golden_cells: bool


@dataclass(frozen=True, kw_only=True)
class DriftReference:
    """How many cells, of how many patients, the drift reference must hold."""

    least_cells: int | None
    least_groups: int | None


@dataclass(frozen=True, kw_only=True)
class Card:
    """headings: sections that the model card must have."""

    headings: tuple[str, ...] | None


@dataclass(frozen=True, kw_only=True)
class RetrainingPolicy:
    """command: an empty one starts nothing; findings: among `FINDINGS`; see `monitoring.retraining`."""

    command: tuple[str, ...]
    findings: tuple[str, ...]
    after_hours: float
    pause_days: float


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The whole file; None is a gate that is off. Read it with `load_policy`.

    two_person_since: first day (UTC) whose entries services hold to the rule too, see `blastwatch.two_persons`.
    """

    non_inferiority: NonInferiority
    floors: Floors
    calibration: Calibration
    cameras: Cameras
    baseline: Baseline
    engine: EngineLimits
    drift_reference: DriftReference
    card: Card
    two_person: bool
    two_person_since: date | None
    require_reason: bool
    overridable: tuple[str, ...]
    retraining: RetrainingPolicy
    serve_moved_alias: bool

    def to_dict(self) -> dict[str, Any]:
        since = self.two_person_since
        return asdict(self) | {"two_person_since": since.isoformat() if since else None}

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what it says, defaults included: each report of the gates names it."""
        return json_digest(self.to_dict())


# Lowest and highest value, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    "non_inferiority.margin": (0, 1),
    "non_inferiority.confidence": (0.5, 0.9999),
    "non_inferiority.least_patients": (2, 1_000_000),
    "floors.sensitivity": (0, 1),
    "floors.specificity": (0, 1),
    "calibration.largest_ece": (0, 1),
    "cameras.largest_loss": (0, 1),
    "baseline.least_difference": (-1, 1),
    "engine.largest_flip_rate": (0, 1),
    "engine.largest_latency_ms": (0.001, 1e9),
    "drift_reference.least_cells": (1, 1_000_000_000),
    "drift_reference.least_groups": (1, 1_000_000),
    "retraining.after_hours": (0, 8760),
    "retraining.pause_days": (0, 3650),
}
FINDINGS = ("drift", "patients", "estimated", "realised")
"""What the monitor may find: the window drifted; the patients changed; the estimated or the realised accuracy fell
below the reference's."""

KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    tuple: "a list of texts",
    date: "a day such as 2026-12-01 without quotes",
}


def load_policy(path: Path | None) -> Policy:
    """The defaults, and over them what a file names.

    Args:
        path: None for the defaults alone.

    Raises:
        PolicyError: naming the key, what was expected and what came.
    """
    document = _read(DEFAULTS)
    if path is not None:
        document = _over(document, _read(path), Policy, where="")
    policy: Policy = _build(Policy, document, where="")
    _check_overridable(policy.overridable)
    if policy.two_person_since is not None and not policy.two_person:
        raise PolicyError("Expected two_person: true of the promotion policy beside two_person_since but got false.")
    _check_retraining(policy.retraining)
    return policy


def named(path: Path | None) -> str:
    """The policy of a path, which `load_policy` takes, in a report of the gates."""
    return "the default policy" if path is None else str(path)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice; YAML itself would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise PolicyError(f"Expected every key of the policy once but {', '.join(twice)} stands twice.")
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_bytes(), _Loader) or {}  # noqa: S506  (a SafeLoader)
    except OSError as error:
        raise PolicyError(f"The promotion policy {path} cannot be read: {error}. Check BLASTWATCH_POLICY.") from error
    except yaml.YAMLError as error:
        raise PolicyError(f"Expected YAML in the promotion policy {path} but it cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise PolicyError(f"Expected sections of keys and values in the promotion policy {path} but got {document!r}.")
    return document


def _over(known: dict[str, Any], given: Any, kind: type, *, where: str) -> dict[str, Any]:
    """`given` over `known`, key by key through the sections."""
    if not isinstance(given, dict):
        raise PolicyError(f"Expected {where} of the promotion policy to be keys and values but got {given!r}.")
    hints = get_type_hints(kind)
    unknown = [str(key) for key in given if key not in hints]
    if unknown:
        raise PolicyError(
            f"Expected keys of {where or 'the promotion policy'} among {', '.join(hints)} but got {', '.join(unknown)}."
        )
    joined = {
        key: _over(known[key], value, hints[key], where=_at(where, key)) if is_dataclass(hints[key]) else value
        for key, value in given.items()
    }
    return {**known, **joined}


def _at(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _build(kind: Any, values: dict[str, Any], *, where: str) -> Any:
    hints = get_type_hints(kind)
    return kind(**{field.name: _value(hints[field.name], values[field.name], _at(where, field.name))
                   for field in fields(kind)})  # fmt: skip


def _value(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return _build(hint, value, where=where)
    kinds = get_args(hint) if NoneType in get_args(hint) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not NoneType)
    kind = tuple if kind not in KINDS else kind
    if kind is float and type(value) is int:
        value = float(value)
    if kind is tuple and isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = tuple(value)
    if type(value) is not kind:
        off = ", or null to switch the gate off," if NoneType in kinds else ""
        raise PolicyError(f"Expected {where} of the promotion policy to be {KINDS[kind]}{off} but got {value!r}.")
    if where in RANGES:
        low, high = RANGES[where]
        if not low <= value <= high:
            raise PolicyError(
                f"Expected {where} of the promotion policy to lie from {low:g} to {high:g} but got {value!r}."
            )
    return value


def _check_overridable(names: tuple[str, ...]) -> None:
    allowed = [name for name in GATES if name not in NEVER_OVERRIDDEN]
    wrong = [name for name in names if name not in allowed]
    if wrong:
        raise PolicyError(
            f"Expected overridable of the promotion policy to name gates among {', '.join(allowed)} but got "
            f"{', '.join(wrong)}. {' and '.join(NEVER_OVERRIDDEN)} can never be overridden."
        )


def _check_retraining(retraining: RetrainingPolicy) -> None:
    wrong = [name for name in retraining.findings if name not in FINDINGS]
    if wrong:
        raise PolicyError(
            f"Expected retraining.findings of the policy to be among {', '.join(FINDINGS)} but got {', '.join(wrong)}."
        )
