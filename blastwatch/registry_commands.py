"""`blastwatch registry`: register, look, promote, roll back, and tell what served when."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blastwatch import history
from blastwatch.console import json_option, print_json, say
from blastwatch.embedded_store import MEANT, check_made, is_made, where
from blastwatch.errors import RegistryError, SettingsError, SignatureInvalid, UsageError
from blastwatch.gate import OFF, Gate, table_of
from blastwatch.one_line import one_line
from blastwatch.rounding import fixed
from blastwatch.settings import load

if TYPE_CHECKING:
    from blastwatch.entry import Entry
    from blastwatch.registry import Registry


cells_option = click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="Imported data set, for test cells on which the champion was never measured.",
)


def _registry() -> "Registry":
    from blastwatch.registry import Registry

    return Registry(load())


def _existing() -> "Registry":
    """The registry, for every command that registers nothing: where there is none yet none is made. Nor is a
    key, wherever MLflow and the history are: the first version that is registered makes it.

    Raises:
        RegistryError: there is none.
    """
    found = _registry()
    check_made(found.settings)
    return found


def _aliases(entry: "Entry") -> str:
    """The aliases of a version; one that was moved behind the registry's back is no service's champion."""
    marks = {alias: f" (the history says {said or 'none'}: restore)" for alias, said in entry.moved.items()}
    return ", ".join(alias + marks.get(alias, "") for alias in entry.aliases) or "-"


def _line(entry: "Entry") -> str:
    figures = _figures(entry.metrics)
    aliases = _aliases(entry)
    data = "synthetic cells" if entry.synthetic else "real cells"
    return one_line(f"{entry.version:>4}  {aliases:<22} {entry.digest[:12]}  {data:<16} {figures}")


def _figures(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {fixed(value)}" for name, value in sorted(metrics.items()))


def _rows(entry: "Entry") -> dict[str, str]:
    """An entry for a person, by the names of its fields."""
    facts = entry.to_dict()
    for name in ("moved", "word"):  # the first stands at its alias; the second is for a service that asks for proof
        del facts[name]
    told = {name: "yes" if value is True else "no" if value is False else value for name, value in facts.items()}
    told |= {"aliases": _aliases(entry), "metrics": _figures(entry.metrics), "overridden": ", ".join(entry.overridden)}
    return {name: one_line(str(value or "-")) for name, value in told.items()}


@click.group()
@click.pass_context
def registry(ctx: click.Context) -> None:
    """Register, promote and roll back model versions."""
    ctx.with_resource(_impatient(uploads=ctx.invoked_subcommand == "register"))


@contextmanager
def _impatient(*, uploads: bool) -> Iterator[None]:
    """Where MLflow answers with errors, or not at all, its client tries for minutes and says nothing; the person at the
    terminal can call again.

    Args:
        uploads: leave the time that one answer may take as it is, since a store may be slow to take files.
    """
    patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"} | ({} if uploads else {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30"})
    added = {name: value for name, value in patience.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@registry.command()
@click.argument("folder", type=click.Path(path_type=Path))
@json_option
def register(folder: Path, as_json: bool) -> None:
    """Register the model package in FOLDER as a new version and make it the candidate."""
    entry = _registry().register(folder)
    if as_json:
        print_json(entry.to_dict())
    else:
        click.echo(f"Registered as version {entry.version} ({', '.join(entry.aliases)}), package {entry.digest[:12]}.")


@registry.command("list")
@json_option
def list_versions(as_json: bool) -> None:
    """List every version, newest first."""
    found = _registry()
    entries = found.entries() if is_made(found.settings) else []
    if as_json:
        print_json([entry.to_dict() for entry in entries])
    elif entries:
        click.echo("\n".join(_line(entry) for entry in entries))
    else:
        say(f"No version is registered in {where(found.settings)}. {MEANT}")


@registry.command()
@click.argument("ref")
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show the version that REF names: an alias, a number, or a model URI."""
    entry = _existing().entry(ref)
    if as_json:
        print_json(entry.to_dict())
        return
    for name, value in _rows(entry).items():
        click.echo(f"{name:<14} {value}")


@registry.command()
@click.argument("ref")
@cells_option
@json_option
def check(ref: str, cells: Path | None, as_json: bool) -> None:
    """Ask every gate about REF as promote does, and write nothing; exit code 3 if one fails."""
    from blastwatch import promotion

    result = promotion.judge(_existing(), ref, cells=cells)
    if as_json:
        print_json(result.to_dict())
    else:
        click.echo(table_of(result.gates))
    result.check()
    judged = sum(not gate.off for gate in result.gates)
    say(f"Version {result.version} passes all {judged} gates that the policy judges. Nothing was written.")


@registry.command()
@click.argument("ref")
@click.option("--reason", default="", help="Why; stands in the history.")
@cells_option
@click.option("--override", multiple=True, metavar="GATE", help="A gate that may fail this once; needs --reason.")
@json_option
def promote(ref: str, reason: str, cells: Path | None, override: tuple[str, ...], as_json: bool) -> None:
    """Make REF the champion if it passes every gate; exit code 3 if it does not."""
    from blastwatch import promotion

    result = promotion.promote(_existing(), ref, reason=reason, cells=cells, override=override)
    if as_json:
        print_json(result.to_dict())
    else:
        click.echo(table_of(result.gates))
    result.check()
    done = "An interrupted promotion was finished: version" if result.resumed else "Version"
    say(f"{done} {result.version} is the champion. Services that follow it serve it within seconds.")


@registry.command()
@click.option("--reason", default="", help="Why; stands in the history.")
@json_option
def rollback(reason: str, as_json: bool) -> None:
    """Give the alias champion back to the version that had it before."""
    from blastwatch import promotion

    result = promotion.rollback(_existing(), reason=reason)
    if as_json:
        print_json(result.to_dict())
        return
    note = f" ({result.note})" if result.note else ""
    click.echo(
        f"Version {result.version} is the champion again{note}. Services that follow it serve it within seconds."
    )


@registry.command()
@click.argument("ref", required=False)
@click.option("--withdraw", is_flag=True, help="Take the alias away again; no REF then.")
@click.option("--reason", default="", help="Why; stands in the history.")
@json_option
def challenge(ref: str | None, withdraw: bool, reason: str, as_json: bool) -> None:
    """Make REF the challenger, which shadows the champion or answers a share of the callers."""
    from blastwatch import promotion

    if withdraw == bool(ref):
        raise UsageError("Expected a version to challenge the champion, or --withdraw, and not both.")
    found = _existing()
    entry = promotion.challenge(found, ref, reason=reason) if ref else promotion.withdraw(found, reason=reason)
    if as_json:
        print_json(entry.to_dict())
    else:
        click.echo(f"Version {entry.version} is {'the' if ref else 'no longer the'} challenger.")


@registry.command()
@click.option(
    "--clock", is_flag=True, help="Write down, too, that the clock of entries ahead of this machine's was wrong."
)
@click.option("--reason", default="", help="Why; stands in the history. --clock needs it.")
@json_option
def restore(clock: bool, reason: str, as_json: bool) -> None:
    """Put aliases that were moved behind the registry's back where the history says they stand."""
    from blastwatch import promotion

    result = promotion.restore(_existing(), reason=reason, clock=clock)
    if as_json:
        print_json(result.aliases)
    else:
        click.echo("\n".join(f"{alias}: version {version}" for alias, version in sorted(result.aliases.items())))
    if result.ahead:
        numbers = ", ".join(map(str, result.ahead))
        say(f"Written down: the clock of these entries ran ahead: {numbers}. They count as of {result.time} or before.")
    elif clock:
        say("No entry lies ahead of this machine's clock. Nothing was written about clocks.")
    if not result.done:
        say("Nothing to restore: every alias stands where the history says. Nothing was written.")


@registry.command("history")
@click.option("--at", help="What served at a time, ISO 8601 (UTC without an offset): who, when, why, on what data.")
@json_option
def show_history(at: str | None, as_json: bool) -> None:
    """Tell what happened to the versions, oldest first; with --at, what served then and who made it so."""
    found = _registry()
    rows = found.ledger.rows() if is_made(found.settings) else []
    if at is not None:
        told = history.told(rows, history.parse_time(at))
        if as_json:
            print_json(told)
        else:
            click.echo("\n".join(_told(told)))
        return
    records = [row.record() for row in rows]
    if as_json:
        print_json([record.to_dict() for record in records])
        return
    keys = _key_names(found, records)
    for row, record in zip(rows, records, strict=True):
        failed = history.failed_gates(row) if record.action == "refuse" else []
        click.echo(_record_line(record, failed, key=keys.get(record.key, "")))
    if not records:
        say(f"Nothing has happened yet in {where(found.settings)}. {MEANT}")


def _key_names(found: "Registry", records: Sequence[history.Record]) -> dict[str, str]:
    """Names of the trusted keys that signed, by fingerprint, where a team has them; of others `verify` tells."""
    names = {}
    for fingerprint in {record.key for record in records} if found.settings.trusted_keys else ():
        with suppress(SettingsError, SignatureInvalid):
            names[fingerprint] = found.trusted.find(fingerprint).name
    return names


def _record_line(record: history.Record, failed: Sequence[str] = (), *, key: str = "") -> str:
    """An entry for a person. `key`: the name of the key that it says signed it, "" for an unknown one."""
    moved = f"{record.alias} {record.before or 'none'} -> {record.after or 'none'}" if record.alias else ""
    overridden = f"OVERRIDDEN: {', '.join(record.overridden)}" if record.overridden else ""
    refused = f"failed: {', '.join(failed)}" if failed else ""
    why = f'"{record.why}"' if record.why else ""
    parts = (
        f"{record.number:>4}",
        record.time,
        record.who + (f" (key of {key})" if key not in ("", record.who) else ""),
        f"{record.action} {record.version}",
        moved,
        overridden,
        refused,
        why,
    )
    return "  ".join(one_line(part) for part in parts if part)


def _told(told: dict[str, Any]) -> list[str]:
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


@registry.command()
@click.option("--no-files", is_flag=True, help="Leave the versions' files unread.")
@json_option
def verify(no_files: bool, as_json: bool) -> None:
    """Check history, signatures, aliases and every version's files; exit code 3 if anything is not as signed.

    Where there is neither an entry nor a version there is nothing to be intact, and the exit code is 1.
    """
    from blastwatch.verification import verify as check

    looked_at = _existing()
    found = check(looked_at, files=not no_files)
    if found.intact and not (found.entries or found.versions):
        raise RegistryError(f"Neither an entry nor a version is in {where(looked_at.settings)}. {MEANT}")
    if as_json:
        print_json(found.to_dict())
    found.check()
    if not as_json:
        click.echo(
            f"{found.entries} entries and {found.versions} versions are what was signed, and so are the aliases."
        )


@registry.command()
@click.option(
    "--new", type=click.Path(path_type=Path, dir_okay=False), help="Make a new private key in this file first."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write it to this file, and make its folder; else print it.",
)
def key(new: Path | None, out: Path | None) -> None:
    """Tell the public half of the signing key, for the folder of trusted keys (as ROLE/NAME.pem)."""
    try:
        _tell_key(new, out)
    except OSError as error:
        raise UsageError(
            f"Expected files that can be written for --new and --out but {error}. Name others, or mend their folders."
        ) from error


def _tell_key(new: Path | None, out: Path | None) -> None:
    """Raises `UsageError` for a file that is there, or would be both halves; `OSError` where one cannot be written."""
    from blastwatch import signing
    from blastwatch.private_file import replace as replace_file

    if new is not None and new.exists():
        raise UsageError(f"Expected a new file for the private key but {new} is there already.")
    if out is not None and out.exists() and out.stat().st_size:  # an empty one is what a shell's > left
        raise UsageError(f"Expected a new file for the public key but {out} is there already.")
    if out is not None:
        private = new or signing.private_path(load())
        if out.resolve() == private.resolve():
            raise UsageError(f"Expected another file for the public key than that of the private one but got {out}.")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass  # before the private key is made: no half stays behind where the other cannot be written
    if new is not None:
        signing.make_private(new)
    public = signing.pem_of(new) if new is not None else signing.public_pem(load())
    if new is not None:
        say(f"The private half is in {new}: leave it there, for its owner alone (BLASTWATCH_SIGNING_KEY).")
    if out is None:
        click.echo(public, nl=False)
        say("This is the public half. It belongs into the folder of trusted keys, as ROLE/NAME.pem.")
    else:
        replace_file(out, public.encode(), mode=0o644)
        say(f"The public half is in {out}: give it to all who trust you, as ROLE/NAME.pem.")
