"""What the drift page shows, made up of drawn numbers: no image, no network, no registry.

    python -m tests.drift_status PORT

serves the page on these numbers until it is stopped, for a look in a browser.
"""

import io
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image
from prometheus_client import CollectorRegistry

from blastwatch.errors import RegistryUnreachable
from blastwatch.settings import Settings, load
from monitoring.examples import Examples
from monitoring.metrics import MonitorMetrics
from monitoring.page import PageServer, build_app
from monitoring.patient_report import told
from monitoring.patients import Came
from monitoring.performance import Limits, performance, reference_performance
from monitoring.performance_report import windows
from monitoring.retention import Usage
from monitoring.scores import MEASURED, METHODS, PROBABILITY
from monitoring.status import Status
from tests.answered import answers
from tests.drawn import draw_cell

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
DAYS = 28
BASIS = {"patients": 36, "answered": 24, "said": "from 36 known patients, 24 of them with answers", "caution": None}
LIMITS = Limits(tolerance=0.02, margin=0.05)


class Told:
    """Stands for the registry: two promotions, or none that can be read."""

    def __init__(self, *, reachable: bool = True) -> None:
        self._reachable = reachable

    def records(self):
        if not self._reachable:
            raise RegistryUnreachable("away")
        moves = [("1", "", DAYS - 1), ("2", "1", 12)]
        return [
            SimpleNamespace(alias="champion", time=(NOW - timedelta(days=days)).isoformat(), before=before, after=after,
                            who="tester", action="promote")
            for after, before, days in moves
        ]  # fmt: skip


def report(moment: datetime, version: str, ratios: dict[str, float]) -> dict[str, object]:
    """A drift report as `monitoring.drift` leaves it."""
    columns = [
        {"name": name, "score": 0.2 * value, "threshold": 0.2, "drifted": value >= 1} for name, value in ratios.items()
    ]
    window = {"since": (moment - timedelta(hours=8)).isoformat(), "until": moment.isoformat(), "cells": 500,
              "patients": 9, "effective_patients": 7.4, "repeated": 0, "caution": None}  # fmt: skip
    drifted = any(column["drifted"] for column in columns)
    return {
        "version": version, "window": window, "basis": BASIS, "drifted": drifted, "columns": columns, "causes": [],
        "report": "",
    }  # fmt: skip


def write_reports(folder: Path, *, stained: bool = True, every: timedelta = timedelta(hours=8)) -> None:
    """Reports of four weeks; the stain changes for two days under version 1 and, if asked, in the last two days."""
    random = np.random.default_rng(4)
    folder.mkdir(parents=True, exist_ok=True)
    moment = NOW - timedelta(days=DAYS)
    while moment <= NOW:
        age = NOW - moment
        ratios = {name: float(random.uniform(0.25, 0.8)) for name in METHODS}
        if timedelta(days=18) <= age <= timedelta(days=20) or (stained and age <= timedelta(days=2)):
            ratios |= {
                "toward_stain": 4.8 + float(random.normal(0, 0.2)),
                "od_red": 2.6,
                "od_blue": 1.9,
                "embedding": 1.4,
            }
        version = "1" if age > timedelta(days=12) else "2"
        name = f"drift-{moment:%Y%m%dT%H%M%S.%fZ}-v{version}.json"
        (folder / name).write_text(json.dumps(report(moment, version, ratios)))
        moment += every


def drawn_performance(*, sure: float = 1.0) -> dict[str, object]:
    """Four weekly windows; the last week has no labels yet. `sure` above 1: a version that is too sure of itself."""
    random = np.random.default_rng(3)
    start = NOW - timedelta(days=DAYS)
    cells = answers(random, patients=60, cells=40, distance=1.9, sure=sure, labelled=0.6)
    cells["time"] = pd.to_datetime([start + timedelta(days=DAYS) * n / len(cells) for n in range(len(cells))], utc=True)
    cells.loc[cells["time"] > NOW - timedelta(days=6), "truth"] = None
    rows = answers(random, patients=20, cells=30).rename(columns={"patient": "group"})
    known = reference_performance(rows.assign(label=rows["truth"]))
    parts = {"latest": cells.tail(500).assign(truth=None), "labelled": cells.dropna(subset=["truth"]).tail(500)}
    spans = {name: {"since": part["time"].min(), "until": part["time"].max()} for name, part in parts.items()}
    now = {
        name: {end: at.isoformat() for end, at in spans[name].items()} | performance(part, LIMITS, known=known)
        for name, part in parts.items()
    }
    return {
        "reference": known,
        "now": now,
        "windows": windows(cells, LIMITS, known, days=7),
        "truncated": False,
        "repeated": 0,
        "seen": {"cells": 0, "patients": 0},
    }


def drawn_examples(*, stained: bool) -> Examples:
    """Drawn cells; in the window a redder stain, if asked. Without it no picture is kept."""
    if not stained:
        return Examples(document={"policy": "never", "statistic": None, "now": None, "before": None})
    random, pictures = np.random.default_rng(8), {}

    def cell(number: int, span: str, unlike: float) -> dict[str, object]:
        drawn = draw_cell(number, radius=float(random.uniform(70, 110))).astype(np.float64)
        if span == "now":
            drawn *= (1.0, 0.72, 0.78)
        out = io.BytesIO()
        Image.fromarray(drawn.astype(np.uint8)).save(out, "PNG")
        identity, blast = f"{number:032x}", float(random.uniform(0.02, 0.98))
        pictures[identity] = out.getvalue()
        return {
            "id": identity, "time": (NOW - timedelta(days=4 * (span == "before"), minutes=number)).isoformat(),
            "label": "all" if blast >= 0.5 else "hem", "probability": blast, "unlike": unlike,
            "decision": "refer" if 0.3 < blast < 0.7 else "all" if blast >= 0.5 else "hem",
            "value": float(random.uniform(0.22, 0.26) if span == "before" else random.uniform(0.34, 0.4)),
        }  # fmt: skip

    spans = {
        span: {
            end: [
                cell(int(100 * far) + 10 * (span == "now") + number, span, far - 0.03 * number) for number in range(4)
            ]
            for end, far in (("farthest", 1), ("nearest", 0.4 if span == "now" else 0.1))
        }
        for base, span in ((0, "now"), (2, "before"))
    }
    statistic = {"name": "od_red", "known": [0.207, 0.281]}
    return Examples(document={"policy": "sampled", "statistic": statistic, **spans}, pictures=pictures)


def drawn_patients(*, others: bool, cut: bool = False) -> dict[str, object]:
    """Patients of four weeks, two a day; the last eighteen of another mix, if asked.

    cut: whether others came before them.
    """
    random = np.random.default_rng(6)
    columns = [*MEASURED, PROBABILITY]
    known, came = (pd.DataFrame(random.normal(0.5, 0.1, (n, len(columns))), columns=columns) for n in (36, 2 * DAYS))
    if others:
        came.loc[len(came) - 18 :, "probability"] += 0.35
    days = [timedelta(days=DAYS * n / len(came)) for n in range(len(came))]
    first = pd.Series(pd.to_datetime([NOW - timedelta(days=DAYS) + day for day in days], utc=True))
    entered = Came(rows=came, first=first, uniforms=random.random(len(came)), few=1, waiting=1, cut=cut)
    return told(known, entered, None, version="2", settle=timedelta(hours=1))


def drawn_status(
    settings: Settings,
    *,
    stained: bool = True,
    others: bool = True,
    cut: bool = False,
    sure: float = 1.0,
    reachable: bool = True,
) -> Status:
    """A monitor's status after a look."""
    write_reports(settings.drift, stained=stained)
    status = Status(settings, Told(reachable=reachable))
    info = SimpleNamespace(synthetic=True)
    fetched = SimpleNamespace(
        entry=SimpleNamespace(version="2"), package=SimpleNamespace(digest="5f3c" * 16, info=info)
    )  # fmt: skip
    usage = Usage(
        predictions=2400,
        images=96,
        image_bytes=96 * 49_000,
        bytes=6_530_000,
        oldest=NOW - timedelta(days=DAYS),
        newest=NOW,
    )
    last = {"finding": "drift", "version": "2", "started_at": (NOW - timedelta(days=1)).isoformat(), "problem": "",
            "exit_code": 0, "running": False, "log": "retraining/20261123T120000Z.log"}  # fmt: skip
    retraining = {"findings": ["drift"], "last": last} if stained else None
    status.watch(fetched)
    status.judge(json.loads(max(settings.drift.glob("drift-*.json")).read_text()))
    status.see(patients=drawn_patients(others=others, cut=cut), performance=drawn_performance(sure=sure))
    status.tell("", usage, retraining, drawn_examples(stained=stained))
    return status


def main() -> None:
    with TemporaryDirectory() as home:
        status = drawn_status(load({"BLASTWATCH_HOME": home, "BLASTWATCH_DRIFT_INTERVAL": "3600"}))
        server = PageServer(build_app(MonitorMetrics(CollectorRegistry()).registry, status), int(sys.argv[1]))
        try:
            time.sleep(3600)
        except KeyboardInterrupt:
            server.close()


if __name__ == "__main__":
    main()
