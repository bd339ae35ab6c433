"""One condition on a version that shall become champion, and the names of all of them."""

from dataclasses import dataclass

GATES = (
    "digests",
    "signature",
    "audit",
    "split",
    "groups",
    "initial-weights",
    "sensitivity",
    "specificity",
    "calibration",
    "cameras",
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

OFF = "off by policy"
MISSING = "not in the evidence"


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What was found, what was allowed, and the verdict.

    value, limit: numbers where there is one, else words. note: what the figure is of, or why there is none.
    overridden: a promoter took the version in spite of a failure; whoever promotes sets it, `evaluate` never does.
    """

    name: str
    passed: bool
    value: float | str
    limit: float | str
    note: str = ""
    overridden: bool = False

    @property
    def stands(self) -> bool:
        """True where this gate does not hold the version back."""
        return self.passed or self.overridden

    def __str__(self) -> str:
        value, limit = (f"{part:.4f}" if isinstance(part, float) else part for part in (self.value, self.limit))
        verdict = "passed" if self.passed else ("OVERRIDDEN" if self.overridden else "FAILED")
        note = f"; {self.note}" if self.note else ""
        return f"{verdict}  {self.name}: {value} (limit: {limit}){note}"


def at_least(name: str, value: float | None, limit: float | None, note: str = "") -> Gate:
    """A figure that must not be below its limit; None as limit switches the gate off, None as value fails it."""
    return _judged(name, value, limit, value is not None and limit is not None and value >= limit, note)


def at_most(name: str, value: float | None, limit: float | None, note: str = "") -> Gate:
    """A figure that must not be above its limit; as `at_least`."""
    return _judged(name, value, limit, value is not None and limit is not None and value <= limit, note)


def _judged(name: str, value: float | None, limit: float | None, passed: bool, note: str) -> Gate:
    """A figure that is not there fails, unless the gate is off."""
    off = limit is None
    return Gate(
        name=name,
        passed=off or passed,
        value=MISSING if value is None else value,
        limit=OFF if limit is None else float(limit),
        note=note,
    )
