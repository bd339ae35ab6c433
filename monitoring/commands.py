"""The commands `blastwatch drift`."""

from datetime import UTC, datetime
from math import ceil
from typing import Any

import click

from blastwatch import DISCLAIMER
from blastwatch.console import json_option, print_json, say
from blastwatch.errors import UsageError
from blastwatch.rounding import against, fixed
from blastwatch.settings import load


class Moment(click.ParamType[datetime]):
    """A time in ISO 8601; one without a time zone is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"Expected a time such as 2026-11-24T09:00:00+01:00 but got {value!r}.", param, ctx)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def check_span(since: datetime | None, until: datetime | None) -> None:
    """Raise `click.UsageError` where no moment lies between the two."""
    if since is not None and until is not None and since >= until:
        raise click.UsageError(f"Expected --until after --since but got {until.isoformat()} after {since.isoformat()}.")


@click.group()
def drift() -> None:
    """Compare what was predicted with the reference of the version that predicted it."""


@drift.command(short_help="Make one drift report.")
@click.option("--since", type=Moment(), help="First moment of the window (ISO 8601; without a zone: UTC).")
@click.option("--until", type=Moment(), help="First moment after the window.")
@click.option("--ref", help="Version or alias whose predictions are compared; default: the one that serves.")
@json_option
def report(since: datetime | None, until: datetime | None, ref: str | None, as_json: bool) -> None:
    """Make one drift report, of the latest predictions or of a span of time, and add it to Evidently's pages.

    Finding drift is a result and no failure: the exit code is 0 either way, and 1 where no report could be made,
    for instance because there are too few predictions for a verdict.
    """
    from monitoring.asked import asked
    from monitoring.drift import compare
    from monitoring.store import open_store
    from monitoring.windows import latest, not_ahead, spanned
    from monitoring.workspace import add_run

    check_span(since, until)
    settings = load()
    fetched = asked(settings, ref)
    digest, left_out = fetched.package.digest, ""
    with open_store(settings.predictions_url) as store:
        if since is None and until is None:
            now, left_out = not_ahead(store, model_digest=digest)
            window = latest(store, model_digest=digest, size=settings.drift_window, until=now)
        else:
            window = spanned(store, model_digest=digest, since=since, until=until)
    if left_out:
        say(left_out)
    made = compare(
        fetched.package,
        window.cells,
        version=fetched.entry.version,
        folder=settings.drift,
        minimum=settings.drift_minimum,
        on_request=True,
        repeated=window.repeated,
        keyed=window.keyed,
    )
    add_run(settings.drift / "workspace", made.snapshot, name=f"version {fetched.entry.version}, on request")
    if as_json:
        print_json(made.document)
    else:
        _print_report(made.document)


@drift.command(short_help="Hold the patients who came against those before.")
@click.option("--ref", help="Version or alias whose patients are looked at; default: the one that serves.")
@json_option
def patients(ref: str | None, as_json: bool) -> None:
    """Hold the patients who came, one after another, against those that the version knows.

    At most one false alarm in a thousand patients, however often it is looked at. An alarm is a result and no failure:
    the exit code is 0 either way.
    """
    from monitoring.asked import asked
    from monitoring.patient_report import PatientWatch
    from monitoring.store import open_store

    settings = load()
    fetched = asked(settings, ref)
    with open_store(settings.predictions_url) as store:
        watched = PatientWatch(store, fetched.package, version=fetched.entry.version, settings=settings)
        found = watched.look(datetime.now(UTC))
    if watched.problem:
        say(watched.problem)
    if as_json:
        print_json(found)
    else:
        _print_patients(found)


@drift.command(short_help="Look again and again, with gauges for Prometheus.")
@click.option("--once", is_flag=True, help="Look once, without serving gauges, and end.")
@json_option
def watch(once: bool, as_json: bool) -> None:
    """Look again and again, and export drift gauges for Prometheus on 127.0.0.1, until stopped.

    With --once --json the report is printed, or {"reason": why there is none}.
    """
    from blastwatch.embedded_store import check_made
    from monitoring.watch import patient_sentence, watch_once
    from monitoring.watch import watch as watch_on

    if as_json and not once:
        raise click.UsageError("--json needs --once: the monitor otherwise never ends.")
    settings = load()
    check_made(settings)
    if not once:
        watch_on(settings)
        return
    look = watch_once(settings)
    if look.problem:
        say(look.problem)
    if as_json:
        print_json(look.report.document if look.report else {"reason": look.reason})
        return
    if look.report:
        _print_report(look.report.document)
    else:
        say(look.reason)
    for line in patient_sentence(look.patients):
        say(line)


@drift.command(short_help="Work the thresholds of a version out anew.")
@click.option("--ref", help="Version or alias whose reference is used; default: the one that serves.")
@click.option(
    "--false-alarm-rate",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.001,
    show_default=True,
    help="Share of windows without drift that alarm, over all columns together.",
)
@click.option(
    "--patients",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="Fewest patients in a window; more of them make lower thresholds.",
)
@click.option("--resamples", type=click.IntRange(100), default=1000, show_default=True, help="Simulated windows.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the simulation.")
@json_option
def calibrate(
    ref: str | None, false_alarm_rate: float, patients: int, resamples: int, seed: int, as_json: bool
) -> None:
    """Work the thresholds of a version out anew and print them; its sealed package keeps the ones it has."""
    from monitoring.asked import asked
    from monitoring.calibration import calibrate as calibrate_on

    settings = load()
    if false_alarm_rate * resamples < 1 - 1e-9:  # as for package.false_alarm_rate in params.yaml
        raise UsageError(
            f"Expected --resamples to be {ceil(1 / false_alarm_rate - 1e-9)} or more for a false-alarm rate of "
            f"{false_alarm_rate:g}, which so few windows cannot give, but got {resamples}. Set more, or a higher rate."
        )
    package = asked(settings, ref).package
    found = calibrate_on(
        package.reference(),
        signatures=package.drift().get("signatures"),
        false_alarm_rate=false_alarm_rate,
        patients=patients,
        resamples=resamples,
        seed=seed,
    )
    if as_json:
        print_json(found)
        return
    if not found["enough_groups"]:
        answered = f"{found['answered_groups']} patients were answered by fits that had not seen them"
        say(f"Only {answered}: for what the network says the rate of false alarms is not to be relied on.")
    sizes = found["windows"]
    rows = [["column", "method", *(f"{size['cells']} cells" for size in sizes)]]
    rows += [
        [name, method, *(f"{size['thresholds'][name]:.3f}" for size in sizes)]
        for name, method in found["methods"].items()
    ]
    print_table(rows)


def _print_report(document: dict[str, Any]) -> None:
    from monitoring.windows import words

    window = document["window"]
    verdict = "drift" if document["drifted"] else "no drift"
    held = words(window, document["compared"])
    click.echo(f"Version {document['version']}, {held}, from {window['since']} to {window['until']}")
    rows = [["column", "score", "threshold", ""]]
    rows += [
        [column["name"], *against(column["score"], column["threshold"]), "drift" if column["drifted"] else ""]
        for column in document["columns"]
    ]
    print_table(rows)
    _print_causes(document["causes"])
    click.echo(f"{verdict}: {document['report']}")
    if window["caution"]:
        say(window["caution"])
    say(DISCLAIMER)


def _print_patients(found: dict[str, Any]) -> None:
    from monitoring.patient_report import NOBODY, dated

    for line in _who_came(found):
        click.echo(line)
    rows = [["column", "evidence", "before", "between", "now", "since", ""]]
    rows += [
        [
            column["name"], fixed(column["evidence"]), f"{column['before']:.3f}", f"{column['spread']:.3f}",
            "" if column["now"] is None else f"{column['now']:.3f}", dated(column),
            "other" if column["drifted"] else NOBODY if column["since"] else "",
        ]
        for column in found["columns"]
    ]  # fmt: skip
    print_table(rows)
    _print_causes(found["causes"])
    gone = f"An alarm {NOBODY}." if any(column["since"] for column in found["columns"]) else ""
    say("Other patients than before." if found["drifted"] else gone or "No change of patients is shown.")
    say(DISCLAIMER)


def _who_came(found: dict[str, Any]) -> list[str]:
    """Of the patients who came, who counts and who does not yet, or not at all."""
    lines = [f"Version {found['version']}: {_people(found['entered'], 'counts', 'count')}, {found['known']} are known"]
    if found["waiting"]:
        here = _people(found["waiting"], "is here and", "are here; each")
        lines.append(f"{here} counts {found['minutes']:g} minutes after the first cell.")
    if found["few"]:
        few = _people(found["few"], "had", "had")
        lines.append(f"{few} fewer than {found['fewest_cells']} cells in that time, which is too few to count.")
    return lines


def _people(count: int, one: str, many: str) -> str:
    return f"1 patient {one}" if count == 1 else f"{count} patients {many}"


def _print_causes(causes: list[dict[str, str]]) -> None:
    for cause in causes:
        click.echo(f"Probable cause: {cause['cause']} ({cause['evidence']})")


def print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
