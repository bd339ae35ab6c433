"""What came of a command of `blastwatch registry` that judges a version or moves an alias; `--json` prints it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from blastwatch.entry import Entry
from blastwatch.errors import PromotionRefused
from blastwatch.gate import Gate


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """What `registry promote --json` prints.

    resumed: an interrupted promotion was finished; nothing was judged anew.
    given_up: the aliases that the version had and, being champion, has no more.
    """

    version: str
    promoted: bool
    gates: list[Gate]
    resumed: bool = False
    given_up: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self) -> None:
        """Raise `PromotionRefused` naming the gates that failed."""
        if not self.promoted:
            raise PromotionRefused(f"Version {self.version} was not promoted. {_failed(self.gates)}")


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What `registry check --json` prints: whether a version passes every gate, now and on this machine."""

    version: str
    passed: bool
    gates: list[Gate]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def check(self) -> None:
        """Raise `PromotionRefused` naming the gates that failed."""
        if not self.passed:
            raise PromotionRefused(f"Version {self.version} does not pass. {_failed(self.gates)}")


def _failed(gates: Sequence[Gate]) -> str:
    return "; ".join(gate.told for gate in gates if not gate.stands)


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What `registry rollback --json` prints: the version that is champion again.

    stepped_over: champions after it that it could not be, since they were deleted in MLflow; newest first.
    before: the version that was champion until then. forward: whether MLflow still has that one.
    """

    entry: Entry
    stepped_over: list[str]
    before: str
    forward: bool

    @property
    def version(self) -> str:
        return self.entry.version

    @property
    def note(self) -> str:
        """What was stepped over in words, "" for nothing."""
        return stepped(self.stepped_over)

    def to_dict(self) -> dict[str, Any]:
        return self.entry.to_dict() | {"stepped_over": self.stepped_over, "before": self.before}


def stepped(versions: Sequence[str]) -> str:
    """Champions that a rollback stepped over, in words; "" for none."""
    named = f"version{'s' if len(versions) > 1 else ''} {', '.join(versions)}"
    return f"stepped over {named}, deleted in MLflow" if versions else ""


@dataclass(frozen=True, kw_only=True)
class Change:
    """Versions of an alias before and after, "" for none."""

    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """What `registry restore --json` prints: where every alias stands.

    done: whether anything had to be put back or said; else nothing was written. changed: the aliases that were moved.
    ahead: numbers of the entries of which it says that their clock ran ahead; they count as written before `time`.
    """

    aliases: dict[str, str]
    done: bool
    changed: dict[str, Change] = field(default_factory=dict)
    ahead: list[int] = field(default_factory=list)
    time: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
