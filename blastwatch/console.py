"""What every command does alike: JSON on standard output, words and progress on standard error, exit codes."""

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import click

Item = TypeVar("Item")

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON and nothing beside it.")


def print_json(value: Any) -> None:
    """Print one JSON document on standard output; NaN is refused, since JSON has none."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def say(text: str) -> None:
    """A line for the person at the terminal, on standard error, so that it never mixes with `--json`."""
    click.echo(text, err=True)


def progress(items: Iterable[Item], *, total: int | None, what: str) -> Iterator[Item]:
    """Yield the items behind a progress bar on standard error; nothing is drawn where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        yield from bar.track(items, total=total, description=what)
