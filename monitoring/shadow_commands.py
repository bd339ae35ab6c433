"""The command `blastwatch shadow`."""

from datetime import UTC, datetime
from typing import Any

import click

from blastwatch.console import json_option, print_json, say
from blastwatch.sequential import ALPHA, MARGIN
from blastwatch.settings import load
from monitoring.commands import Moment, print_table

WORDS = {
    "better": "The challenger is better.",
    "not worse": "The challenger is not worse by more than the margin.",
    "worse": "The challenger is worse by more than the margin.",
    "undecided": "Undecided: go on.",
}


@click.group()
def shadow() -> None:
    """Compare the challenger, which reads in shadow, with the champion, which answers."""


@shadow.command(short_help="Tell how alike challenger and champion answer.")
@click.option("--champion", help="Version or alias that answered; default: the one that serves.")
@click.option("--challenger", help="Version or alias that read in shadow; default: challenger.")
@click.option("--at", type=Moment(), help="As it stood at a time (ISO 8601; without a zone: UTC).")
@click.option(
    "--margin",
    type=click.FloatRange(0, 1, max_open=True),
    default=MARGIN,
    show_default=True,
    help="Loss of accuracy that counts as worse. Settle it before the first look.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=ALPHA,
    show_default=True,
    help="Chance of a wrong verdict, over all looks together. Settle it before the first look.",
)
@json_option
def report(
    champion: str | None, challenger: str | None, at: datetime | None, margin: float, alpha: float, as_json: bool
) -> None:
    """Tell how alike the two answer and, once labels came, whether the challenger is better.

    The comparison is valid however often it is looked at. No verdict is a failure: the exit code is 0.
    """
    from blastwatch.registry import CHALLENGER, Registry
    from monitoring.asked import named
    from monitoring.shadow_report import Rules
    from monitoring.shadow_report import report as report_on
    from monitoring.shadow_store import open_shadow_store

    settings = load()
    registry = Registry(settings)
    pair = (
        named(registry, champion or settings.model_alias, option="--champion"),
        named(registry, challenger or CHALLENGER, option="--challenger"),
    )
    with open_shadow_store(settings.predictions_url) as store:
        found = report_on(store, *pair, at=at or datetime.now(UTC), rules=Rules(margin=margin, alpha=alpha))
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    ours, theirs = found["champion"], found["challenger"]
    click.echo(f"Champion {_name(ours)}, challenger {_name(theirs)}, until {found['at']}")
    if not found["cells"]:
        click.echo("No cell was read by both yet. Set BLASTWATCH_SHADOW_SHARE above 0 for the service.")
    else:
        _print_agreement(found)
        _print_labels(found["labelled"])
        _print_comparison(found["comparison"])
    say(found["disclaimer"])


def _name(version: dict[str, Any]) -> str:
    kind = "trained on synthetic cells" if version["synthetic"] else "trained on real cells"
    return f"{version['version']} ({version['digest'][:12]}, {kind})"


def _print_agreement(found: dict[str, Any]) -> None:
    flips, difference = found["flips"], found["probability_difference"]
    repeated = f" ({found['repeated']} repeated left out)" if found["repeated"] else ""
    click.echo(
        f"{found['cells']} cells read by both{repeated}, the same label for {found['agreement']:.2%}; "
        f"hem to all {flips['hem_to_all']}, all to hem {flips['all_to_hem']}"
    )
    click.echo(
        f"Probability of a blast: differs by {difference['mean_absolute']:.4f} on average, "
        f"by {difference['largest']:.4f} at most, shifted by {difference['mean']:+.4f}"
    )
    rows = [["champion decides", "challenger decides", "cells"]]
    rows += [[row["champion"], row["challenger"], str(row["cells"])] for row in found["decisions"]]
    print_table(rows)


def _print_labels(found: dict[str, Any]) -> None:
    if not found["cells"]:
        click.echo("No label came yet.")
        return
    rows = [["accuracy", "champion", "challenger"]]
    cells, patients = found["accuracy_by_cell"], found["accuracy_by_patient"]
    rows.append([f"{found['cells']} labelled cells", *(f"{cells[who]:.4f}" for who in ("champion", "challenger"))])
    if found["patients"]:
        rows.append([f"{found['patients']} patients", *(f"{patients[who]:.4f}" for who in ("champion", "challenger"))])
    print_table(rows)


def _print_comparison(found: dict[str, Any]) -> None:
    unit = f"{found['unit']}s"
    click.echo(
        f"Compared {unit}: {found['units']}, and {found['units_waiting']} that enter "
        f"{found['settle_hours']:g} h after their first label"
    )
    rows = [["day", unit, "difference", f"{1 - found['alpha']:.0%} at any time", "e better", "e worse"]]
    rows += [
        [
            row["day"],
            str(row["units"]),
            f"{row['difference']['mean']:+.4f}",
            f"{row['difference']['low']:+.4f} to {row['difference']['high']:+.4f}",
            f"{row['better']['e']:.3g}",
            f"{row['worse']['e']:.3g}",
        ]
        for row in found["history"]
    ]
    print_table(rows)
    click.echo(
        f"{WORDS[found['verdict']]} (p {found['better']['p']:.3g} for better, {found['worse']['p']:.3g} for worse "
        f"by more than {found['margin']:g}; an e-value of {found['e_needed']:g} decides)"
    )
    click.echo(f"This holds where {found['assumes']}.")
