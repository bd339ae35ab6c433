"""Estimated and realised performance of one version: of the latest cells, and window by window over the days before."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from blastwatch import DISCLAIMER
from blastwatch.package import Package
from blastwatch.settings import Settings
from monitoring.performance import Limits, performance, reference_performance
from monitoring.recalibration import AS_GIVEN, Recalibration, recalibrate
from monitoring.store import Store

MOST_CELLS = 50_000  # latest predictions that one report reads: half a second, whatever the store holds
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
        since, until: times of the predictions; at most the latest `MOST_CELLS` of them count.

    Returns:
        version, digest, at, synthetic; `reference`: on the version's reference patients; `recalibration` (slope and
        shift): of the probabilities behind every estimate, to these patients; `now`: the latest
        `drift_window` predictions for the estimate and as many labelled ones for truth and check (labels come late,
        so these are older cells); `windows`: of `performance_days` days each, oldest first.
    """
    limits, digest = limits_of(settings), package.digest
    answered = package.reference().answered
    recalibration = recalibrate(answered)
    known = reference_performance(answered, recalibration)
    cells = store.answers(model_digest=digest, since=since, until=until, limit=MOST_CELLS)
    latest = store.answers(model_digest=digest, since=since, until=until, limit=settings.drift_window, labelled=True)
    return {
        "version": version,
        "digest": digest,
        "synthetic": package.info.synthetic,
        "at": datetime.now(UTC).isoformat(),
        "reference": known,
        "recalibration": asdict(recalibration),
        "now": _now(cells.tail(settings.drift_window), latest, limits, known, recalibration),
        "windows": windows(cells, limits, known, days=settings.performance_days, recalibration=recalibration),
        "days": settings.performance_days,
        "truncated": len(cells) == MOST_CELLS,
        "disclaimer": DISCLAIMER,
    }


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
) -> list[dict[str, Any]]:
    """The performance of each span of so many days that has cells, oldest first; spans begin at midnight, UTC.

    Args:
        cells: from `Store.answers`, of one version.
        known: from `reference_performance`; recalibration: the one that it was made with.
    """
    span = timedelta(days=days)
    number = (cells["time"] - _EPOCH) // span
    return [
        {
            "since": (_EPOCH + int(index) * span).isoformat(),
            "until": (_EPOCH + (int(index) + 1) * span).isoformat(),
            **performance(part, limits, known=known, recalibration=recalibration),
        }
        for index, part in cells.groupby(number, sort=True)
    ]


def _window(cells: pd.DataFrame, found: dict[str, Any]) -> dict[str, Any]:
    known = len(cells) > 0
    return {
        "since": cells["time"].min().isoformat() if known else None,
        "until": cells["time"].max().isoformat() if known else None,
        **found,
    }
