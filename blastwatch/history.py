"""What happened to the model versions: entries that are only ever added, kept as tags of the registered model.

Any MLflow store carries them, and MLflow's own page shows them beside the versions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from blastwatch.errors import UsageError

PREFIX = "blastwatch.history."
ACTIONS = ("register", "promote", "refuse", "rollback")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry. `before` and `after` are the champion's versions around it ("" for none); times are UTC, ISO 8601."""

    number: int
    time: str
    who: str
    action: str
    version: str
    digest: str
    before: str
    after: str
    why: str
    gates: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read(tags: Mapping[str, str]) -> list[Record]:
    """The entries among the tags of a registered model, oldest first."""
    found = sorted(name for name in tags if name.startswith(PREFIX))
    return [Record(**json.loads(tags[name])) for name in found]


def tag_of(record: Record) -> tuple[str, str]:
    """Name and value of the tag that keeps an entry."""
    text = json.dumps(record.to_dict(), sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{PREFIX}{record.number:06d}", text


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def parse_time(text: str) -> datetime:
    """A time given by a person, ISO 8601; without an offset it is UTC.

    Raises:
        UsageError: where the text is no such time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"Expected a time such as 2026-11-24T14:05 or 2026-11-24T14:05+01:00 but got {text!r}."
        ) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def until(records: Sequence[Record], at: datetime) -> list[Record]:
    """The entries that were there at a time."""
    return [record for record in records if datetime.fromisoformat(record.time) <= at]


def champions(records: Sequence[Record]) -> list[str]:
    """The champions that a rollback would step through: the last is the present one.

    A promotion adds one; a rollback takes the last away.
    """
    stack: list[str] = []
    for record in records:
        if record.action == "promote":
            stack.append(record.version)
        elif record.action == "rollback" and stack:
            stack.pop()
    return stack


def crowned(records: Sequence[Record], version: str) -> Record | None:
    """The entry that last made a version champion, None where it never was."""
    for record in reversed(records):
        if record.action in ("promote", "rollback") and record.after == version:
            return record
    return None
