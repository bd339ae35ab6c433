"""The commands `blastwatch store`: what the database of predictions holds, and what it is to forget."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

import click

from blastwatch.console import json_option, print_json, say
from blastwatch.errors import DataError, UsageError
from blastwatch.settings import Settings, load

if TYPE_CHECKING:
    from monitoring.retention import Deleted, Usage


@click.group()
def store() -> None:
    """The database of predictions: how much it holds, and what it forgets."""


@store.command(short_help="Tell what is stored, and what it takes.")
@json_option
def show(as_json: bool) -> None:
    """Tell how many predictions are stored, what they take, and what was ever deleted."""
    from monitoring.database import check_made
    from monitoring.retention import open_retention

    url = load().predictions_url
    check_made(url)
    with open_retention(url) as retention:
        usage, counted = retention.usage(), retention.counted()
    if as_json:
        print_json({**_usage(usage), "deleted": {reason: asdict(gone) for reason, gone in counted.items()}})
        return
    span = f", from {usage.oldest.isoformat()} to {usage.newest.isoformat()}" if usage.oldest and usage.newest else ""
    pictures = f"{usage.images} pictures ({usage.image_bytes / 2**20:.1f} MiB of it)"
    click.echo(f"{usage.predictions} predictions and {pictures}, {usage.bytes / 2**20:.1f} MiB{span}.")
    for reason, gone in counted.items():
        click.echo(f"Deleted for {reason}: {_words(gone)}.")


@store.command(short_help="Delete what is older or more than is to be kept.")
@json_option
def retain(as_json: bool) -> None:
    """Delete what BLASTWATCH_RETENTION_DAYS, BLASTWATCH_RETENTION_MIB and BLASTWATCH_IMAGE_DAYS say, at once; the
    monitor does so by itself.

    A prediction goes with its label, its shadow and its picture, the oldest first.
    """
    from monitoring.database import check_made
    from monitoring.retention import open_retention
    from monitoring.retention import retain as retain_in

    settings = load()
    if not (settings.retention_days or settings.retention_mib or settings.image_days):
        raise UsageError(
            "Expected a limit but none is set. Set BLASTWATCH_RETENTION_DAYS, BLASTWATCH_RETENTION_MIB or "
            "BLASTWATCH_IMAGE_DAYS."
        )
    check_made(settings.predictions_url)
    with open_retention(settings.predictions_url) as retention:
        gone, usage = retain_in(retention, settings), retention.usage()
    if as_json:
        print_json({"deleted": asdict(gone), "left": _usage(usage)})
    else:
        click.echo(f"Deleted {_words(gone)}; {usage.predictions} predictions are left.")
        if not (settings.retention_days or settings.retention_mib):
            say(
                "No limit is set for predictions (BLASTWATCH_RETENTION_DAYS, BLASTWATCH_RETENTION_MIB), so all of them "
                f"stay; pictures stay for {settings.image_days:g} days (BLASTWATCH_IMAGE_DAYS)."
            )


@store.command(short_help="Delete all cells of the patients in a file.")
@click.argument("keys", type=click.File("r", encoding="utf-8-sig"))
@json_option
def forget(keys: TextIO, as_json: bool) -> None:
    """Delete all cells of the patients whose keys stand in a file, one a line; - reads them from standard input.

    The keys are those that callers sent as Blastwatch-Patient. They are no argument, since other users of the machine
    see what a command was called with. Cells that the service answered in the last seconds may still be on their way to
    the database: call it again after a minute. What waits for the database is reached in this BLASTWATCH_HOME alone.
    What is deleted cannot be had back.
    """
    from monitoring.database import check_made
    from monitoring.retention import Deleted, open_retention

    settings = load()
    hashed = _hashed(settings, keys)
    check_made(settings.predictions_url)  # else "nothing was stored of them" would be said of the wrong place
    gone = [Deleted()] * len(hashed)
    for url in _places(settings):
        with open_retention(url) as retention:
            gone = [
                sum((retention.forget(key) for key in same), start=before)
                for before, same in zip(gone, hashed, strict=True)
            ]
    unknown = gone.count(Deleted())
    total = sum(gone, start=Deleted())
    if as_json:
        print_json({"patients": len(gone), "unknown": unknown, "deleted": asdict(total)})
    else:
        click.echo(f"Deleted {_words(total)} of {len(gone)} patients; nothing was stored of {unknown} of them.")
        if unknown:
            say("Cells that are stored without a patient's key are not found by one, whoever's they are.")


def _places(settings: Settings) -> list[str]:
    """Where cells of a patient may be; what waits for the database comes first, before it can go there."""
    waiting = [f"sqlite:///{settings.waiting}"] if settings.waiting.is_file() else []
    return [*waiting, settings.predictions_url]


def _hashed(settings: Settings, keys: TextIO) -> list[tuple[str, ...]]:
    """Per patient the hashes that its cells may be stored under, in order.

    Nothing is made: without a salt no patient was ever stored from this home.
    """
    from monitoring.pseudonyms import Pseudonyms

    try:
        wanted = list(dict.fromkeys(line.strip() for line in keys if line.strip()))
    except UnicodeDecodeError as error:
        raise DataError(
            f"Expected patient keys in UTF-8, one a line, but they cannot be read: {error.reason}."
        ) from error
    if not wanted:
        raise DataError("Expected patient keys, one a line, but got none.")
    if not settings.patient_salt.exists():
        raise DataError(
            f"Expected the salt of the patients at {settings.patient_salt} but there is none, and without it no "
            "cell of theirs is found. Call this with the BLASTWATCH_HOME and BLASTWATCH_PATIENT_SALT of the service."
        )
    pseudonyms = Pseudonyms(settings.patient_salt)
    # HTTP has no encoding for a header: what a caller sent as UTF-8 arrives as Latin-1 and was hashed so.
    spellings = [dict.fromkeys((key, key.encode().decode("latin-1"))) for key in wanted]
    return [tuple(pseudonyms(key) for key in same) for same in spellings]


def _usage(usage: "Usage") -> dict[str, Any]:
    moments = {name: getattr(usage, name) for name in ("oldest", "newest")}
    return {
        "predictions": usage.predictions,
        "images": usage.images,
        "image_bytes": usage.image_bytes,
        "bytes": usage.bytes,
        **{name: moment.isoformat() if moment else None for name, moment in moments.items()},
    }


def _words(gone: "Deleted") -> str:
    counts = {"predictions": gone.predictions, "labels": gone.labels, "cells of the shadow": gone.shadow}
    return ", ".join(f"{number} {what}" for what, number in (counts | {"pictures": gone.images}).items())
