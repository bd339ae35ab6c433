"""Options that several stages take."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path)
PARAMS = "params.yaml"
Command = TypeVar("Command", bound=Callable[..., Any])

set_option = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Such as train.epochs=3.")


def parameter_options(command: Command) -> Command:
    """`--params FILE` and `--set KEY=VALUE`, as every stage takes them."""
    return click.option("--params", type=FILE, default=PARAMS, show_default=True, help="File of parameters.")(
        set_option(command)
    )


def folders(**defaults: str) -> Callable[[Command], Command]:
    """Options for the folders that a stage reads and writes."""

    def add(command: Command) -> Command:
        for name, default in defaults.items():
            command = click.option(f"--{name}", type=FOLDER, default=default, show_default=True)(command)
        return command

    return add
