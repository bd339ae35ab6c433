"""The report on performance in words, for `blastwatch labels report`. Figures are those of
`monitoring.performance_report`."""

from typing import Any

import click

from blastwatch import DISCLAIMER
from blastwatch.console import say
from blastwatch.rounding import fixed
from monitoring.commands import print_table
from monitoring.doubts import DRIFT
from monitoring.doubts import PATIENTS as OTHERS
from monitoring.performance import (
    ASSUMES,
    CELLS,
    CONFIRMED,
    FEWEST_CELLS,
    FEWEST_PATIENTS,
    FIGURES,
    KEYS,
    OPEN,
    PATIENT,
    PATIENTS,
    UNCHECKED,
    UNTRUSTED,
)

SAID = {
    UNCHECKED: "no label has come yet",
    OPEN: "the labels so far neither confirm nor refute it",
    CONFIRMED: "the labels confirm it within the tolerance",
    UNTRUSTED: "the labels refute it, so do not trust it",
}
"""Of a state of the estimate, in words."""

LACKS = {
    CELLS: "no verdict, since {labelled} cells have labels and {cells} are needed",
    KEYS: "no verdict, since fewer than half of the labelled cells carry a patient key",
    PATIENTS: "no verdict, since the labelled cells are of {patients} patients and {needed} are needed",
}
"""Where it is open since something is lacking."""

DOUBTED = {
    DRIFT: "The cells have drifted since {since}",
    OTHERS: "The patients are others since {since}",
}
"""What is said of a doubt that the check does not tell."""

SPAN = (("from (UTC)", "since"), ("to (UTC)", "until"))


def print_report(found: dict[str, Any]) -> None:
    """Print what `monitoring.performance_report.report` found."""
    latest, labelled, check = found["now"]["latest"], found["now"]["labelled"], found["now"]["labelled"]["check"]
    click.echo(f"Version {found['version']}")
    rows = [["figure", "estimated", "realised", "on the reference"]]
    parts = (latest["estimated"], labelled["realised"], found["reference"]["realised"])
    rows += [[name, *(interval(part.get(name)) for part in parts)] for name in FIGURES]
    rows.append(["cells", str(latest["cells"]), str(labelled["cells"]), str(found["reference"]["cells"])])
    rows += [[name, *((part[end] or "none")[:16] for part in (latest, labelled)), ""] for name, end in SPAN]
    rows.append(["intervals by", latest["unit"], labelled["unit"], PATIENT])
    print_table(rows)
    click.echo(
        f"Realised minus expected accuracy: {interval(check['difference'])}, tolerance {check['tolerance']:g}; "
        f"the estimate is {check['state']}: {_said(labelled)}."
    )
    _print_doubts(found)
    rows = [["from (UTC)", "cells", "estimated accuracy", "labelled", "realised accuracy", "by", "the estimate"]]
    rows += [
        [
            window["since"][:10],
            _counted(window),
            interval(window["estimated"].get("accuracy")),
            str(window["labelled"]),
            interval(window["realised"].get("accuracy")),
            window["unit"],
            window["check"]["state"],
        ]
        for window in found["windows"]
    ]
    print_table(rows)
    for unit in sorted({part["unit"] for part in (latest, labelled, *found["windows"])}):
        click.echo(f"Intervals by {unit}: {ASSUMES[unit]}.")
    if found["seen"]["cells"]:
        say(
            f"{found['seen']['cells']} predictions were left out: version {found['version']} learned from these "
            "images, or from others of their patients."
        )
    if found["repeated"]:
        say(f"{found['repeated']} predictions were left out: each image of a patient counts once.")
    if found["truncated"]:
        say(
            "There are more predictions than one report reads: the estimates are of the latest ones, and of windows "
            "before them labelled cells alone count. Name a span with --since and --until for others."
        )
    say(DISCLAIMER)


def _print_doubts(found: dict[str, Any]) -> None:
    for doubt in found.get("doubts", ()):
        if doubt["reason"] in DOUBTED:
            changed = DOUBTED[doubt["reason"]].format(since=doubt["since"] or "a time that is not known")
            click.echo(
                f"{changed}: do not rely on the estimate before the labelled cells above are all of since then and "
                "enough for a verdict."
            )
    if not found.get("drift_reported", True):
        say("No drift report of this version lies here, so whether its cells drifted is not known: start the monitor.")


def _said(labelled: dict[str, Any]) -> str:
    """What the labels say of the estimate, in words."""
    state, lacks = labelled["check"]["state"], labelled["check"]["lacks"]
    if state != OPEN or lacks is None:
        return SAID[state]
    counts = {"labelled": labelled["labelled"], "patients": labelled["patients"]}
    return LACKS[lacks].format(**counts, cells=FEWEST_CELLS, needed=FEWEST_PATIENTS)


def _counted(window: dict[str, Any]) -> str:
    """Cells of a window behind its estimate."""
    if not window["cut"]:
        return str(window["cells"])
    return f"latest {window['cells']}" if window["cells"] else "not read"


def interval(value: dict[str, float] | None) -> str:
    return f"{fixed(value['value'])} ({fixed(value['low'])} to {fixed(value['high'])})" if value else "unknown"
