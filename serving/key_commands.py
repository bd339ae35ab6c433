"""The commands `blastwatch keys`: make, list and revoke the keys with which callers ask the service."""

from dataclasses import asdict

import click

from blastwatch.console import json_option, print_json, say
from blastwatch.settings import load
from serving.keys import PERMISSIONS, KeyFolder


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of the service. Running services take each change at once."""


@keys.command()
@click.argument("name")
@click.option(
    "--may", multiple=True, type=click.Choice(PERMISSIONS), default=PERMISSIONS,
    help="predict: send cells; label: send labels that came later; read: the model and its history.  [default: all]",
)  # fmt: skip
@json_option
def add(name: str, may: tuple[str, ...], as_json: bool) -> None:
    """Make a key for NAME and print it. It is shown this once: only a keyed hash of it is kept."""
    folder = KeyFolder(load().api_keys)
    first = not folder.in_use
    key = folder.add(name, may)
    if as_json:
        print_json({"name": name, "may": list(may), "key": key})
    else:
        click.echo(key)
    say(f"Made for {name}, the name in the audit log. It is not shown again. Callers send: Authorization: Bearer KEY")
    if first:
        say("From now on every request needs a key, from this machine too (BLASTWATCH_API_KEY for blastwatch predict).")


@keys.command("list")
@json_option
def list_keys(as_json: bool) -> None:
    """List the keys by name, also the revoked ones."""
    rows = KeyFolder(load().api_keys).read()
    if as_json:
        print_json([{name: value for name, value in asdict(row).items() if name != "digest"} for row in rows])
        return
    if not rows:
        say("There is no key: blastwatch keys add NAME")
    for row in rows:
        state = f"revoked {row.revoked}" if row.revoked else "good"
        click.echo(f"{row.name:<24} {', '.join(row.may):<22} made {row.created}  {state}")


@keys.command()
@click.argument("name")
def revoke(name: str) -> None:
    """Refuse the key of NAME from now on. Its name stays taken, so that the audit log stays clear."""
    KeyFolder(load().api_keys).revoke(name)
    say(f"The key of {name} is refused from now on.")
