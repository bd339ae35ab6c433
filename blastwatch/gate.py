"""One condition on a version that shall become champion, and the names of all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from blastwatch.one_line import one_line
from blastwatch.rounding import BOUNDS, against, fixed, significant

GATES = (
    "digests",
    "signature",
    "audit",
    "split",
    "groups",
    "answers",
    "initial-weights",
    "sensitivity",
    "specificity",
    "calibration",
    "cameras",
    "baseline",
    "parity",
    "latency",
    "reference-cells",
    "reference-groups",
    "card",
    "golden",
    "two-persons",
    "non-inferiority",
)
"""Names of the gates in the order in which they are judged: what `--override` and the policy call them."""

NEVER_OVERRIDDEN = ("digests", "signature")
"""Without these two nothing else that is known of a version holds."""

COUNTED = ("cells", "patients", "ms")
"""Units of counts and times. A figure of any other unit is a share or a difference of two: 1 of it is not one."""

OFF = "off by policy"
MISSING = "not in the evidence"
AT_LEAST, AT_MOST = "at least", "at most"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What was found, what was allowed, and the verdict.

    value, limit: numbers where there is one, else words. note: what the figure is of, or why there is none.
    unit: of both, where they are numbers of one; bound: `AT_LEAST` or `AT_MOST` before a limit that is a number.
    policy: `Policy.digest` of the policy by which it was judged, "" in the report of an earlier Blastwatch.
    overridden: a promoter took the version in spite of a failure; whoever promotes sets it, `evaluate` never does.
    """

    name: str
    passed: bool
    value: float | str
    limit: float | str
    note: str = ""
    overridden: bool = False
    unit: str = ""
    bound: str = ""
    policy: str = ""

    @classmethod
    def stored(cls, row: Mapping[str, Any]) -> "Gate":
        """A gate out of the report of an entry; what a later Blastwatch reports beside it is left."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value for name, value in row.items() if name in known})

    @property
    def off(self) -> bool:
        """True where the policy does not judge it: its figure, if it has one, is reported and nothing more."""
        return self.limit == OFF

    @property
    def verdict(self) -> str:
        """In one word; a gate that is off was not passed."""
        if self.off:
            return "off"
        return "passed" if self.passed else ("OVERRIDDEN" if self.overridden else "FAILED")

    @property
    def told(self) -> str:
        """Its name, what was found and what was allowed."""
        value, allowed = _figures(self.value, self.limit)
        if self.unit and self.unit not in COUNTED and self.value in BOUNDS:
            value = fixed(float(self.value))
        limit = OFF if self.off else f"limit: {' '.join(part for part in (self.bound, allowed) if part)}"
        unit = f" {self.unit}" if self.unit and not isinstance(self.value, str) else ""
        return f"{self.name}: {value}{unit} ({limit}){f'; {self.note}' if self.note else ''}"

    @property
    def stands(self) -> bool:
        """True where this gate does not hold the version back."""
        return self.passed or self.overridden

    def __str__(self) -> str:
        return f"{self.verdict}  {self.told}"


def table_of(gates: Sequence[Gate], named: Mapping[str, str] | None = None) -> str:
    """The report of the gates for a person, one a line, and by which policy they were judged.

    Args:
        named: policies that are known here by more than their digest, by that.
    """
    width = max((len(gate.verdict) for gate in gates), default=0)
    lines = [one_line(f"{gate.verdict:<{width}}  {gate.told}") for gate in gates]
    for digest in dict.fromkeys(gate.policy for gate in gates if gate.policy):
        name = (named or {}).get(digest, "")
        lines.append(f"Judged by {name} ({digest[:12]})." if name else f"Judged by policy {digest[:12]}.")
    return "\n".join(lines)


def at_least(name: str, value: float | None, limit: float | None, note: str = "", *, unit: str = "") -> Gate:
    """A figure that must not be below its limit; None as limit switches the gate off. None as value fails it, and so
    does what is no finite number: it compares with nothing, and no report can hold it."""
    value = value if value is not None and math.isfinite(value) else None
    passed = value is not None and limit is not None and value >= limit
    return _judged(name, value, limit, passed, note, unit, AT_LEAST)


def at_most(name: str, value: float | None, limit: float | None, note: str = "", *, unit: str = "") -> Gate:
    """A figure that must not be above its limit; as `at_least`."""
    value = value if value is not None and math.isfinite(value) else None
    passed = value is not None and limit is not None and value <= limit
    return _judged(name, value, limit, passed, note, unit, AT_MOST)


def _judged(
    name: str, value: float | None, limit: float | None, passed: bool, note: str, unit: str, bound: str
) -> Gate:
    """A figure that is not there fails, unless the gate is off."""
    off = limit is None
    return Gate(
        name=name,
        passed=off or passed,
        value=MISSING if value is None else value,
        limit=OFF if limit is None else float(limit),
        note=note,
        unit=unit,
        bound=bound,
    )


def _figures(value: float | str, limit: float | str) -> tuple[str, str]:
    """Numbers with as many digits as they are read with and told apart by; words as they are."""
    if isinstance(value, str) or isinstance(limit, str):
        alone = (one if isinstance(one, str) else significant(one) for one in (value, limit))
        return next(alone), next(alone)
    return against(value, limit)
