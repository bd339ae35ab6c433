"""The command `blastwatch`. Each command's module is loaded only when the command is called."""

import errno
import gc
import importlib
import os
import sys
from typing import ClassVar

import click

from blastwatch import DISCLAIMER, __version__
from blastwatch.addresses import unproxied
from blastwatch.errors import BlastwatchError


class LazyGroup(click.Group):
    """A group whose commands are named here and imported on use, so that `--help` stays quick."""

    commands_by_name: ClassVar[dict[str, tuple[str, str]]] = {
        "data": ("training.data_commands", "Import, draw (synth), audit, split and show sets of cells."),
        "pretrain": ("training.commands", "Pretrain a network without labels, on the training side alone."),
        "train": ("training.commands", "Train a network on the split cells and track the run."),
        "evaluate": ("training.commands", "Measure the trained network on the test patients."),
        "compare": ("training.experiment_commands", "Compare evaluations of the same test cells by patient."),
        "crossvalidate": ("training.experiment_commands", "Train and test recipes on every fold of patients."),
        "search": ("training.experiment_commands", "Search parameters on validation patients alone."),
        "package": ("training.commands", "Put network, reference and evidence into a model package."),
        "registry": ("blastwatch.registry_commands", "Register, promote and roll back model versions."),
        "serve": ("serving.commands", "Start the prediction service."),
        "keys": ("serving.key_commands", "Make, list and revoke the service's API keys."),
        "predict": ("serving.commands", "Ask the service about images."),
        "score": ("serving.commands", "Score a folder of images into a Parquet file."),
        "bento": ("serving.commands", "Build the bento of the version that serves."),
        "drift": ("monitoring.commands", "Compare what was predicted with the reference."),
        "shadow": ("monitoring.shadow_commands", "Compare the challenger with the champion."),
        "labels": ("monitoring.label_commands", "Add labels that came later, and tell what they say."),
        "store": ("monitoring.store_commands", "Show what is stored; delete what is old, or a patient's."),
        "up": ("serving.stack_commands", "Start registry, service, monitor and dashboards."),
        "demo": ("training.demo_commands", "Run the whole chain once, on synthetic or on your cells."),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands_by_name)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands_by_name:
            return None
        module, _ = self.commands_by_name[cmd_name]
        command = getattr(importlib.import_module(module), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.commands_by_name.items()])


@click.command(cls=LazyGroup, epilog="Exit codes: 0 done, 1 failed, 2 usage, 3 a check refused. " + DISCLAIMER)
@click.version_option(__version__, prog_name="blastwatch")
def blastwatch() -> None:
    """Train, promote, serve and watch a classifier of single blood cells (acute lymphoblastic leukemia)."""


# Nothing is reported to anybody, and MLflow prints no addresses into what `--json` promises. To MLflow DO_NOT_TRACK
# means something only where it is the word `true`, so it is told by its own variable too.
QUIET = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "BENTOML_DO_NOT_TRACK": "True",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


# What a library makes while it loads lives to the end. Python looks through it again at each 700 objects more, which
# takes a tenth of the time of most commands.
OBJECTS_BETWEEN_COLLECTIONS = 20_000


# What a machine says, and no mistake of ours: no room, no right, no such place, broken.
OF_THE_MACHINE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR,
    errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE,
)  # fmt: skip


def main() -> None:
    """Entry point: a Blastwatch error becomes one line on standard error and its exit code.

    So does what the machine refuses (`OF_THE_MACHINE`), where no command has a better word for it.
    """
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *gc.get_threshold()[1:])
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    os.environ.update(unproxied(os.environ))
    try:
        blastwatch(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("Stopped.", err=True)
        sys.exit(1)
    except BlastwatchError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        where = f" {error.filename}" if error.filename else ""
        click.echo(f"Error: The machine refused{where}: {error.strerror}. Mend that, or name another place.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
