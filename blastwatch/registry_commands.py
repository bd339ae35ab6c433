"""`blastwatch registry`: register, look, promote, roll back, and tell what served when."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from blastwatch import history
from blastwatch.console import json_option, print_json, say
from blastwatch.errors import CheckRefused
from blastwatch.settings import load

if TYPE_CHECKING:
    from blastwatch.registry import Entry, Registry


def _registry() -> "Registry":
    from blastwatch.registry import Registry

    return Registry(load())


def _line(entry: "Entry") -> str:
    figures = "  ".join(f"{name} {value:.3f}" for name, value in sorted(entry.metrics.items()))
    aliases = ", ".join(entry.aliases) or "-"
    data = "synthetic cells" if entry.synthetic else "real cells"
    return f"{entry.version:>4}  {aliases:<22} {entry.digest[:12]}  {data:<16} {figures}"


@click.group()
def registry() -> None:
    """Register, promote and roll back model versions."""


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
    entries = _registry().entries()
    if as_json:
        print_json([entry.to_dict() for entry in entries])
    elif entries:
        click.echo("\n".join(_line(entry) for entry in entries))
    else:
        say("No version is registered yet: blastwatch registry register DIR")


@registry.command()
@click.argument("ref")
@json_option
def show(ref: str, as_json: bool) -> None:
    """Show the version that REF names: an alias, a number, or a model URI."""
    entry = _registry().entry(ref)
    if as_json:
        print_json(entry.to_dict())
        return
    for name, value in entry.to_dict().items():
        click.echo(f"{name:<14} {value}")


@registry.command()
@click.argument("ref")
@click.option("--reason", default="", help="Why; stands in the history.")
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="Imported data set, for test cells on which the champion was never measured.",
)
@json_option
def promote(ref: str, reason: str, cells: Path | None, as_json: bool) -> None:
    """Make REF the champion if it passes every gate; exit code 3 if it does not."""
    from blastwatch import promotion

    result = promotion.promote(_registry(), ref, reason=reason, cells=cells)
    if as_json:
        print_json(result.to_dict())
    else:
        click.echo("\n".join(str(gate) for gate in result.gates))
    result.check()
    say(f"Version {result.version} is the champion. Restart the service to serve it.")


@registry.command()
@click.option("--reason", default="", help="Why; stands in the history.")
@json_option
def rollback(reason: str, as_json: bool) -> None:
    """Give the alias champion back to the version that had it before."""
    from blastwatch import promotion

    entry = promotion.rollback(_registry(), reason=reason)
    if as_json:
        print_json(entry.to_dict())
    else:
        click.echo(f"Version {entry.version} is the champion again. Restart the service to serve it.")


@registry.command("history")
@click.option("--at", help="What there was at a time, ISO 8601 (UTC without an offset).")
@json_option
def show_history(at: str | None, as_json: bool) -> None:
    """Tell what happened to the versions, oldest first; with --at, what had happened by then."""
    records = _registry().records()
    if at is not None:
        records = history.until(records, history.parse_time(at))
    if as_json:
        print_json([record.to_dict() for record in records])
        return
    for record in records:
        moved = (
            f"champion {record.before or 'none'} -> {record.after or 'none'}" if record.before != record.after else ""
        )
        why = f'"{record.why}"' if record.why else ""
        click.echo(f"{record.number:>4}  {record.time}  {record.who}  {record.action} {record.version}  {moved} {why}")
    if at is not None:
        click.echo(f"Served at {at}: {records[-1].after or 'none' if records else 'none'}")


@registry.command()
def verify() -> None:
    """Check every version's files and that the aliases are what the history says; exit code 3 if not."""
    from blastwatch import promotion

    faults = promotion.verify(_registry())
    if faults:
        raise CheckRefused("The registry is not what its history says: " + "; ".join(faults))
    click.echo("Every version is intact and the champion is the one that the history names.")
