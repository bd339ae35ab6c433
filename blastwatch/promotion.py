"""Who becomes champion or challenger, and what undoes it. Every step, refusals too, is an entry of the history."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import takewhile
from pathlib import Path

from blastwatch import history
from blastwatch.entry import Entry
from blastwatch.errors import AliasMoved, AliasNotSet, PackageError, UsageError
from blastwatch.gates import GATES, Gate, evaluate
from blastwatch.history import ALIASES, CANDIDATE, CHALLENGER, CHAMPION
from blastwatch.model_store import Model
from blastwatch.outcomes import Change, Judgement, Promotion, Restoration, Rollback, stepped
from blastwatch.policy import Policy, load_policy
from blastwatch.recording import Writer, check_reason
from blastwatch.registry import Registry, parse_ref
from blastwatch.signing import PROMOTER, own_fingerprint
from blastwatch.two_persons import check_challenge


def judge(registry: Registry, ref: str, *, cells: Path | None) -> Judgement:
    """Ask every gate about a version and write nothing: no entry, no alias, and no key is needed.

    A version that is champion already is asked too; it is compared with itself then.

    Args:
        cells: imported data set, for test cells that the champion was never tested on.

    Raises:
        AliasMoved: the champion's alias was moved behind the registry's back, so what to compare with is not known; or
            the one that was asked for was; or somebody else moved the champion's meanwhile.
    """
    policy, entry = load_policy(registry.settings.policy), unmoved(registry, ref)
    model, records = registry.moment()
    check_alias(registry, model, records)
    key = own_fingerprint(registry.settings)
    gates = evaluate(registry, entry, policy, cells, registry.settings.actor, key=key)
    champions = (history.aliases(known).get(CHAMPION, "") for known in (records, registry.records()))
    _check_unmoved(CHAMPION, *champions)  # judging takes minutes, and no lock keeps others out
    return Judgement(version=entry.version, passed=all(gate.stands for gate in gates), gates=gates)


def promote(
    registry: Registry, ref: str, *, reason: str, cells: Path | None, override: Iterable[str] = ()
) -> Promotion:
    """Make a version champion if it passes every gate; a refusal is written into the history too.

    Args:
        cells: imported data set, for test cells that the champion was never tested on.
        override: gates that may fail this once; stands in the history for ever.

    Raises:
        UsageError: the version serves already, a gate may not be overridden, or the reason is missing or cannot be
            written down.
        AliasMoved: the alias was moved behind the registry's back, or by somebody else since this was asked for.
        NotPermitted: the key or the account may not promote.
    """
    policy, waived = load_policy(registry.settings.policy), tuple(override)
    if waived and not reason.strip():
        raise UsageError("Expected --reason TEXT beside --override: it stands in the history for ever.")
    _check_waived(waived, policy)
    _check_reason(reason, policy)
    asked_of = _named(registry, ref)
    with registry.writing(PROMOTER) as writer:
        resumed = _resumed(writer, parse_ref(ref, registry.name))
        if resumed is not None:
            return resumed
        writer.check_clock()
        check_alias(registry, registry.store.model(), writer.records)
        entry = _asked(registry, ref, asked_of)
        if CHAMPION in entry.aliases:
            raise UsageError(f"Version {entry.version} already is the champion.")
        key, actor = writer.signer.fingerprint, registry.settings.actor
        gates = _waive(evaluate(registry, entry, policy, cells, actor, key=key), waived)
        promoted = all(gate.stands for gate in gates)
        given_up = _given_up(writer.records, entry.version) if promoted else []
        result = Promotion(version=entry.version, promoted=promoted, gates=gates, given_up=given_up)
        rows = [asdict(gate) for gate in gates]
        if result.promoted:
            named = [gate.name for gate in gates if gate.overridden]
            writer.move("promote", CHAMPION, entry, why=reason, gates=rows, overridden=named)
        else:
            writer.note("refuse", entry, why=reason, gates=rows)
    return result


def _given_up(records: Sequence[history.Record], version: str) -> list[str]:
    """The aliases that a version has and gives up when it becomes champion."""
    standing = history.aliases(records)
    return [alias for alias in (CANDIDATE, CHALLENGER) if standing.get(alias) == version]


def unmoved(registry: Registry, ref: str) -> Entry:
    """The version that a reference names. Raises `AliasMoved` where that is an alias that the history has elsewhere."""
    entry, alias = registry.entry(ref), parse_ref(ref, registry.name)
    if alias in entry.moved:
        raise _moved(alias, entry.version, entry.moved[alias])
    return entry


def _named(registry: Registry, ref: str) -> str:
    """The version that a reference names now, "" for none; there need not be such a version."""
    wanted = parse_ref(ref, registry.name)
    if wanted not in ALIASES:
        return wanted
    model = registry.store.model()
    return model.aliases.get(wanted, "") if model else ""


def _asked(registry: Registry, ref: str, asked_of: str) -> Entry:
    """As `unmoved`, as long as it is the version that it named before. Raises `AliasMoved`."""
    entry = unmoved(registry, ref)
    _check_unmoved(parse_ref(ref, registry.name), asked_of, entry.version)
    return entry


def _check_unmoved(alias: str, asked_of: str, now: str) -> None:
    """Raise `AliasMoved` where an alias names another version than when a command was given: the command may have
    waited for minutes to be let in, and its reason is about the version that was there."""
    if now != asked_of:
        raise AliasMoved(
            f"The {alias} was version {asked_of or 'none'} when this was asked for and is version {now or 'none'} "
            "now: somebody else moved it. Look, and ask again where it is still wanted."
        )


def _resumed(writer: Writer, ref: str) -> Promotion | None:
    """The promotion that was just finished for an earlier caller, where it is the one that is asked for."""
    done = writer.finished
    if done is None or done.action != "promote":
        return None
    past = [record for record in writer.records if record.number < done.number]
    if history.aliases(past).get(ref, ref) != done.version:
        return None
    gates = [Gate.stored(gate) for gate in json.loads(writer.row(done.number).gates)]
    given_up = _given_up(past, done.version)
    return Promotion(version=done.version, promoted=True, gates=gates, resumed=True, given_up=given_up)


def _check_waived(names: tuple[str, ...], policy: Policy) -> None:
    """Raise `UsageError` for a gate that is unknown or may not be overridden."""
    for name in names:
        allowed = ", ".join(policy.overridable) or "none"
        if name not in GATES:
            raise UsageError(
                f"Expected --override with the name of one gate but got {name!r}; repeat --override for each. The "
                f"policy allows: {allowed}."
            )
        if name not in policy.overridable:
            raise UsageError(f"The policy lets nobody override the gate {name!r}; it allows: {allowed}.")


def _check_reason(reason: str, policy: Policy) -> None:
    """Raise `UsageError` where it cannot be written down, or where the policy wants one and none was given."""
    check_reason(reason)
    if policy.require_reason and not reason.strip():
        raise UsageError(
            "Expected --reason TEXT: the policy says require_reason, so whoever moves an alias says why. It stands in "
            "the history for ever."
        )


def _waive(gates: list[Gate], names: tuple[str, ...]) -> list[Gate]:
    """Mark the failed gates that are overridden."""
    return [replace(gate, overridden=True) if gate.name in names and not gate.passed else gate for gate in gates]


def rollback(registry: Registry, *, reason: str) -> Rollback:
    """Give the alias back to the champion before the present one, or to the last before it that MLflow still has.

    What that version was promoted with in spite of a gate it keeps.

    Raises:
        UsageError: the reason that the policy wants is missing.
        AliasNotSet: where there is no champion, or none before it.
        AliasMoved: the alias was moved behind the registry's back, or by somebody else since this was asked for.
        PackageError, SignatureInvalid: that version is not what was promoted.
    """
    _check_reason(reason, load_policy(registry.settings.policy))
    asked_of = history.aliases(registry.records()).get(CHAMPION, "")
    with registry.writing(PROMOTER) as writer:
        done = writer.finished
        if done is not None and done.action == "rollback":  # an interrupted one, finished just now
            past = history.champions([record for record in writer.records if record.number < done.number])
            return Rollback(
                entry=registry.entry(done.version), stepped_over=_between(past, done.version), before=done.before,
                forward=registry.store.has(done.before),
            )  # fmt: skip
        check_alias(registry, registry.store.model(), writer.records)
        current, stack = history.aliases(writer.records).get(CHAMPION, ""), history.champions(writer.records)
        _check_unmoved(CHAMPION, asked_of, current)
        if not current:
            raise AliasNotSet("There is no champion, so there is none to roll back from.")
        if len(stack) < 2:
            raise AliasNotSet(f"Version {current} is the first champion; there is none to roll back to.")
        earlier = (version for version in reversed(stack[:-1]) if version != current)
        there = next((version for version in earlier if registry.store.has(version)), None)
        if there is None:
            raise AliasNotSet(f"Every champion before version {current} was deleted in MLflow: none is left.")
        target, promoted, gone = registry.entry(there), history.promoted(writer.records, there), _between(stack, there)
        if promoted is not None and promoted.digest != target.digest:
            raise PackageError(
                f"Version {target.version} was promoted as package {promoted.digest[:12]} but MLflow has it as "
                f"{target.digest[:12]}. Look with: blastwatch registry verify"
            )
        registry.check_signature(target)
        registry.fetch_entry(target, fresh=True)
        overridden = promoted.overridden if promoted else []
        why = f"{reason} ({stepped(gone)})" if reason and gone else reason or stepped(gone)
        writer.move("rollback", CHAMPION, target, why=why, overridden=overridden)
    forward = registry.store.has(current)
    return Rollback(entry=registry.entry(target.version), stepped_over=gone, before=current, forward=forward)


def _between(stack: Sequence[str], target: str) -> list[str]:
    """The champions between the last of a stack and the one that a rollback goes to, each once, newest first."""
    passed = takewhile(lambda version: version != target, reversed(stack[:-1]))
    return [version for version in dict.fromkeys(passed) if version != stack[-1]]


def challenge(registry: Registry, ref: str, *, reason: str) -> Entry:
    """Make a version the challenger: it shadows the champion or answers some callers, by the service's settings.

    Its files and its signature are checked, and whether two persons stand behind it where the policy wants that; the
    other gates are not, since their evidence is what a challenger is for.

    Raises:
        UsageError: the version is champion or challenger already, or the reason that the policy wants is missing.
        PromotionRefused: the policy wants two persons, and this one registered it.
        AliasMoved: somebody else moved the alias since this was asked for.
        PackageError, SignatureInvalid: it is not what was registered.
    """
    policy, settings = load_policy(registry.settings.policy), registry.settings
    _check_reason(reason, policy)
    asked_of = _named(registry, ref)
    with registry.writing(PROMOTER) as writer:
        done = writer.finished
        if done is not None and (done.action, done.version) == ("challenge", asked_of):
            return registry.entry(done.version)
        entry = _asked(registry, ref, asked_of)
        for alias in (CHAMPION, CHALLENGER):
            if alias in entry.aliases:
                raise UsageError(f"Version {entry.version} already is the {alias}.")
        registry.check_registered(entry)
        known = history.registered(writer.records, entry.version)
        check_challenge(known, settings.actor, policy, settings=settings, key=writer.signer.fingerprint)
        registry.fetch_entry(entry, fresh=True)
        writer.move("challenge", CHALLENGER, entry, why=reason)
    return registry.entry(entry.version)


def withdraw(registry: Registry, *, reason: str) -> Entry:
    """Take the alias challenger away. Raises `AliasNotSet` where there is none, `AliasMoved` where somebody else moved
    it since this was asked for."""
    _check_reason(reason, load_policy(registry.settings.policy))
    asked_of = _named(registry, CHALLENGER)
    with registry.writing(PROMOTER) as writer:
        done = writer.finished
        if done is not None and done.action == "withdraw":
            return registry.entry(done.version)
        entry = _asked(registry, CHALLENGER, asked_of)
        writer.withdraw(CHALLENGER, entry, why=reason)
    return registry.entry(entry.version)


def restore(registry: Registry, *, reason: str, clock: bool = False) -> Restoration:
    """Put every alias back to where the history says. One whose version was deleted in MLflow is taken away. MLflow is
    told of the history's end anew where it lost it. Where all of that stands already, no entry is written.

    Args:
        clock: say, too, that the clock of the entries which lie ahead of this machine's ran ahead; where none does,
            nothing is said of clocks.

    Raises:
        UsageError: the reason that the policy, or `clock`, wants is missing.
        AliasNotSet: with an empty history.
    """
    if clock and not reason.strip():
        raise UsageError("Expected --reason TEXT with --clock: whoever says that another clock ran ahead says why.")
    with registry.writing(PROMOTER, mend=True) as writer:
        expected = history.aliases(writer.records)
        if not expected:
            raise AliasNotSet("The history names no version; there is nothing to restore.")
        there = {alias: version for alias, version in expected.items() if registry.store.has(version)}
        named = there.get(CHAMPION) or next(iter(there.values()), None)
        entry = registry.entry(named) if named else next(iter(registry.entries()), None)
        if entry is None:
            raise AliasNotSet("MLflow has no version any more; there is nothing to restore.")
        ahead = [record.number for record in writer.ahead] if clock else []
        changed = _put_back(registry.store.model(), there)
        if writer.stands and not ahead:
            return Restoration(aliases=there, done=writer.finished is not None)
        _check_reason(reason, load_policy(registry.settings.policy))
        written = writer.restore(entry, why=reason, clock=bool(ahead))
    return Restoration(aliases=there, done=True, changed=changed, ahead=ahead, time=written.time)


def _put_back(model: Model | None, there: Mapping[str, str]) -> dict[str, Change]:
    """What a restoration changes: each alias that MLflow has elsewhere than it belongs."""
    carried = model.aliases if model else {}
    moves = {alias: Change(before=carried.get(alias, ""), after=there.get(alias, "")) for alias in ALIASES}
    return {alias: move for alias, move in moves.items() if move.before != move.after}


def check_alias(registry: Registry, model: Model | None, records: Sequence[history.Record]) -> None:
    """Raise `AliasMoved` where the champion's alias is not what the history says; but a champion that was deleted in
    MLflow cannot carry it."""
    found = model.aliases.get(CHAMPION, "") if model else ""
    expected = history.aliases(records).get(CHAMPION, "")
    if found != expected and (found or registry.store.has(expected)):
        raise _moved(CHAMPION, found, expected)


def _moved(alias: str, found: str, expected: str) -> AliasMoved:
    return AliasMoved(
        f"The alias {alias} stands on version {found or 'none'} but the history says {expected or 'none'}: it was "
        "moved behind the registry's back. Put it back: blastwatch registry restore"
    )
