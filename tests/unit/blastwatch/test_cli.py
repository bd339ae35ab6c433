import ast
import errno
import gc
import os
from pathlib import Path

import click
import mlflow.telemetry.utils
import pytest
from click.testing import CliRunner

from blastwatch import cli
from blastwatch.cli import QUIET, LazyGroup, blastwatch

ROOT = Path(__file__).parents[3]
PACKAGES = ("blastwatch", "monitoring", "training", "serving")
TABLE = LazyGroup.commands_by_name


@pytest.mark.parametrize("name", TABLE)
def test_every_command_of_the_table_and_every_one_below_it_explains_itself(name):
    command = blastwatch.get_command(click.Context(blastwatch), name)
    assert command.name == name
    calls = [[name], *below(command, [name])]
    for call in calls:
        told = CliRunner().invoke(blastwatch, [*call, "--help"])
        assert told.exit_code == 0, told.output
        assert told.output.startswith(f"Usage: blastwatch {' '.join(call)} ")


@pytest.mark.parametrize("name", TABLE)
def test_no_command_is_told_in_half_a_sentence(name):
    told = CliRunner().invoke(blastwatch, [name, "--help"], terminal_width=80).output
    assert "..." not in told.partition("\nCommands:\n")[2]


def below(command, words):
    """The words of every command of a group, and of those below."""
    for name, inner in getattr(command, "commands", {}).items():
        yield [*words, name]
        yield from below(inner, [*words, name])


def test_every_command_that_a_package_defines_is_in_the_table():
    """One that is not named there could not be called."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).glob("*commands.py")):
        defined = {
            one.name
            for one in ast.parse(path.read_text()).body
            if isinstance(one, ast.FunctionDef) and {"click.command", "click.group"} & decorators(one)
        }
        named = {name for name, (module, _) in TABLE.items() if module == f"{path.parent.name}.{path.stem}"}
        assert defined == named, path


def decorators(function):
    return {ast.unparse(one.func) for one in function.decorator_list if isinstance(one, ast.Call)}


def test_mlflow_reports_to_nobody_even_where_the_user_wrote_do_not_track_in_another_way(monkeypatch):
    """MLflow takes `DO_NOT_TRACK=1` for leave to report."""
    for name, value in (QUIET | {"DO_NOT_TRACK": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(mlflow.telemetry.utils, "_IS_IN_CI_ENV_OR_TESTING", False)
    assert mlflow.telemetry.utils.is_telemetry_disabled()
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    assert not mlflow.telemetry.utils.is_telemetry_disabled()
    monkeypatch.setenv("DO_NOT_TRACK", QUIET["DO_NOT_TRACK"])
    assert mlflow.telemetry.utils.is_telemetry_disabled()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_what_the_machine_refuses_is_one_line(monkeypatch, capsys, number):
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def refused(**_):
        raise OSError(number, os.strerror(number), "/full/file")

    monkeypatch.setattr(cli, "blastwatch", refused)
    with pytest.raises(SystemExit) as end:
        cli.main()
    said = capsys.readouterr().err
    assert end.value.code == 1 and f"Error: The machine refused /full/file: {os.strerror(number)}." in said


def test_an_error_of_ours_is_not_laid_on_the_machine(monkeypatch):
    monkeypatch.setattr(gc, "set_threshold", lambda *_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def wrong(**_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(cli, "blastwatch", wrong)
    with pytest.raises(OSError, match="Invalid argument"):
        cli.main()
