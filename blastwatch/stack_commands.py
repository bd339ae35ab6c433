"""`blastwatch up`: everything at once on this machine; `blastwatch demo`: the whole chain, once."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from blastwatch import DISCLAIMER
from blastwatch.addresses import check_free
from blastwatch.console import say
from blastwatch.embedded_store import open_embedded
from blastwatch.errors import BlastwatchError, UsageError
from blastwatch.settings import Settings, load

if TYPE_CHECKING:
    from blastwatch.processes import Processes

HOST = "127.0.0.1"


@click.command()
def up() -> None:
    """Start MLflow's pages, the service, the monitor and Evidently's pages, until stopped (Ctrl+C)."""
    from blastwatch.processes import Processes, stopping_politely
    from blastwatch.registry import CHAMPION, Registry

    settings = load()
    Registry(settings).entry(CHAMPION)  # without one there is nothing to serve: say so before anything starts
    check_free(settings.host, settings.port, "BLASTWATCH_PORT")
    for variable, port in _ports(settings).items():
        check_free(HOST, port, variable)
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    try:
        with stopping_politely(), Processes(environment, settings.home / "logs") as children:
            addresses = start_all(children, settings)
            for name, address in addresses.items():
                click.echo(f"{name:<12} {address}")
            click.echo(f"{DISCLAIMER} Stop with Ctrl+C; the logs are in {settings.home / 'logs'}.")
            while True:
                children.check_all()
                time.sleep(1)
    except KeyboardInterrupt:
        say("Stopped.")


def _ports(settings: Settings) -> dict[str, int]:
    """Those of the loopback that are bound, by the setting of each."""
    found = {
        "BLASTWATCH_MONITOR_PORT": settings.monitor_port,
        "BLASTWATCH_EVIDENTLY_PORT": settings.evidently_port,
    }
    return found | ({"BLASTWATCH_MLFLOW_PORT": settings.mlflow_port} if settings.embedded_registry else {})


def start_all(children: "Processes", settings: Settings) -> dict[str, str]:
    """Start the four parts and wait for each; returns their addresses by name."""
    from blastwatch.processes import evidently_pages, mlflow_server, script

    workspace = settings.drift / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    service = f"http://{settings.host}:{settings.port}"
    addresses = {"service": service}
    if settings.embedded_registry:
        open_embedded(settings)  # before three processes open it at once
        children.start("mlflow", mlflow_server(settings.home, settings.artifacts, settings.mlflow_port))
        addresses["mlflow"] = f"http://{HOST}:{settings.mlflow_port}"
    else:
        addresses["mlflow"] = settings.tracking_shown
    children.start("service", [script("blastwatch"), "serve"])
    children.start("monitor", [script("blastwatch"), "drift", "watch"])
    children.start("evidently", evidently_pages(workspace, settings.evidently_port))
    addresses["drift"] = f"http://{HOST}:{settings.monitor_port}/drift"
    addresses["gauges"] = f"http://{HOST}:{settings.monitor_port}/metrics"
    addresses["evidently"] = f"http://{HOST}:{settings.evidently_port}"
    children.wait_for("service", f"{service}/readyz")
    if settings.embedded_registry:
        children.wait_for("mlflow", f"{addresses['mlflow']}/health")
    children.wait_for("monitor", addresses["gauges"])
    children.wait_for("evidently", addresses["evidently"])
    return addresses


@click.command()
@click.option("--cells", type=click.Path(path_type=Path, file_okay=False), help="A C-NMC download; default: synthetic.")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path, file_okay=False), default=".blastwatch/demo", show_default=True,
    help="Work folder, new or an earlier demo's; emptied first.",
)  # fmt: skip
@click.option("--patients", type=click.IntRange(12), default=40, show_default=True, help="Synthetic patients.")
@click.option("--cells-each", type=click.IntRange(1), default=20, show_default=True, help="Cells of each of them.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a parameter: train.epochs=3.")
def demo(cells: Path | None, folder: Path, patients: int, cells_each: int, overrides: tuple[str, ...]) -> None:
    """Run the whole chain: pipeline, register, promote, serve, predict, drift. Run it from the checkout."""
    from blastwatch.demo import Demo
    from blastwatch.processes import stopping_politely

    if cells is not None and not cells.is_dir():
        raise BlastwatchError(f"Expected a folder of cells at {cells} but there is none.")
    if cells is not None and cells.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"Expected cells outside of the work folder {folder}, which is emptied first, but got {cells}."
        )
    with stopping_politely():
        click.echo(Demo(Path.cwd(), folder.absolute(), cells=cells, patients=patients, each=cells_each).run(overrides))
