"""`blastwatch demo`: the whole chain, once. It stands here since it checks the numbers that the first steps go by."""

import json
from math import ceil
from pathlib import Path

import click
import yaml

from blastwatch.demo import KNOBS, Demo, check_checkout
from blastwatch.errors import BlastwatchError, UsageError
from blastwatch.settings import load
from training.parameters import Parameters, load_parameters
from training.synthesis import cohort

WHOLE = 1.25  # the test side may be that much smaller than its share, since no patient is parted


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
    from blastwatch.processes import stopping_politely

    checkout = Path.cwd()
    if cells is not None and not cells.is_dir():
        raise BlastwatchError(f"Expected a folder of cells at {cells} but there is none.")
    if cells is not None and cells.resolve().is_relative_to(folder.resolve()):
        raise UsageError(
            f"Expected cells outside of the work folder {folder}, which is emptied first, but got {cells}."
        )
    check_checkout(checkout)
    parameters = load_parameters(checkout / "params.yaml", [*_changes(checkout / KNOBS), *overrides])
    if cells is None:
        _check_sizes(patients, cells_each, parameters, drift_minimum=load().drift_minimum)
    with stopping_politely():
        run = Demo(checkout, folder.absolute(), cells=cells, patients=patients, each=cells_each)
        click.echo(run.run(parameters.to_dict()))


def _changes(file: Path) -> list[str]:
    """A file of parameters as overrides of another one: JSON is YAML."""
    knobs = (
        (section, *knob) for section, values in yaml.safe_load(file.read_text()).items() for knob in values.items()
    )
    return [f"{section}.{name}={json.dumps(value)}" for section, name, value in knobs]


def _check_sizes(patients: int, each: int, parameters: Parameters, *, drift_minimum: int) -> None:
    """Raise `UsageError` for a cohort that breaks the contract, or leaves too few test cells for a drift report: the
    steps would say so minutes later."""
    labels = [person.label for person in cohort(patients)]
    fewest = min(labels.count(label) for label in set(labels))
    tested = 0.0 if parameters.split.folds else parameters.split.test * patients  # patients
    least = parameters.contract.least_cells
    needed = max(ceil(least / fewest), ceil(WHOLE * drift_minimum / tested) if tested else 1)
    if each < needed:
        raise UsageError(
            f"Expected --cells-each {needed} or more for {patients} patients, of whom {fewest} are healthy, but got "
            f"{each}. The contract asks for {least} cells of each label (contract.least_cells), the drift report for "
            f"{drift_minimum} test cells (BLASTWATCH_DRIFT_MINIMUM). Or take more --patients."
        )
