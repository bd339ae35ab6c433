"""What happened to the model versions: entries that are only ever added, each holding the hash of the one before.

An entry's body is JSON; its hash is SHA-256 over the body; the signature is Ed25519 over that hash. The report of the
gates lies beside the body, which holds its hash. So nothing of an entry can change, and no entry can go, come or
change places, without the chain showing it (hash chains: Haber and Stornetta 1991, doi:10.1007/BF00196791). What the
chain alone cannot show is a cut tail: MLflow mirrors the head (see `recording`).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from blastwatch import clocks
from blastwatch.errors import HistoryBroken, SignatureInvalid, UsageError
from blastwatch.signing import PROMOTER, TRAINER, TrustedKeys, canonical

CANDIDATE, CHAMPION, CHALLENGER = "candidate", "champion", "challenger"
ALIASES = (CANDIDATE, CHAMPION, CHALLENGER)
NOTHING_BEFORE = "0" * 64

ROLE_OF = {
    "register": TRAINER,
    "promote": PROMOTER,
    "refuse": PROMOTER,
    "rollback": PROMOTER,
    "challenge": PROMOTER,
    "withdraw": PROMOTER,
    "restore": PROMOTER,
}
"""Every action, and the role that its signature needs."""

MOVES = {
    "register": CANDIDATE,
    "promote": CHAMPION,
    "rollback": CHAMPION,
    "challenge": CHALLENGER,
    "withdraw": CHALLENGER,
}
"""The alias that an action moves; the others move none. A role is that of an action, so no action may move another."""

MOVE_SECONDS = 3.0
"""The longest time between the two writes that move an alias: the alias itself, and the signed word about it."""

_VERSION = re.compile(r"[1-9][0-9]{0,8}")  # as MLflow counts

ORIGIN = ("data_digest", "split_digest", "git_commit")
"""What a version was made of, as a package, an entry and a record name it; a registration signs it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One entry.

    alias: the one that moved, "" where none did; before, after: its versions around the entry, "" for none.
    digest, data_digest, split_digest, git_commit: of the version's package, data, split and code.
    overridden: gates that failed and were overridden. report: SHA-256 of the report of the gates.
    key: fingerprint of the key that signed. previous: hash of the entry before. Times are UTC, ISO 8601.
    """

    model: str
    number: int
    time: str
    who: str
    action: str
    alias: str
    version: str
    before: str
    after: str
    why: str
    digest: str
    data_digest: str
    split_digest: str
    git_commit: str
    overridden: list[str]
    report: str
    key: str
    previous: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


_TEXTS = tuple(field.name for field in fields(Record) if field.type is str)


@dataclass(frozen=True)
class Row:
    """An entry as it is stored; `gates` is the report of the gates, a JSON list."""

    number: int
    body: str
    gates: str
    hash: str
    signature: str

    def record(self) -> Record:
        """Raises `HistoryBroken` where the body is no entry."""
        try:
            return _checked(Record(**json.loads(self.body)))
        except (ValueError, TypeError, RecursionError) as error:
            raise HistoryBroken(
                f"Entry {self.number} of the history cannot be read. Look with: blastwatch registry verify"
            ) from error


def _checked(record: Record) -> Record:
    """An entry whose fields are what they should be, whoever wrote it. Raises `ValueError`, `TypeError`."""
    texts = [getattr(record, name) for name in _TEXTS]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"Expected text as {', '.join(_TEXTS)} but got {texts!r}.")
    if type(record.number) is not int:
        raise TypeError(f"Expected a whole number but got {record.number!r}.")
    if not (isinstance(record.overridden, list) and all(isinstance(gate, str) for gate in record.overridden)):
        raise TypeError(f"Expected a list of gates but got {record.overridden!r}.")
    for text in (record.version, record.before or "1", record.after or "1"):
        if not _VERSION.fullmatch(text):
            raise ValueError(f"Expected the number of a version but got {text!r}.")
    if datetime.fromisoformat(record.time).tzinfo is None:
        raise ValueError(f"Expected a time in UTC but got {record.time!r}.")
    "".join(texts + record.overridden).encode()  # half a character, which JSON can name, can be shown nowhere
    return record


def body_of(record: Record) -> str:
    """The text that is hashed."""
    return canonical(record.to_dict()).decode()


def hash_of(body: str) -> str:
    """SHA-256 (hex) of a body."""
    return sha256(body.encode()).hexdigest()


def report_of(gates: Sequence[Mapping[str, Any]]) -> str:
    """The text of the gates' report."""
    return json.dumps([dict(gate) for gate in gates], sort_keys=True, ensure_ascii=False, allow_nan=False)


def statement(digest: str) -> dict[str, str]:
    """What the signature of an entry is over."""
    return {"purpose": "blastwatch history", "hash": digest}


def faults(rows: Sequence[Row], trusted: TrustedKeys, *, model: str) -> list[tuple[int, str]]:
    """Number and words of every entry that is not what was signed, in order; rows as they lie, by number.

    Args:
        model: name of the registered model whose history it is.
    """
    found: list[tuple[int, str]] = []
    previous = NOTHING_BEFORE
    first: dict[str, Record] = {}
    for expected, row in enumerate(rows, start=1):
        found += [(row.number, text) for text in _faults_of(row, expected, previous, trusted)]
        found += [(row.number, text) for text in _faults_of_place(row, model, first)]
        previous = row.hash
    return found


def _faults_of_place(row: Row, model: str, first: dict[str, Record]) -> list[str]:
    """What an entry as it was signed has no place for in this history.

    Args:
        first: the entry that registered each version before; this one is added.
    """
    if hash_of(row.body) != row.hash:
        return []
    try:
        record = row.record()
    except HistoryBroken:
        return []
    found = [] if record.model == model else [f"it is of the history of {record.model!r}, not of {model!r}"]
    if record.action == "register":
        known = first.setdefault(record.version, record)
        found += [
            f"it registers version {record.version} with another {name} than entry {known.number}, which stands"
            for name in ("digest", *ORIGIN)
            if getattr(record, name) != getattr(known, name)
        ]
    return found


def _faults_of(row: Row, expected: int, previous: str, trusted: TrustedKeys) -> list[str]:
    if hash_of(row.body) != row.hash:
        return ["its text is not the one that was hashed"]
    try:
        record = row.record()
    except HistoryBroken:
        return ["it cannot be read"]
    found = []
    if hash_of(row.gates) != record.report:
        found.append("the report of its gates is not the one that was signed")
    if not row.number == record.number == expected:
        found.append(f"it stands as number {row.number} at place {expected} and says it is number {record.number}")
    if record.alias != MOVES.get(record.action, ""):
        found.append(f"a {record.action} moves no alias {record.alias!r}")
    if record.previous != previous:
        found.append("it does not follow the entry before it: one was changed, removed or moved")
    try:
        trusted.check(statement(row.hash), row.signature, record.key, role=ROLE_OF.get(record.action, PROMOTER))
    except SignatureInvalid as error:
        found.append(str(error))
    return found


def now() -> str:
    """The time in UTC, ISO 8601 with microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def parse_time(text: str) -> datetime:
    """A time given by a person, ISO 8601; without an offset it is UTC.

    Raises:
        UsageError: where the text is no such time, or one that is still to come.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(
            f"Expected a time such as 2026-11-24T14:05 or 2026-11-24T14:05+01:00 but got {text!r}."
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment > datetime.now(UTC):
        raise UsageError(f"Expected a time that has been but got {text!r}: what will serve then is not known.")
    return moment


def until(records: Sequence[Record], at: datetime) -> list[Record]:
    """The entries that were there at a time."""
    return [record for record, written in zip(records, clocks.written(records), strict=True) if written <= at]


def aliases(records: Sequence[Record]) -> dict[str, str]:
    """Where the history says that each alias stands."""
    standing = {alias: stands_on(word, alias) for alias, word in words(records).items()}
    return {alias: version for alias, version in standing.items() if version}


def words(records: Sequence[Record]) -> dict[str, Record]:
    """The entry that last moved each alias, or took it away: its word."""
    found: dict[str, Record] = {}
    standing: dict[str, str] = {}
    for record in records:
        for alias in moved_by(record, standing):
            found[alias], standing[alias] = record, stands_on(record, alias)
    return found


def moved_by(record: Record, standing: Mapping[str, str]) -> list[str]:
    """The aliases that an entry moves or takes away.

    A version that becomes champion gives up being candidate and challenger.

    Args:
        standing: the version that each alias stands on before the entry.
    """
    moved = [record.alias] if record.alias else []
    if record.alias == CHAMPION:
        moved += [alias for alias in (CANDIDATE, CHALLENGER) if standing.get(alias) == record.after]
    return moved


def champions(records: Sequence[Record]) -> list[str]:
    """The champions that a rollback would step through: the last is the present one.

    A promotion adds one; a rollback takes the last away, and with it those before that it stepped over.
    """
    stack: list[str] = []
    for record in records:
        if record.action == "promote":
            stack.append(record.version)
        elif record.action == "rollback" and stack:
            stack.pop()
            while stack and stack[-1] != record.after:
                stack.pop()
    return stack


def registered(records: Sequence[Record], version: str) -> Record | None:
    """The entry that registered a version, None where there is none."""
    for record in records:
        if record.action == "register" and record.version == version:
            return record
    return None


def crowned(records: Sequence[Record], version: str | None = None) -> Record | None:
    """The entry that last made a version (or any) champion, None where it never was."""
    for record in reversed(records):
        if record.action in ("promote", "rollback") and version in (None, record.after):
            return record
    return None


def promoted(records: Sequence[Record], version: str) -> Record | None:
    """The entry that last promoted a version, with its gates; a rollback to it has none of its own."""
    for record in reversed(records):
        if record.action == "promote" and record.version == version:
            return record
    return None


def told(rows: Sequence[Row], at: datetime | None) -> dict[str, Any]:
    """What served at a time, who made it so, on what data, and what was overridden; `version` is "" for none.

    Args:
        at: None is now, after every entry, whatever its time.
    """
    records = [row.record() for row in rows]
    past = records if at is None else until(records, at)
    asked = {
        "at": now() if at is None else at.isoformat(),
        "entries": len(past),
        "unsure": [] if at is None else clocks.unsure(records, at, datetime.fromisoformat(now())),
    }
    made = crowned(past)
    if made is None:
        return asked | {"version": ""}
    evidence = promoted(past, made.after) or made
    return asked | {
        "version": made.after,
        "since": clocks.told_time(records, made),
        "by": made.who,
        "action": made.action,
        "why": made.why,
        "digest": made.digest,
        **{name: getattr(made, name) for name in ORIGIN},
        "promoted": {"time": clocks.told_time(records, evidence), "by": evidence.who, "why": evidence.why},
        "gates": _gates(rows, evidence.number),
        "overridden": evidence.overridden,
    }


def _gates(rows: Sequence[Row], number: int) -> Any:
    """The report of the gates of an entry. Raises `HistoryBroken` where it cannot be read."""
    for row in rows:
        if row.number == number:
            try:
                found = json.loads(row.gates)
                json.dumps(found, ensure_ascii=False, allow_nan=False).encode()  # as it is shown; Python reads more
                return found
            except (ValueError, RecursionError):
                break
    raise _no_report(number)


def _no_report(number: int) -> HistoryBroken:
    return HistoryBroken(
        f"The gates' report of entry {number} of the history cannot be read. Look with: blastwatch registry verify"
    )


def failed_gates(row: Row) -> list[str]:
    """Names of the gates that an entry's report has as failed and not overridden. Raises `HistoryBroken`."""
    try:
        return [gate["name"] for gate in _gates([row], row.number) if not (gate["passed"] or gate.get("overridden"))]
    except (TypeError, KeyError) as error:
        raise _no_report(row.number) from error


def stands_on(record: Record, alias: str) -> str:
    """The version on which an entry leaves an alias; "" where a promotion took the alias from the version."""
    return record.after if alias == record.alias else ""
