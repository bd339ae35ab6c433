"""Writing to the registry so that a kill at any moment leaves it done or not done.

    1. one entry is added to the history        from here on it is done
    2. the alias is moved in MLflow
    3. MLflow is told: the signed entry as a tag of the version, of each alias that moved, and last as head

Whoever writes next first finishes what an earlier writer left between 1 and 3; everything there can be done twice. The
head that MLflow mirrors shows a cut tail: the history alone could not. The signed entry that stands at an alias (its
`word`) lets a service check by itself that a promoter moved it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from blastwatch import clocks, history
from blastwatch.entry import Entry
from blastwatch.errors import HistoryBroken, RegistryError, SignatureInvalid, UsageError
from blastwatch.history import ALIASES, NOTHING_BEFORE, Record, Row
from blastwatch.ledger import Ledger
from blastwatch.model_store import Model, ModelStore
from blastwatch.one_line import breaking, one_line, turning
from blastwatch.signing import PROMOTER, Signer, TrustedKeys, looks_signed

ALIAS_TAG = "blastwatch.alias."
ENTRY_TAG = "blastwatch.history."
HEAD_TAG = "blastwatch.history.head"
LONGEST_TAG = 5000  # characters, as MLflow's tags of a model hold them in PostgreSQL
_UNDOING = ("rollback", "withdraw", "restore")
_ANEW = "Hold the history against a copy of it, then have MLflow told anew: blastwatch registry restore"
_LONGEST_WHY = 1000  # characters; what JSON escapes is mirrored with up to four


class Writer:
    """The one writer of the registry, under its lock; see `Registry.writing`.

    finished: the entry that `settle` found half done, None where there was none.
    """

    def __init__(self, store: ModelStore, ledger: Ledger, signer: Signer, trusted: TrustedKeys, *, who: str) -> None:
        self._store, self._ledger, self._trusted, self._who = store, ledger, trusted, who
        self.signer = signer
        self.finished: Record | None = None

    @cached_property
    def _rows(self) -> list[Row]:
        return self._ledger.rows()

    @cached_property
    def records(self) -> list[Record]:
        """The history, oldest first."""
        return [row.record() for row in self._rows]

    def row(self, number: int) -> Row:
        """The entry with a number, as it is stored."""
        return self._rows[number - 1]

    def settle(self, *, mend: bool = False) -> None:
        """Finish what an earlier writer began.

        Args:
            mend: where MLflow lost the head, go on if the history is what was signed: the next entry tells it anew.

        Raises:
            HistoryBroken: the head that MLflow mirrors is not in the history, or is not at its end; or MLflow's model
                is gone.
        """
        model = self._store.model()
        head = head_of(model, self._rows, self._trusted, name=self._store.name)
        if self._rows and (model is None or (head.lost and not self._store.versions())):
            raise HistoryBroken(gone_model(self._store.name, len(self._rows)))
        if head.number > len(self._rows):
            raise HistoryBroken(cut_tail(head, len(self._rows)))
        if head.lost and not mend:
            raise HistoryBroken(head.lost)
        if head.lost:
            self._check_signed(model)
            return
        for row in self._rows[head.number :]:
            self._tell(row)
            self.finished = row.record()

    def check_clock(self) -> None:
        """Raise `RegistryError` where the last entry lies further ahead of this machine's clock than clocks lie apart:
        a new one would have to bear its time, and `history --at` would not tell of it until then.

        What undoes (`rollback`, `withdraw`, `restore`) is written all the same.
        """
        now = datetime.fromisoformat(history.now())
        if clocks.ahead(self.records[-1:], now):
            last, promoter = self.records[-1], self._trusted.find(self.signer.fingerprint).may(PROMOTER)
            later = "" if promoter else " The package stays where it is and can be registered afterwards."
            raise RegistryError(
                f"The last entry of the history is of {last.time}, by {one_line(last.who)}, which is still to come. "
                f"{clocks.remedy(self.records, now, promoter=promoter)} No entry was written.{later}"
            )

    def _time_of(self, action: str, *, clock: bool) -> str:
        """The time of a new entry: none before that of the one it follows, unless it says that this one's ran ahead."""
        now, last = history.now(), self.records[-1].time if self.records else ""
        if action not in _UNDOING:
            self.check_clock()
        return now if clock else max(now, last)

    @property
    def ahead(self) -> list[Record]:
        """The entries that lie further ahead of this machine's clock than clocks lie apart."""
        return clocks.ahead(self.records, datetime.fromisoformat(history.now()))

    def _check_signed(self, model: Model | None) -> None:
        """Raise `HistoryBroken` where the history is not as signed, or lacks the entry that stands at an alias."""
        texts = [text for name, text in (model.tags if model else {}).items() if name.startswith(ALIAS_TAG)]
        faults = history.faults(self._rows, self._trusted, model=self._store.name)
        if faults or not all(map(self._is_kept, texts)):
            raise HistoryBroken(
                "MLflow has lost the head of the history, and the history itself is not what was signed: nothing says "
                "where the aliases belong. Look with: blastwatch registry verify. Then bring back a backup of it."
            )

    def _is_kept(self, text: str) -> bool:
        """Whether the history has the entry that a tag mirrors; a tag that nobody signed says nothing against it, but
        one of an unknown key with a number beyond the history may be of a tail that was cut."""
        try:
            word = read_word(text, self._trusted, model=self._store.name)
        except SignatureInvalid:
            said = _of_unknown_key(text, self._trusted, model=self._store.name)
            return said is None or said.number <= len(self._rows)
        return word in self.records

    def move(self, action: str, alias: str, entry: Entry, **facts: Any) -> Record:
        """Add an entry that moves an alias to a version, move it, and tell MLflow.

        Args:
            facts: why, gates, overridden of the entry.
        """
        return self._add(action, alias, entry, after=entry.version, **facts)

    def withdraw(self, alias: str, entry: Entry, *, why: str) -> Record:
        """Add an entry that takes an alias from a version, and take it."""
        return self._add("withdraw", alias, entry, after="", why=why)

    def restore(self, entry: Entry, *, why: str, clock: bool = False) -> Record:
        """Add an entry that puts every alias back to where the history says. With `clock` it bears this machine's time
        whatever was before, and so says that the entries ahead of it were written by a clock that ran ahead."""
        return self._add("restore", "", entry, after="", why=why, clock=clock)

    @property
    def stands(self) -> bool:
        """Whether MLflow has every alias, the word about it and the head of the history as the history says."""
        model = self._store.model()
        carried, tags = (model.aliases, model.tags) if model else ({}, {})
        ours = {alias: version for alias, version in carried.items() if alias in ALIASES}
        expected = history.aliases(self.records)
        there = {alias: version for alias, version in expected.items() if self._store.has(version)}
        words = {ALIAS_TAG + alias: record.number for alias, record in history.words(self.records).items()}
        said = {name: _mirrored(self.row(number)) for name, number in (words | {HEAD_TAG: len(self._rows)}).items()}
        return ours == there and said.items() <= tags.items()

    def note(self, action: str, entry: Entry, **facts: Any) -> Record:
        """Add an entry that moves nothing."""
        return self._add(action, "", entry, after="", **facts)

    def _add(
        self,
        action: str,
        alias: str,
        entry: Entry,
        *,
        after: str,
        why: str = "",
        gates: Sequence[Mapping[str, Any]] = (),
        overridden: Sequence[str] = (),
        clock: bool = False,
    ) -> Record:
        check_reason(why)
        last = self.records[-1] if self.records else None
        # What a version was registered with was signed then; MLflow's tags may have been changed since.
        made = history.registered(self.records, entry.version) or entry
        report = history.report_of(gates)
        record = Record(
            model=self._store.name,
            number=len(self._rows) + 1,
            time=self._time_of(action, clock=clock),
            who=self._who,
            action=action,
            alias=alias,
            version=entry.version,
            before=history.aliases(self.records).get(alias, "") if alias else "",
            after=after,
            why=why,
            digest=entry.digest,
            **{name: getattr(made, name) for name in history.ORIGIN},
            overridden=list(overridden),
            report=history.hash_of(report),
            key=self.signer.fingerprint,
            previous=self._rows[-1].hash if last else NOTHING_BEFORE,
        )
        body = history.body_of(record)
        digest = history.hash_of(body)
        row = Row(record.number, body, report, digest, self.signer.sign(history.statement(digest)))
        length = len(_mirrored(row))
        if length > LONGEST_TAG:  # else it stood in the history, MLflow could never be told, and no writer got past it
            raise UsageError(
                f"Expected an entry of at most {LONGEST_TAG} characters, as MLflow's tags hold, but this one has "
                f"{length}: give a shorter reason, or one with fewer quotes and backslashes. No entry was written."
            )
        self._ledger.append(row)
        self._rows.append(row)
        self.records.append(record)
        try:
            self._tell(row)
        except RegistryError as error:
            undo = "; to undo it, roll back then" if action == "promote" else ""
            raise type(error)(
                f"Entry {record.number} ({action} {record.version}) is in the history; MLflow was not told: {error} "
                f"The next registry command that writes finishes it{undo}."
            ) from error
        return record

    def _tell(self, row: Row) -> None:
        """Bring MLflow to where an entry says; the head comes last, so what was told halfway is told again."""
        record = row.record()
        if record.action == "restore":
            self._put_back()
        model = self._store.model()
        moved = self._move_aliases(record, model)
        word = _mirrored(row)
        if self._store.has(record.version):  # else somebody deleted it in MLflow, and its tags with it
            self._store.set_version_tag(record.version, f"{ENTRY_TAG}{record.number:06d}", word)
        for alias in moved:
            self._store.set_tag(ALIAS_TAG + alias, word)
        self._store.set_tag(HEAD_TAG, word)

    def _move_aliases(self, record: Record, model: Model | None) -> list[str]:
        """The aliases that an entry moves or takes away: where the history has them, and where MLflow does."""
        carried = dict(model.aliases) if model else {}
        past = history.aliases([earlier for earlier in self.records if earlier.number < record.number])
        moved = list(dict.fromkeys(history.moved_by(record, past) + history.moved_by(record, carried)))
        for alias in moved:
            self._place(alias, history.stands_on(record, alias), carried)
        return moved

    def _put_back(self) -> None:
        model = self._store.model()
        carried = dict(model.aliases) if model else {}
        expected, words = history.aliases(self.records), history.words(self.records)
        for alias in ALIASES:
            self._place(alias, expected.get(alias, ""), carried)
            if alias in words:
                self._store.set_tag(ALIAS_TAG + alias, _mirrored(self._rows[self.records.index(words[alias])]))

    def _place(self, alias: str, version: str, carried: Mapping[str, str]) -> None:
        """Put an alias on a version, or take it away where that is "" or was deleted in MLflow."""
        if version and self._store.has(version):
            self._store.set_alias(alias, version)
        elif alias in carried:
            self._store.delete_alias(alias)


def check_reason(why: str) -> None:
    """Raise `UsageError` for a reason that an entry cannot hold; to be asked before gates are judged for minutes."""
    if len(why) > _LONGEST_WHY:
        raise UsageError(f"Expected a reason of at most {_LONGEST_WHY} characters but got {len(why)}.")
    wrong = breaking(why, allowed="\n\t")
    if wrong:
        raise UsageError(f"Expected a reason in UTF-8 without control characters but got {wrong!a} in it.")
    turned = turning(why)
    if turned:
        raise UsageError(
            f"Expected a reason that is read as it was signed but got {turned!a} in it, which turns the direction "
            "of what follows. Write it without."
        )


def read_word(text: str, trusted: TrustedKeys, *, model: str) -> Record:
    """The entry that a tag mirrors, after its signature was checked.

    Raises:
        SignatureInvalid: nobody trusted signed it, or it is about another model.
    """
    record, digest, signature = _parsed(text)
    trusted.check(history.statement(digest), signature, record.key, role=history.ROLE_OF[record.action])
    if record.model != model:
        raise SignatureInvalid(f"Expected a signed entry about {model} but got one about {record.model}.")
    return record


def _parsed(text: str) -> tuple[Record, str, str]:
    """The entry that a tag mirrors, its hash and the signature, unchecked. Raises `SignatureInvalid` for any other."""
    try:
        said = json.loads(text)
        digest = history.hash_of(said["body"])
        record = Row(0, said["body"], "", digest, str(said["signature"])).record()
        if record.action not in history.ROLE_OF or record.alias != history.MOVES.get(record.action, ""):
            raise ValueError(f"a {record.action} moves no alias {record.alias!r}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, HistoryBroken) as error:
        raise SignatureInvalid(f"Expected a signed entry of the history but it cannot be read ({error!r}).") from error
    return record, digest, str(said["signature"])


def _of_unknown_key(text: str, trusted: TrustedKeys, *, model: str) -> Record | None:
    """The entry that a tag mirrors, where the key that it names is not known here, so that nobody here can tell whether
    its signature fits; else None."""
    try:
        record, _, signature = _parsed(text)
    except SignatureInvalid:
        return None
    unknown = not trusted.knows(record.key) and looks_signed(signature, record.key)
    return record if unknown and record.model == model else None


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head of the history as MLflow mirrors it.

    number: of the entry that MLflow was last told of, 0 for none; more than the history has where its tail was cut.
    lost: what is wrong where MLflow was told of more than that; "" where nothing is.
    unknown: fingerprint of the key that signed it, where that is not known here; else "".
    """

    number: int
    lost: str
    unknown: str = ""


def cut_tail(head: Head, entries: int) -> str:
    """What is wrong where MLflow was told of a later entry than the last of the history."""
    text = f"The history ends with entry {entries} but MLflow was told of entry {head.number}: its tail was cut, or "
    if head.unknown:
        return text + (
            f"the key of who wrote it, {head.unknown[:16]}, is missing here (BLASTWATCH_TRUSTED_KEYS). Have that key "
            f"added and look again. If it is nobody's, the tag {HEAD_TAG} was made up: remove it in MLflow. {_ANEW}"
        )
    return text + "BLASTWATCH_HISTORY_URL names another database than the one it was written to."


def head_of(model: Model | None, rows: Sequence[Row], trusted: TrustedKeys, *, name: str) -> Head:
    """The head that MLflow mirrors. One that is no entry of the history and that no key signed says nothing: MLflow has
    lost the true one. One of a key that is not known here and with a number beyond the history may be the true one.

    Raises:
        HistoryBroken: where the history has another entry with that number.
    """
    if model is None or HEAD_TAG not in model.tags:
        return Head(number=0, lost=_lost(0, rows))
    text = model.tags[HEAD_TAG]
    known = {row.hash: number for number, row in enumerate(rows, start=1)}
    try:
        number = known.get(history.hash_of(json.loads(text)["body"]), 0)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        number = 0
    if number:
        return Head(number=number, lost=_lost(number, rows))
    try:
        said = read_word(text, trusted, model=name).number
    except SignatureInvalid as error:
        record = _of_unknown_key(text, trusted, model=name)
        if record is not None and record.number > len(rows):
            return Head(number=record.number, lost="", unknown=record.key)
        then = (
            _ANEW if rows else "The history has no entry: BLASTWATCH_HISTORY_URL names another one; or remove the tag"
        )
        return Head(number=0, lost=f"MLflow's tag {HEAD_TAG} does not say where the history ends. {error} {then}")
    if said <= len(rows):
        raise HistoryBroken(
            f"Entry {said} of the history is not the one that MLflow was told of: the history was changed, or "
            "BLASTWATCH_HISTORY_URL names another database than the one it was written to."
        )
    return Head(number=said, lost="")


def _lost(number: int, rows: Sequence[Row]) -> str:
    """Each writer finishes what the one before it left, so an interruption leaves one entry untold and never two."""
    if number >= len(rows) - 1:
        return ""
    return (
        f"The history has {len(rows)} entries but the last that MLflow was told of is {number or 'none'}: its tag "
        f"{HEAD_TAG} was removed or set back, or MLFLOW_TRACKING_URI names another store than the one that was told. "
        f"{_ANEW}"
    )


def gone_model(name: str, entries: int) -> str:
    """What is wrong, and what helps, where the history of a model has entries and MLflow none of its versions. A model
    that was made anew would count its versions from 1 again, and the history names others by these numbers."""
    return (
        f"The history of {name} has {entries} entries but MLflow has no version of it: the registered model was "
        "deleted there, or MLFLOW_TRACKING_URI names another store than the one that was told. Bring back a backup of "
        "MLflow's store; or begin a new history with another BLASTWATCH_MODEL_NAME: this one stays as it is."
    )


def _mirrored(row: Row) -> str:
    """An entry as MLflow's tags carry it, without the report of its gates."""
    return json.dumps({"body": row.body, "signature": row.signature}, sort_keys=True, ensure_ascii=False)
