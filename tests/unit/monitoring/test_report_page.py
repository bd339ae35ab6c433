"""Evidently's page of a report as a reader sees it: whose it is at the top, then what moved most."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.rounding import against, fixed
from blastwatch.settings import load
from monitoring.cause_words import titled
from monitoring.drift import compare
from monitoring.metrics import MonitorMetrics
from monitoring.page import PageServer, build_app
from monitoring.status import Status
from monitoring.windows import CAUTION
from tests.cohorts import as_predictions, draw_cohort, unsealed_package, window_of
from tests.drift_status import Told


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    cohort = draw_cohort(np.random.default_rng(2), patients=16, cells=40)
    reference = cohort[cohort["group"] < "P012"].reset_index(drop=True)
    folder = tmp_path_factory.mktemp("page")
    package = unsealed_package(folder / "package", reference)
    window = window_of(cohort, ["P012", "P013", "P014", "P015"], 120, np.random.default_rng(0))
    window["od_blue"] += 8 * reference["od_blue"].std()
    window["focus"] += 6 * reference["focus"].std()
    return compare(package, as_predictions(window, digest=package.digest), version="3", folder=folder)


def test_the_scores_over_their_thresholds_are_among_the_results(report):
    columns = {column["name"]: column["score"] / column["threshold"] for column in report.document["columns"]}
    found = report.snapshot.metric_results
    assert {name: found[f"BlastwatchScoreOverThreshold:{name}"].value for name in columns} == columns
    assert found["BlastwatchScoreOverThreshold:threshold"].value == 1
    assert len(report.snapshot.dict()["metrics"]) == len(columns)  # Evidently's own, as before


@pytest.fixture
def served(report, tmp_path, free_port):
    """The monitor's address, with the report in its folder."""
    settings = load({"BLASTWATCH_HOME": str(tmp_path)})
    settings.drift.mkdir()
    shutil.copy(report.document["report"], settings.drift)
    app = build_app(MonitorMetrics(CollectorRegistry()).registry, Status(settings, Told()))
    server = PageServer(app, port := free_port())
    yield f"http://127.0.0.1:{port}"
    server.close()


@pytest.mark.browser
def test_the_page_says_whose_it_is_and_shows_first_what_moved_most(report, served, browser):
    page, faults = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"{served}/reports/{Path(report.document['report']).name}")
    page.get_by_text("Every column, the farthest beyond its threshold first").wait_for()
    head, rest = page.inner_text("body").split("Every column, the farthest beyond its threshold first")
    assert "Drift\nResearch software, not a medical device." in head.replace("\n\n", "\n")
    lines = [line.split("\t") for line in head.splitlines()]
    assert ["version", "3, trained on synthetic cells"] in lines and ["package", "d" * 64] in lines
    assert ["window", "120 cells, 2026-11-01T00:00:00+00:00 to 2026-11-01T00:01:59+00:00"] in lines
    assert ["caution", CAUTION] in lines
    assert ["thresholds", "from 12 known patients"] in lines
    [cause] = [line[1] for line in lines if line[0] == "probable cause"]
    assert cause.startswith("unknown. No known change of the images explains it. Check first: the example cells, and")
    columns = sorted(report.document["columns"], key=lambda column: -column["score"] / column["threshold"])
    moved = [column["name"] for column in columns if column["drifted"]]
    assert set(moved) == {"od_blue", "focus"}
    assert [f"beyond their thresholds, 2 of {len(columns)}", ", ".join(map(titled, moved))] in lines
    table, drawn = rest.split("Drift in column", 1)
    rows = [line.split("\t") for line in table.strip().splitlines()]
    assert rows == [["column", "verdict", "score over threshold", "score", "threshold"]] + [
        [titled(column["name"]), "drift" if column["drifted"] else "as known",
         fixed(column["score"] / column["threshold"], 2), *against(column["score"], column["threshold"])]
        for column in columns
    ]  # fmt: skip
    named = ["embeddings: embedding" if column["name"] == "embedding" else f"'{column['name']}'" for column in columns]
    places = [drawn.index(name) for name in named]
    assert places == sorted(places) and not faults
    page.locator("svg.main-svg .lines path").first.wait_for(state="attached")  # its scripts may draw, and reach nothing
    assert page.evaluate("fetch('/drift.json').then(() => 'reached', (error) => error.name)") == "TypeError"
