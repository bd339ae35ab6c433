"""The commands `blastwatch labels`."""

import csv
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blastwatch import DISCLAIMER
from blastwatch.console import json_option, print_json, say
from blastwatch.errors import DataError
from blastwatch.registry import Fetched
from blastwatch.rounding import fixed
from blastwatch.settings import Settings, load
from monitoring.commands import Moment, check_span, print_table
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

if TYPE_CHECKING:
    from monitoring.store import Store

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


@click.group()
def labels() -> None:
    """Labels that came later, for predictions that were stored."""


@labels.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--skip-empty", is_flag=True, help="Pass over lines without a label, as in a review half done.")
@json_option
def add(file: Path, skip_empty: bool, as_json: bool) -> None:
    """Store the labels of a CSV file with the columns id and label (all or hem); other columns are not read.

    All or none are stored. The same file again changes nothing; another label for an id replaces the one before.
    """
    from monitoring.database import check_made, where
    from monitoring.store import UnknownPredictions, open_store

    settings = load()
    now, url = datetime.now(UTC), settings.predictions_url
    rows = [(id_, label, now) for id_, label in _read_labels(file, skip_empty=skip_empty)]
    check_made(url)
    with open_store(url) as store:
        try:
            changed = store.add_labels(rows)
        except UnknownPredictions as error:
            waits = _waiting(settings.waiting, error.ids)
            raise DataError(f"{error} They were looked for in {where(url)}.{waits}") from error
    if as_json:
        print_json({"labels": len(rows), "changed": changed})
    else:
        click.echo(f"{len(rows)} labels, {changed} of them new or changed.")


def _waiting(path: Path, ids: Sequence[str]) -> str:
    """What is to be said of ids whose predictions wait for their database in a file; "" for none."""
    from monitoring.database import StoreError
    from monitoring.waiting import waiting_among

    try:
        count = len(waiting_among(path, ids))
    except StoreError as error:
        return f" Whether any of them waits for it in {path} cannot be told: {error}"
    if not count:
        return ""
    return f" {count} of them wait for it in {path}, until a service of this BLASTWATCH_HOME has handed them over."


SINCE = click.option("--since", type=Moment(), help="First moment of the predictions (ISO 8601; without a zone: UTC).")
UNTIL = click.option("--until", type=Moment(), help="First moment after them.")
REF = click.option("--ref", help="Version or alias; default: the one that serves.")


@labels.command()
@SINCE
@UNTIL
@REF
@json_option
def report(since: datetime | None, until: datetime | None, ref: str | None, as_json: bool) -> None:
    """Tell how well a version answers: estimated from its probabilities, and realised where labels came."""
    from monitoring.asked import asked
    from monitoring.performance_report import report as report_on
    from monitoring.store import open_store

    check_span(since, until)
    settings = load()
    fetched = asked(settings, ref)
    with open_store(settings.predictions_url) as store:
        found = report_on(
            store, fetched.package, version=fetched.entry.version, settings=settings, since=since, until=until
        )
        if since is None and until is None:  # of a span of then, drift of now says nothing
            found |= _doubted(store, fetched, found, settings)
    if as_json:
        print_json(found)
    else:
        _print_report(found)


@labels.command()
@click.option("--out", "file", required=True, type=click.Path(dir_okay=False, path_type=Path), help="CSV file to make.")
@click.option("--count", type=click.IntRange(1, 1000), default=50, show_default=True, help="Cells wanted.")
@click.option(
    "--among",
    type=click.IntRange(1, 50_000),
    default=5000,
    show_default=True,
    help="Latest predictions to choose from.",
)
@click.option(
    "--pictures",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder that takes ID.png of those of them whose picture is kept (BLASTWATCH_KEEP_IMAGES).",
)
@SINCE
@UNTIL
@REF
@json_option
def review(
    file: Path,
    count: int,
    among: int,
    pictures: Path | None,
    since: datetime | None,
    until: datetime | None,
    ref: str | None,
    as_json: bool,
) -> None:
    """Write the cells to label next: the most uncertain and the most unlike, patients taking turns.

    Fill in the column label (all or hem) and give the file to `blastwatch labels add --skip-empty`. A cell whose
    picture is not kept is found by the id that the service's answer gave.
    """
    from monitoring.asked import asked
    from monitoring.review import candidates
    from monitoring.store import open_store
    from monitoring.windows import not_ahead, once

    if file.exists():
        raise DataError(f"Expected a new file but {file} is there, perhaps with labels in it. Name another one.")
    check_span(since, until)
    settings = load()
    package = asked(settings, ref).package
    where: dict[str, Any] = {"model_digest": package.digest, "since": since, "limit": among}
    with open_store(settings.predictions_url) as store:
        now, left_out = not_ahead(store, model_digest=package.digest)
        until = now if since is None and until is None else until
        answers, cells = store.answers(**where, until=until), store.read(**where, until=until)
    if left_out and until == now:
        say(left_out)
    images = once(answers)
    wanted = cells[cells["id"].isin(images.loc[images["truth"].isna(), "id"])]
    chosen = candidates(wanted, package.reference().answered, count=count)
    _write_new(file, chosen.to_csv(index=False, lineterminator="\n"))
    reasons = {reason: int(number) for reason, number in chosen["reason"].value_counts().sort_index().items()}
    patients = int(chosen.loc[chosen["patient"] != "", "patient"].nunique())
    repeated = len(answers) - len(images)
    told = {"cells": len(chosen), "reasons": reasons, "patients": patients, "repeated": repeated, "file": str(file)}
    if pictures is not None:
        told["pictures"] = _write_pictures(pictures, chosen["id"].tolist(), settings.predictions_url)
    if as_json:
        print_json(told)
    else:
        words = ", ".join(f"{number} {reason}" for reason, number in reasons.items()) or "no cell is left"
        click.echo(f"{len(chosen)} cells to label, of {patients} known patients ({words}): {file}")
        if repeated:
            click.echo(f"{repeated} repeated images of a patient were left out.")
        if pictures is not None:
            click.echo(f"{told['pictures']} of them with a picture in {pictures}")


def _write_pictures(folder: Path, ids: list[str], url: str) -> int:
    """Write the kept pictures of these cells; returns how many there are."""
    from monitoring.image_store import open_image_store

    with open_image_store(url) as images:
        found = images.pictures(ids)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for id_, png in found.items():
            (folder / f"{id_}.png").write_bytes(png)
    except OSError as error:
        raise DataError(f"The pictures cannot be written to {folder}: {error.strerror}.") from error
    return len(found)


def _write_new(file: Path, text: str) -> None:
    """Write a file that nobody has made meanwhile."""
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise DataError(f"The file {file} cannot be made: {error.strerror}.") from error


def _doubted(store: "Store", fetched: Fetched, found: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """Why the estimate is not to be relied on now, and whether drift of the version's cells was looked for at all."""
    from monitoring.doubts import doubts
    from monitoring.patient_report import PatientWatch
    from monitoring.timeline import Timeline, row_of, since

    version, digest = fetched.entry.version, fetched.package.digest
    timeline = Timeline(settings.drift, rows_alone=True)
    timeline.refresh()
    row = row_of(timeline.rows(), version, digest)
    patients = PatientWatch(store, fetched.package, version=version, settings=settings).look(datetime.now(UTC))
    labelled, drifted = found["now"]["labelled"], row is not None and row.drifted
    began = since(timeline.rows(), version, digest)
    reasons = doubts(labelled, drifted=drifted, since=began, patients=patients)
    return {"doubts": reasons, "drift_reported": row is not None}


def _print_report(found: dict[str, Any]) -> None:
    latest, labelled, check = found["now"]["latest"], found["now"]["labelled"], found["now"]["labelled"]["check"]
    click.echo(f"Version {found['version']}")
    rows = [["figure", "estimated", "realised", "on the reference"]]
    parts = (latest["estimated"], labelled["realised"], found["reference"]["realised"])
    rows += [[name, *(_interval(part.get(name)) for part in parts)] for name in FIGURES]
    rows.append(["cells", str(latest["cells"]), str(labelled["cells"]), str(found["reference"]["cells"])])
    rows += [[name, *((part[end] or "none")[:16] for part in (latest, labelled)), ""] for name, end in SPAN]
    rows.append(["intervals by", latest["unit"], labelled["unit"], PATIENT])
    print_table(rows)
    click.echo(
        f"Realised minus expected accuracy: {_interval(check['difference'])}, tolerance {check['tolerance']:g}; "
        f"the estimate is {check['state']}: {_said(labelled)}."
    )
    _print_doubts(found)
    rows = [["from (UTC)", "cells", "estimated accuracy", "labelled", "realised accuracy", "by", "the estimate"]]
    rows += [
        [
            window["since"][:10],
            _counted(window),
            _interval(window["estimated"].get("accuracy")),
            str(window["labelled"]),
            _interval(window["realised"].get("accuracy")),
            window["unit"],
            window["check"]["state"],
        ]
        for window in found["windows"]
    ]
    print_table(rows)
    for unit in sorted({part["unit"] for part in (latest, labelled, *found["windows"])}):
        click.echo(f"Intervals by {unit}: {ASSUMES[unit]}.")
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


def _interval(value: dict[str, float] | None) -> str:
    return f"{fixed(value['value'])} ({fixed(value['low'])} to {fixed(value['high'])})" if value else "unknown"


def _read_labels(file: Path, *, skip_empty: bool) -> Iterator[tuple[str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines)
        try:
            missing = [name for name in ("id", "label") if name not in (reader.fieldnames or ())]
            if missing:
                first = ",".join(reader.fieldnames or ())[:200]
                found = f"its first line is {first!r}" if first else "it is empty"
                raise DataError(f"Expected the columns id and label, parted by a comma, in {file} but {found}.")
            for row in reader:
                id_, label = (row["id"] or "").strip().lower(), (row["label"] or "").strip()
                if id_ and not label and skip_empty:
                    continue
                if not id_ or not label:
                    raise DataError(
                        f"Expected an id and a label in line {reader.line_num} of {file}. "
                        "Lines without a label are passed over with --skip-empty."
                    )
                if "\0" in id_:  # SQLite would look for it, PostgreSQL refuses it without naming the line
                    raise DataError(f"Expected no NUL in the id in line {reader.line_num} of {file}. Take it out.")
                yield id_, label
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(f"Expected a CSV file in UTF-8 but {file} cannot be read: {error}.") from error
