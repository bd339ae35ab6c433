"""What `blastwatch registry` says to a person: versions, entries of the history, and what came of a command."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blastwatch import history
from blastwatch.gate import OFF, Gate
from blastwatch.history import CHALLENGER
from blastwatch.one_line import one_line
from blastwatch.rounding import fixed

if TYPE_CHECKING:
    from blastwatch.entry import Entry
    from blastwatch.outcomes import Promotion, Restoration, Rollback
    from blastwatch.verification import Verification

_DONE = {"refuse": "refuse to promote"}  # a promotion alone is refused with an entry
_FOLLOWED = "Services that follow it serve it within seconds."


def _aliases(entry: "Entry") -> str:
    """The aliases of a version; one that was moved behind the registry's back is no service's champion."""
    marks = {alias: f" (the history says {said or 'none'}: restore)" for alias, said in entry.moved.items()}
    return ", ".join(alias + marks.get(alias, "") for alias in entry.aliases) or "-"


def version_line(entry: "Entry") -> str:
    figures = _figures(entry.metrics)
    aliases = _aliases(entry)
    data = "synthetic cells" if entry.synthetic else "real cells"
    return one_line(f"{entry.version:>4}  {aliases:<22} {entry.digest[:12]}  {data:<16} {figures}")


def _figures(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {fixed(value)}" for name, value in sorted(metrics.items()))


def version_rows(entry: "Entry") -> dict[str, str]:
    """An entry for a person, by the names of its fields."""
    facts = entry.to_dict()
    for name in ("moved", "word"):  # the first stands at its alias; the second is for a service that asks for proof
        del facts[name]
    told = {name: "yes" if value is True else "no" if value is False else value for name, value in facts.items()}
    told |= {"aliases": _aliases(entry), "metrics": _figures(entry.metrics), "overridden": ", ".join(entry.overridden)}
    return {name: one_line(str(value or "-")) for name, value in told.items()}


def promoted_line(result: "Promotion") -> str:
    """A promotion that was done, and what the version gave up for it."""
    done = "An interrupted promotion was finished: version" if result.resumed else "Version"
    ends = "; its comparison in shadow ends" if CHALLENGER in result.given_up else ""
    left = f" It is no longer {' and '.join(result.given_up)}{ends}." if result.given_up else ""
    return f"{done} {result.version} is the champion. {_FOLLOWED}{left}"


def rolled_back_line(result: "Rollback") -> str:
    """The version that is champion again, the one that was, and how to go back to that."""
    note = f" ({result.note})" if result.note else ""
    forward = f" Forward again: blastwatch registry promote {result.before}" if result.forward else ""
    back = f"It was version {result.before} until now.{forward}"
    return f"Version {result.version} is the champion again{note}. {_FOLLOWED} {back}"


def restored_lines(result: "Restoration") -> list[str]:
    """Where each alias stands, and where it stood before."""
    lines = []
    for alias in sorted(result.aliases.keys() | result.changed.keys()):
        stands = _version(result.aliases.get(alias, ""))
        was = f" (was {_version(result.changed[alias].before)})" if alias in result.changed else ""
        lines.append(f"{alias}: {stands}{was}")
    return lines


def _version(number: str) -> str:
    return f"version {number}" if number else "none"


def verified_line(found: "Verification") -> str:
    entries = f"{found.entries} {'entry' if found.entries == 1 else 'entries'}"
    versions = f"{found.versions} version{'' if found.versions == 1 else 's'}"
    return f"{entries} and {versions} are what was signed, and so are the aliases."


def record_line(record: history.Record, failed: Sequence[str] = (), *, key: str = "") -> str:
    """An entry for a person. `key`: the name of the key that it says signed it, "" for an unknown one."""
    moved = f"{record.alias} {record.before or 'none'} -> {record.after or 'none'}" if record.alias else ""
    overridden = f"OVERRIDDEN: {', '.join(record.overridden)}" if record.overridden else ""
    refused = f"failed: {', '.join(failed)}" if failed else ""
    why = f'"{record.why}"' if record.why else ""
    parts = (
        f"{record.number:>4}",
        record.time,
        record.who + (f" (key of {key})" if key not in ("", record.who) else ""),
        f"{_DONE.get(record.action, record.action)} {record.version}",
        moved,
        overridden,
        refused,
        why,
    )
    return "  ".join(one_line(part) for part in parts if part)


def served_lines(told: dict[str, Any]) -> list[str]:
    """What `history.told` says of a time."""
    lines = (
        _of_the_version(told) if told["version"] else [f"Nothing served at {told['at']}: no version was champion yet."]
    )
    if told["unsure"]:
        numbers = ", ".join(map(str, told["unsure"]))
        lines.append(f"Unsure    whether these entries were there then, which a clock that ran ahead wrote: {numbers}")
    return [one_line(line) for line in lines]


def _of_the_version(told: dict[str, Any]) -> list[str]:
    promoted, gates = told["promoted"], [Gate.stored(gate) for gate in told["gates"]]
    failed, off = [gate for gate in gates if not gate.passed], [gate.name for gate in gates if gate.off]
    judged = len(gates) - len(off)
    lines = [
        f"At {told['at']} version {told['version']} served, package {told['digest']}.",
        f"Since     {told['since']}, {told['action']} by {told['by']}" + (f': "{told["why"]}"' if told["why"] else ""),
        f"Promoted  {promoted['time']} by {promoted['by']}" + (f': "{promoted["why"]}"' if promoted["why"] else ""),
        f"Data      {told['data_digest']}",
        f"Split     {told['split_digest']}",
        f"Code      {told['git_commit'] or 'unknown'}",
        f"Gates     {judged - len(failed)} of {judged} passed" + (f"; {OFF}: {', '.join(off)}" if off else ""),
        f"Override  {', '.join(told['overridden']) or 'nothing was overridden'}",
    ]
    return lines + [f"          {gate.told}" for gate in failed]
