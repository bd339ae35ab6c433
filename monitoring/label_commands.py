"""The commands `blastwatch labels`."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from blastwatch.console import json_option, print_json, say
from blastwatch.errors import DataError
from blastwatch.settings import Settings, load
from monitoring.commands import Moment, check_span

if TYPE_CHECKING:
    from blastwatch.registry import Fetched
    from monitoring.store import Store


@click.group()
def labels() -> None:
    """Labels that came later, for predictions that were stored."""


@labels.command(short_help="Store the labels of a CSV file.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--skip-empty", is_flag=True, help="Pass over lines without a label, as in a review half done.")
@json_option
def add(file: Path, skip_empty: bool, as_json: bool) -> None:
    """Store the labels of a CSV file with the columns id and label (all or hem); other columns are not read.

    Its columns are parted by commas, semicolons or tabs, as its first line shows. It is in UTF-8, or in UTF-16 with its
    mark. All or none are stored. The same file again changes nothing; another label for an id replaces the one before.
    """
    from monitoring.database import check_made, where
    from monitoring.label_files import lines_of, read_labels
    from monitoring.store import UnknownPredictions, open_store

    settings = load()
    now, url = datetime.now(UTC), settings.predictions_url
    given = list(read_labels(file, skip_empty=skip_empty))
    check_made(url)
    with open_store(url) as store:
        try:
            changed = store.add_labels((row.id, row.label, now) for row in given)
        except UnknownPredictions as error:
            waits = _waiting(settings.waiting, error.ids)
            lines = lines_of(given, error.ids)
            raise DataError(f"{error} See {lines} of {file}. They were looked for in {where(url)}.{waits}") from error
    if as_json:
        print_json({"labels": len(given), "changed": changed})
    else:
        click.echo(f"{len(given)} labels, {changed} of them new or changed.")


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


@labels.command(short_help="Tell how well a version answers.")
@SINCE
@UNTIL
@REF
@json_option
def report(since: datetime | None, until: datetime | None, ref: str | None, as_json: bool) -> None:
    """Tell how well a version answers: estimated from its probabilities, and realised where labels came."""
    from monitoring.asked import asked
    from monitoring.performance_report import report as report_on
    from monitoring.performance_words import print_report
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
        print_report(found)


@labels.command(short_help="Write the cells to label next.")
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


def _doubted(store: "Store", fetched: "Fetched", found: dict[str, Any], settings: Settings) -> dict[str, Any]:
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
