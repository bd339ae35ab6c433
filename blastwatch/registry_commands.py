"""`blastwatch registry`: register, look, promote, roll back, and tell what served when."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blastwatch import history
from blastwatch.console import json_option, print_json, say
from blastwatch.embedded_store import MEANT, check_made, is_made, where
from blastwatch.errors import RegistryError, SettingsError, SignatureInvalid, UsageError
from blastwatch.gate import table_of
from blastwatch.registry_lines import (
    promoted_line,
    record_line,
    restored_lines,
    rolled_back_line,
    served_lines,
    verified_line,
    version_line,
    version_rows,
)
from blastwatch.settings import load

if TYPE_CHECKING:
    from blastwatch.gate import Gate
    from blastwatch.registry import Registry
    from blastwatch.settings import Settings


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


@click.group()
@click.pass_context
def registry(ctx: click.Context) -> None:
    """Register, promote and roll back model versions."""
    ctx.with_resource(_impatient(uploads=ctx.invoked_subcommand == "register"))


def _table(gates: "Sequence[Gate]", settings: "Settings") -> str:
    """The report of gates that were asked here, by a policy that may have a file."""
    from blastwatch.policy import load_policy, named

    return table_of(gates, {load_policy(settings.policy).digest: named(settings.policy)})


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


@registry.command(short_help="Register the model package in FOLDER.")
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
        click.echo("\n".join(version_line(entry) for entry in entries))
    else:
        say(f"No version is registered in {where(found.settings)}. {MEANT}")


@registry.command(short_help="Show the version that REF names.")
@click.argument("ref")
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show the version that REF names: an alias, a number, or a model URI."""
    entry = _existing().entry(ref)
    if as_json:
        print_json(entry.to_dict())
        return
    for name, value in version_rows(entry).items():
        click.echo(f"{name:<14} {value}")


@registry.command(short_help="Ask every gate about REF, and write nothing.")
@click.argument("ref")
@cells_option
@json_option
def check(ref: str, cells: Path | None, as_json: bool) -> None:
    """Ask every gate about REF as promote does, and write nothing; exit code 3 if one fails.

    REF is an alias (candidate, champion, challenger), a number, or a model URI.
    """
    from blastwatch import promotion

    found = _existing()
    result = promotion.judge(found, ref, cells=cells)
    if as_json:
        print_json(result.to_dict())
    else:
        click.echo(_table(result.gates, found.settings))
    result.check()
    judged = sum(not gate.off for gate in result.gates)
    say(f"Version {result.version} passes all {judged} gates that the policy judges. Nothing was written.")


@registry.command(short_help="Make REF the champion if it passes every gate.")
@click.argument("ref")
@click.option("--reason", default="", help="Why; stands in the history.")
@cells_option
@click.option(
    "--override", multiple=True, metavar="GATE", help="A gate that may fail this once; with --reason; repeatable."
)
@json_option
def promote(ref: str, reason: str, cells: Path | None, override: tuple[str, ...], as_json: bool) -> None:
    """Make REF the champion if it passes every gate; exit code 3 if it does not.

    REF is an alias (mostly candidate), a number, or a model URI.
    """
    from blastwatch import promotion

    found = _existing()
    result = promotion.promote(found, ref, reason=reason, cells=cells, override=override)
    if as_json:
        print_json(result.to_dict())
    else:
        click.echo(_table(result.gates, found.settings))
    result.check()
    say(promoted_line(result))


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
    click.echo(rolled_back_line(result))


@registry.command(short_help="Make REF the challenger beside the champion.")
@click.argument("ref", required=False)
@click.option("--withdraw", is_flag=True, help="Take the alias away again; no REF then.")
@click.option("--reason", default="", help="Why; stands in the history.")
@json_option
def challenge(ref: str | None, withdraw: bool, reason: str, as_json: bool) -> None:
    """Make REF the challenger, which shadows the champion or answers a share of the callers.

    REF is an alias (mostly candidate), a number, or a model URI.
    """
    from blastwatch import promotion

    if withdraw == bool(ref):
        raise UsageError("Expected a version to challenge the champion, or --withdraw, and not both.")
    found = _existing()
    entry = promotion.challenge(found, ref, reason=reason) if ref else promotion.withdraw(found, reason=reason)
    if as_json:
        print_json(entry.to_dict())
    else:
        click.echo(f"Version {entry.version} is {'the' if ref else 'no longer the'} challenger.")


@registry.command(short_help="Put back aliases moved behind the registry.")
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
        print_json(result.to_dict())
    else:
        click.echo("\n".join(restored_lines(result)))
    if result.ahead:
        numbers = ", ".join(map(str, result.ahead))
        say(f"Written down: the clock of these entries ran ahead: {numbers}. They count as of {result.time} or before.")
    elif clock:
        say("No entry lies ahead of this machine's clock. Nothing was written about clocks.")
    if not result.done:
        say("Nothing to restore: every alias stands where the history says. Nothing was written.")


@registry.command("history", short_help="Tell what happened to the versions.")
@click.option("--at", help="What served at a time, ISO 8601 (UTC without an offset): who, when, why, on what data.")
@json_option
def show_history(at: str | None, as_json: bool) -> None:
    """Tell what happened to the versions, oldest first; with --at, what served then and who made it so."""
    found = _registry() if at is None else _existing()  # nothing is known of what served where no registry is
    rows = found.ledger.rows() if is_made(found.settings) else []
    if at is not None:
        told = history.told(rows, history.parse_time(at))
        if as_json:
            print_json(told)
        else:
            click.echo("\n".join(served_lines(told)))
        return
    records = [row.record() for row in rows]
    if as_json:
        print_json([record.to_dict() for record in records])
        return
    keys = _key_names(found, records)
    for row, record in zip(rows, records, strict=True):
        failed = history.failed_gates(row) if record.action == "refuse" else []
        click.echo(record_line(record, failed, key=keys.get(record.key, "")))
    if not records:
        say(f"Nothing has happened yet in {where(found.settings)}. {MEANT}")


def _key_names(found: "Registry", records: Sequence[history.Record]) -> dict[str, str]:
    """Names of the trusted keys that signed, by fingerprint, where a team has them; of others `verify` tells."""
    names = {}
    for fingerprint in {record.key for record in records} if found.settings.trusted_keys else ():
        with suppress(SettingsError, SignatureInvalid):
            names[fingerprint] = found.trusted.find(fingerprint).name
    return names


@registry.command(short_help="Check history, signatures, aliases and packages.")
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
    for told in found.unexamined:
        say(told)
    found.check()
    if not as_json:
        click.echo(verified_line(found))


@registry.command(short_help="Tell the public half of the signing key.")
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
