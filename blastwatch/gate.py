"""One condition on a version that shall become champion, and the names of all of them."""

from dataclasses import dataclass

GATES = (
    "digests",
    "signature",
    "audit",
    "split",
    "groups",
    "sensitivity",
    "specificity",
    "calibration",
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
