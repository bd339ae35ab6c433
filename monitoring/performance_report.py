"""Estimated and realised performance of one version: of the latest cells, and window by window over the days before."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from blastwatch import DISCLAIMER
from blastwatch.package import Package
from blastwatch.settings import Settings
from monitoring.performance import FEWEST_PATIENTS, PATIENT, Limits, performance, reference_performance, unit_of
from monitoring.recalibration import AS_GIVEN, Recalibration, recalibrate
from monitoring.store import Store
from monitoring.windows import once, reaching

MOST_CELLS = 50_000  # latest predictions that one report reads: half a second, whatever the store holds; and as many
# labelled ones where these are not all, since labels come for cells that so many later ones have displaced
PATIENTS_NOW = 20  # patients whom `now` reaches back for; twice what a verdict takes, so that none comes and goes
_EPOCH = pd.Timestamp(0, tz=UTC)


def limits_of(settings: Settings) -> Limits:
    return Limits(tolerance=settings.estimate_tolerance, margin=settings.performance_margin)


def report(
    store: Store,
    package: Package,
    *,
    version: str,
    settings: Settings,
    since: datetime | None = None,
    until: datetime | None = None,
) -> dict[str, Any]:
    """All that is known of a version's performance, as one JSON object.

    Args:
        since, until: times of the predictions; at most the latest `MOST_CELLS` of them count, and of the labelled ones.

    Returns:
        version, digest, at, synthetic; `reference`: on the version's reference patients; `recalibration` (slope and
        shift): of the probabilities behind every estimate, to these patients; `now`: the latest predictions for the
        estimate and the latest labelled ones for truth and check (labels come late, so these are older cells), each
        `drift_window` of them or more (`_latest`); `windows`: of `performance_days` days each, oldest first;
        `truncated`: whether there may be more predictions than were read; `seen`: how many of those that were read,
        and of how many patients with a key, were left out, since the version learned from the image or from another
        of its patient (`blastwatch.seen`); `repeated`: how many more, since each image of a patient counts once, with
        its label where one came.
    """
    limits, digest = limits_of(settings), package.digest
    answered = package.reference().answered
    recalibration = recalibrate(answered)
    known = reference_performance(answered, recalibration)
    where: dict[str, Any] = {"model_digest": digest, "since": since, "until": until, "limit": MOST_CELLS}
    read = store.answers(**where)
    truncated = len(read) == MOST_CELLS
    graded = store.answers(**where, labelled=True) if truncated else read[read["truth"].notna()]
    taught = {*read.loc[read["seen"], "patient"], *graded.loc[graded["seen"], "patient"]} - {""}
    new, graded = _unseen(read, taught), _unseen(graded, taught)
    cells, labelled = once(new), once(graded)
    size, days = settings.drift_window, settings.performance_days
    return {
        "version": version,
        "digest": digest,
        "synthetic": package.info.synthetic,
        "at": datetime.now(UTC).isoformat(),
        "reference": known,
        "recalibration": asdict(recalibration),
        "now": _now(_latest(cells, size), _latest(labelled, size), limits, known, recalibration),
        "windows": windows(
            cells, limits, known, days=days, recalibration=recalibration, labelled=labelled if truncated else None
        ),
        "days": days,
        "truncated": truncated,
        "repeated": len(new) - len(cells),
        "seen": {"cells": len(read) - len(new), "patients": len(taught)},
        "disclaimer": DISCLAIMER,
    }


def _unseen(cells: pd.DataFrame, taught: set[str]) -> pd.DataFrame:
    """The cells that say how the version answers people it never saw. taught: patients of whom it has seen an image."""
    return cells[~(cells["seen"] | cells["patient"].isin(taught))]


def _latest(cells: pd.DataFrame, size: int) -> pd.DataFrame:
    """The latest `size` cells, and those before them until `PATIENTS_NOW` patients are reached, or all that there are:
    a laboratory sends a patient's cells together, so that few patients fill the latest ones. Only the latest `size`
    where more would give no verdict either: they are of too few patients, or fewer than half of them carry a key.

    Args:
        cells: oldest first.
    """
    keys = cells["patient"].iloc[::-1]
    reached = ((keys != "") & ~keys.duplicated()).to_numpy().cumsum()  # patients among the latest 1, 2, ... cells
    if len(cells) <= size or reached[-1] < FEWEST_PATIENTS:
        return cells.tail(size)
    found = cells.tail(reaching(reached, size, min(PATIENTS_NOW, reached[-1])) or size)
    return found if unit_of(found) == PATIENT else cells.tail(size)


def _now(
    cells: pd.DataFrame, labelled: pd.DataFrame, limits: Limits, known: dict[str, Any], recalibration: Recalibration
) -> dict[str, Any]:
    """The estimate of the latest cells beside truth and check of the latest labelled ones."""

    def judged(part: pd.DataFrame) -> dict[str, Any]:
        return performance(part, limits, known=known, recalibration=recalibration)

    return {
        "latest": _window(cells, judged(cells.assign(truth=None))),
        "labelled": _window(labelled, judged(labelled)),
    }


def windows(
    cells: pd.DataFrame,
    limits: Limits,
    known: dict[str, Any],
    *,
    days: int,
    recalibration: Recalibration = AS_GIVEN,
    labelled: pd.DataFrame | None = None,
) -> list[dict[str, Any]]:
    """The performance of each span of so many days that has cells, oldest first; spans begin at midnight, UTC.

    Args:
        cells: from `Store.answers`, of one version.
        known: from `reference_performance`; recalibration: the one that it was made with.
        labelled: the labelled ones, where `cells` are only the latest, one at least; None where these are all.

    Returns:
        What `performance` says of each, with since, until, and `cut`: whether only the latest of the span's cells, or
        none of them, are among `cells`. Then `cells`, `estimated` and its `fell` are of these alone.
    """
    span = timedelta(days=days)

    def by_span(part: pd.DataFrame) -> dict[int, pd.DataFrame]:
        return {int(index): rows for index, rows in part.groupby((part["time"] - _EPOCH) // span)}

    read = by_span(cells)
    graded = {} if labelled is None else by_span(labelled)
    found = []
    for index in sorted(read.keys() | graded.keys()):
        cut = labelled is not None and index <= min(read)  # later ones have all their labelled cells among `cells`
        here = read.get(index, cells.iloc[:0])
        truth = graded.get(index, cells.iloc[:0]) if cut else None
        found.append(
            {
                "since": (_EPOCH + index * span).isoformat(),
                "until": (_EPOCH + (index + 1) * span).isoformat(),
                "cut": cut,
                **performance(here, limits, labelled=truth, known=known, recalibration=recalibration),
            }
        )
    return found


def _window(cells: pd.DataFrame, found: dict[str, Any]) -> dict[str, Any]:
    known = len(cells) > 0
    return {
        "since": cells["time"].min().isoformat() if known else None,
        "until": cells["time"].max().isoformat() if known else None,
        **found,
    }
