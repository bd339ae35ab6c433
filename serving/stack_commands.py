"""`blastwatch up`: everything at once on this machine."""

import os
import time
from typing import TYPE_CHECKING

import click

from blastwatch import DISCLAIMER
from blastwatch.addresses import check_free, origin
from blastwatch.console import say
from blastwatch.embedded_store import check_made, open_embedded
from blastwatch.errors import RegistryError
from blastwatch.settings import Settings, load

if TYPE_CHECKING:
    from blastwatch.processes import Processes

HOST = "127.0.0.1"


@click.command()
def up() -> None:
    """Start MLflow's pages, the service, the monitor and Evidently's pages, until stopped (Ctrl+C)."""
    from blastwatch.processes import Processes, stopping_politely

    settings = load()
    check_made(settings)
    check_servable(settings)
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


def check_servable(settings: Settings) -> None:
    """Without a version there is nothing to serve: say so before anything starts. One serves where `blastwatch serve`
    finds one, so also from its verified local copy; then what the registry says is told.

    Raises:
        RegistryError: what the registry says, where there is no such copy.
    """
    from blastwatch.registry import Registry
    from serving.live import last_verified
    from serving.live_folder import LiveFolder

    try:
        Registry(settings).proven(settings.model_alias)
    except RegistryError as error:
        copy = last_verified(LiveFolder(settings.home), settings, error)
        say(f"{error} Version {copy.entry.version} serves from its verified local copy.")


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
    service = origin(settings.host, settings.port)
    addresses = {"service": service}
    if settings.embedded_registry:
        open_embedded(settings)  # before three processes open it at once
        children.start("mlflow", mlflow_server(settings.home, settings.artifacts, settings.mlflow_port))
        addresses["mlflow"] = f"http://{HOST}:{settings.mlflow_port}"
    else:
        addresses["mlflow"] = settings.tracking_shown
    children.start("service", [script("blastwatch"), "serve"])
    children.start("monitor", [script("blastwatch"), "drift", "watch"], alone=True)  # a retraining goes on
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
