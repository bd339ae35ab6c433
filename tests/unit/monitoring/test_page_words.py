"""The drift page in a browser, where its words are easily wrong: figures next to a limit, clocks that differ, answers
that are none, verdicts on nobody."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from blastwatch.settings import load
from monitoring.calibration import basis
from monitoring.cause_words import in_words
from monitoring.metrics import MonitorMetrics
from monitoring.page import PageServer, build_app
from monitoring.patient_report import NOBODY
from monitoring.performance import FEWEST_CELLS, FEWEST_PATIENTS, performance
from monitoring.status import Status
from monitoring.timeline import Point, counted, thinned
from monitoring.windows import CAUTION
from tests.answered import answers
from tests.drift_status import LIMITS, NOW, Told, drawn_patients, drawn_performance, report
from tests.stalling import stalling

# While `hangs`, the longest wait for an answer is shortened; each is written down.
IMPATIENT = """
    const later = setTimeout;
    window.limits = [];
    window.setTimeout = (call, ms) => { limits.push(ms); return later(call, window.hangs ? 50 : ms); };
"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The document of a version with a calm report and known patients, and nothing else."""
    settings = load({"BLASTWATCH_HOME": str(tmp_path_factory.mktemp("home"))})
    status = Status(settings, Told())
    info = SimpleNamespace(synthetic=True)
    status.watch(SimpleNamespace(entry=SimpleNamespace(version="2"), package=SimpleNamespace(digest="5f", info=info)))
    status.judge(report(NOW, "2", {"od_red": 0.99996, "od_blue": 0.5}))
    status.see(patients=drawn_patients(others=False))
    status.fail("")
    return status.document() | {"looked_at": NOW.isoformat(), "now": (NOW + timedelta(seconds=9)).isoformat()}


@pytest.fixture(scope="module")
def url(tmp_path_factory, free_port):
    status = Status(load({"BLASTWATCH_HOME": str(tmp_path_factory.mktemp("home"))}), Told())
    server = PageServer(build_app(MonitorMetrics(CollectorRegistry()).registry, status), port := free_port())
    yield f"http://127.0.0.1:{port}"
    server.close()


@pytest.fixture
def page(browser, url):
    """It asks when it is told to, and is answered with `page.answer`."""
    page = browser.new_page(timezone_id="UTC", locale="en-GB")
    page.add_init_script("window.setInterval = () => 0;")
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.answer = {}
    page.route("**/drift.json", lambda route: route.fulfill(**page.answer))
    page.goto(f"{url}/drift")
    page.get_by_text("The monitor cannot be asked").wait_for()
    yield page
    page.close()


def shown(page, document=None, **answer):
    """Let the page ask and be answered so."""
    page.answer = answer or {"json": document}
    page.evaluate("ask().catch((error) => { window.threw = error.message; })")


def test_a_look_is_overdue_by_the_monitors_clock_and_not_by_the_browsers(page, told):
    for hours in (-3, 3):
        page.clock.set_fixed_time(datetime.now(UTC) + timedelta(hours=hours))
        shown(page, told)
        assert page.inner_text("#problem") == ""
        shown(page, told | {"now": (NOW + timedelta(minutes=90)).isoformat()})
        late = "The monitor has not managed a look for 90 minutes; what stands here is old."
        assert page.inner_text("#problem") == late
        never = told | {"looked_at": None, "begun_at": NOW.isoformat(), "problem": "This look failed."}
        shown(page, never)
        assert page.inner_text("#problem") == "This look failed."
        shown(page, never | {"now": (NOW + timedelta(minutes=30)).isoformat()})
        first = "The monitor has not managed its first look in 30 minutes. This look failed."
        assert page.inner_text("#problem") == first
    assert page.faults == []


def test_a_verdict_without_a_date_is_shown_and_what_cannot_be_drawn_is_not_called_unasked(page, told):
    shown(page, told | {"state": "drift", "since": None})
    expected = "Drift (since when is not known yet): version 2 sees other cells than it knows."
    assert page.inner_text("#sentence") == expected and "reports alike" not in page.inner_text("#facts")
    shown(page, told | {"columns": None})
    assert page.inner_text("#problem").startswith("This page cannot show all that the monitor said (")
    assert page.evaluate("window.threw") is not None
    shown(page, told)
    assert page.inner_text("#problem") == "" and page.faults == []


def test_why_the_monitor_gives_nothing_is_said(page):
    for answer, words in (
        ({"status": 403, "body": "Expected a name of the loopback. A proxy has to ask it so.\n"},
         "it says: Expected a name of the loopback. A proxy has to ask it so."),
        ({"status": 502, "body": "Bad Gateway"}, "it answered 502."),
        ({"status": 200, "body": "<html>Sign in</html>"},
         "its answer is not JSON, so something else answers in its place."),
    ):  # fmt: skip
        shown(page, **answer)
        assert page.inner_text("#problem") == f"The monitor cannot be asked: {words} What stands here is old."


def test_no_figure_is_rounded_onto_the_limit_that_it_does_not_reach(page, told):
    most = told["patients"]["columns"][0] | {"evidence": 0.999, "drifted": False}
    shown(page, told | {"patients": told["patients"] | {"columns": [most]}})
    first, second = (row.locator("th, td").all_inner_texts() for row in page.locator("#columns tr").all())
    assert first == ["darkness in red light\nod_red", "as known", "0.99996", "0.19999", "0.2"]
    assert second == ["darkness in blue light\nod_blue", "as known", "0.50", "0.1", "0.2"]
    assert "has most evidence, 0.999 of what is needed" in page.inner_text("#patient-words")
    point = {"at": NOW.isoformat(), "version": "2", "cells": 500, "score": 0.99996, "column": "a", "drifted": False}
    shown(page, told | {"timeline": [point]})
    assert page.locator("#points td").all_text_contents() == ["2", "500", "0.99996", "a", "no drift"]
    assert "0 with drift, the largest 0.99996." in page.locator("#timeline svg").get_attribute("aria-label")
    assert page.evaluate("[0.9999, 1, 0.996, 0.004, 0, 0.5].map(percent)") == [
        "over 99 %", "100 %", "over 99 %", "under 1 %", "0 %", "50 %"]  # fmt: skip
    surely = {"id": "0", "time": NOW.isoformat(), "probability": 0.9996, "decision": "all", "unlike": 1, "value": None}
    words = page.evaluate("cell => exampleCell(cell, null).querySelector('span').textContent", surely)
    assert words == "blast 0.9996, all"
    accuracy = page.evaluate("interval({value: 0.9996, low: 0.99, high: 1})")
    assert accuracy == "0.9996 (0.990 to 1.000)" and page.faults == []


def test_a_monitor_that_hangs_is_said_with_when_it_was_last_heard_and_no_green_is_left(page, told):
    page.evaluate(f"() => {{ {IMPATIENT} }}")
    shown(page, told)
    assert "is-hem" in page.locator("#sentence").get_attribute("class")
    asked = []
    page.route("**/drift.json", lambda route: asked.append(route))
    page.evaluate("window.hangs = true, void ask(), void ask()")
    page.get_by_text("it has not answered within 20 seconds").wait_for()
    assert len(asked) == 1 and page.evaluate("limits") == [20_000, 20_000]  # one question at a time
    said = "The monitor cannot be asked: it has not answered within 20 seconds."
    assert page.inner_text("#problem") == f"{said} What stands here is old, of 24 Nov 2026, 12:00."
    assert page.locator("#sentence").get_attribute("class") == "label"
    page.unroute("**/drift.json")
    page.route("**/drift.json", lambda route: route.fulfill(json=told))
    page.evaluate("window.hangs = false")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # who comes back to the page is told at once
    page.locator("#problem:empty").wait_for(state="attached")
    assert page.locator("#sentence").get_attribute("class") == "label is-hem" and page.faults == []


def test_an_answer_that_stops_on_its_way_is_told_as_silence(browser, url):
    with stalling(url, "/drift.json") as stalled:
        page = browser.new_page()
        page.add_init_script(f"window.hangs = true; {IMPATIENT}")
        page.goto(f"{stalled}/drift")
        page.locator("#problem:not(:empty)").wait_for()
        said = "The monitor cannot be asked: it has not answered within 20 seconds. What stands here is old."
        assert page.inner_text("#problem") == said
        page.close()


def test_a_browser_of_some_years_ago_shows_the_page(browser, url, told):
    page, faults = browser.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script("delete AbortSignal.any; delete AbortSignal.timeout; delete Element.prototype.ariaLabel;")
    worst = told | {"timeline_of": told["timeline_of"] | {"run": 84}}
    page.route("**/drift.json", lambda route: route.fulfill(json=worst))
    page.goto(f"{url}/drift")
    page.get_by_text("No drift").wait_for()
    label = page.locator("#points-region").get_attribute("aria-label")
    assert label == "Reports over time, the worst of each 84 reports"
    assert page.inner_text("#problem") == "" and faults == []
    page.close()


@pytest.mark.parametrize("asked_before", [False, True])
def test_after_a_sleep_the_page_says_that_it_asks_before_there_is_an_answer(page, told, asked_before):
    shown(page, told)
    page.route("**/drift.json", lambda _route: None)
    if asked_before:
        page.evaluate("void ask()")
    page.clock.set_fixed_time(datetime.now(UTC) + timedelta(hours=8))
    page.evaluate("void ask()")
    asking = "The monitor is being asked again. What stands here is old, of 24 Nov 2026, 12:00."
    assert page.inner_text("#problem") == asking
    assert page.locator("#sentence").get_attribute("class") == "label"


def test_only_what_changes_is_announced_and_drawn_again(page, told):
    page.evaluate("""() => {
        window.changed = [];
        for (const name of ["sentence", "problem", "columns", "patient-columns", "points"]) {
            new MutationObserver(() => changed.push(name)).observe(byId(name), {childList: true, subtree: true});
        }
    }""")
    document = told | {"problem": "The database is away."}
    shown(page, document)
    drawn = ["columns", "patient-columns", "problem", "sentence"]
    assert page.evaluate("[...new Set(changed.splice(0))].sort()") == drawn
    page.evaluate("getSelection().selectAllChildren(document.querySelector('#columns tr'))")
    for minute in range(3):  # each look has its time, and finds more predictions
        moment = (NOW + timedelta(minutes=minute)).isoformat()
        stored = {"predictions": 500 + minute, "images": 0, "bytes": 2**20 * (1 + minute)}
        shown(page, document | {"now": moment, "looked_at": moment, "stored": stored})
        assert f"{500 + minute} predictions, {1 + minute}.0 MiB" in page.inner_text("#facts")
    assert page.evaluate("changed") == [] and page.evaluate("String(getSelection())").startswith("darkness in red")
    shown(page, document | {"state": "drift", "causes": [{"cause": "stain", "evidence": "od_red"}]})
    assert set(page.evaluate("changed")) == {"columns", "sentence"}
    assert page.inner_text("#sentence").startswith("Drift") and "Probable cause: stain" in page.inner_text("#causes")


def test_reports_are_counted_as_they_were_made_and_not_as_they_are_drawn(page, told):
    began = NOW - timedelta(days=7)
    points = [
        Point(at=(began + timedelta(minutes=n)).isoformat(), version="2", cells=500, score=1.2 if n % 100 == 0 else 0.5,
              column="a", drifted=n % 100 == 0)
        for n in range(10_000)
    ]  # fmt: skip
    moves = [
        {"at": (began + timedelta(days=day)).isoformat(), "version": after, "before": "1", "who": "t", "action": "a"}
        for day, after in ((1, "2"), (3, ""))
    ]
    shown(page, told | {"timeline": thinned(points), "timeline_of": counted(points), "promotions": moves})
    label = page.locator("#timeline svg").get_attribute("aria-label")
    assert label.startswith(
        "Scores over thresholds of 10000 reports from 17 Nov to 24 Nov: 100 with drift, the largest"
    )
    assert label.endswith("Drawn is the worst of each 84 reports. 2 moves of the champion.")
    assert page.inner_text("#history") == "10000 reports, 100 with drift. 2 moves of the champion in the history."
    words = page.inner_text("section[aria-labelledby=over]")
    assert "of each report, the worst of each 84 reports, by the time" in words
    page.get_by_text("The same as tables").press("Enter")
    page.get_by_role("region", name="Reports over time, the worst of each 84 reports").wait_for()
    assert page.locator("#timeline .moved").all_text_contents() == ["v2", "none"]  # a champion that was withdrawn
    assert page.faults == []


def test_figures_are_told_to_three_digits_and_not_to_thousands(page, told):
    first, second, *_ = told["patients"]["columns"]
    columns = [first | {"before": 20512.3, "now": 23120.9}, second | {"before": 0.99996, "now": None}]
    shown(page, told | {"patients": told["patients"] | {"columns": columns}})
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#patient-columns tr").all()]
    assert [(row[2], row[4]) for row in rows] == [("20512", "23121"), ("0.99996", "unknown")]
    cell = {"id": "0", "time": NOW.isoformat(), "probability": 0.5, "decision": "all", "unlike": 1, "value": 20900.4}
    spans = {"now": {"farthest": [cell], "nearest": []}, "before": None}
    examples = {"policy": "always", "statistic": {"name": "cell_area", "known": [15204.4, 31020.0]}, **spans}
    shown(page, told | {"examples": examples})
    assert "known cells lie between 15204 and 31020." in page.inner_text("#pictured")
    assert "cell_area 20900" in page.inner_text("#examples") and page.faults == []


def test_on_paper_no_column_is_cut_off_and_no_statistic_folded_away(page, told):
    columns = told["columns"] * 12
    shown(page, told | {"columns": columns})
    page.emulate_media(media="print")
    for width in (1047, 718):  # px of A4 within its margins
        page.set_viewport_size({"width": width, "height": 740})
        cut = """regions => regions.filter((one) => one.clientWidth && (getComputedStyle(one).overflowX !== "visible"
            || one.scrollWidth > one.clientWidth)).map((one) => one.ariaLabel)"""
        assert page.locator(".scroll").evaluate_all(cut) == []
    folded = "row => row.checkVisibility({contentVisibilityAuto: true})"
    style = "fold => getComputedStyle(fold, '::details-content').contentVisibility"
    assert page.locator("#rest tr").last.evaluate(folded) and page.locator("#more").evaluate(style) == "visible"


def test_without_scripts_the_page_says_where_its_figures_are(browser, url):
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(f"{url}/drift")
    assert "This page needs JavaScript. Without it: drift.json has all that it shows." in page.inner_text("body")


def test_where_no_patient_counts_yet_no_verdict_is_given_on_them(page, told):
    shown(page, told | {"patients": told["patients"] | {"entered": 0}})
    assert set(page.locator("#patient-columns td:nth-child(2)").all_inner_texts()) == {"no verdict"}
    shown(page, told)
    assert set(page.locator("#patient-columns td:nth-child(2)").all_inner_texts()) == {"as known"}


def test_an_alarm_of_which_nobody_is_left_is_said_and_no_drift(page, told):
    first, *others = told["patients"]["columns"]
    columns = [first | {"since": NOW.isoformat(), "drifted": False}, *others]
    shown(page, told | {"patients": told["patients"] | {"columns": columns}})
    assert page.locator("#patient-columns td:nth-child(2)").first.inner_text() == NOBODY
    assert f"An alarm {NOBODY}." in page.inner_text("#patient-words")


def test_whose_the_cells_of_the_window_are(page, told):
    window = told["window"] | {"cells": 500, "patients": 1, "repeated": 29, "caution": None}
    shown(page, told | {"window": window})
    assert "500 cells of 1 patient, 29 repeated left out, " in page.inner_text("#facts")
    assert "caution" not in page.inner_text("#facts")
    shown(page, told | {"window": window | {"patients": None, "repeated": 0, "caution": CAUTION}})
    assert "500 cells, " in page.inner_text("#facts") and CAUTION in page.inner_text("#facts")


def test_predictions_of_images_that_were_learned_from_are_said(page, told):
    drawn = drawn_performance()
    shown(page, told | {"performance": drawn | {"seen": {"cells": 21, "patients": 2}}})
    said = "21 predictions were left out: the version learned from these images, or from others of their patients."
    assert page.inner_text("#seen") == said
    shown(page, told | {"performance": drawn})
    assert page.inner_text("#seen") == ""


def test_the_headline_goes_by_the_cause_and_the_cause_leads_with_what_changed(page, told):
    patients = drawn_patients(others=True)
    cause = {"cause": "white balance", "evidence": "cosine 0.93"} | in_words(
        "white balance", {"od_red": 0, "od_blue": 1}
    )
    mix = {"cause": "disease mix", "evidence": "cosine 0.8"} | in_words("disease mix", {})
    doubts = {"doubts": [{"reason": "patients"}], "performance": drawn_performance()}
    document = told | doubts | {"state": "patients", "patients": patients | {"causes": [cause, mix]}}
    shown(page, document)
    assert page.inner_text("#sentence").startswith(
        "Since about 15 Nov 2026, 12:00 images come in another white balance"
    )
    assert page.inner_text("#early").startswith("Images come in another white balance, and the estimate")
    first, second = page.locator("#patient-causes > li").all()
    lead = first.inner_text().splitlines()[0]
    assert lead.startswith("Probable cause: white balance. The white balance is another one: images are redder. Check")
    assert "cosine" not in first.inner_text() and "camera's white balance" in lead  # folded away
    first.get_by_text("How that is known").press("Enter")
    assert "cosine 0.93" in first.inner_text() and "mix of disease" in second.inner_text()
    shown(page, document | {"patients": patients | {"causes": [mix, cause]}})
    assert page.inner_text("#sentence").startswith("Other patients since 15 Nov 2026, 12:00: ")
    assert page.inner_text("#early").startswith("The patients are others, and") and page.faults == []


def test_beside_no_drift_stands_what_the_thresholds_are_from(page, told):
    shown(page, told)
    assert "from 36 known patients, 24 of them with answers" in page.inner_text("#facts")
    assert "caution" not in page.inner_text("#facts")
    few = basis({"groups": 20, "answered_groups": 8, "enough_groups": False})
    shown(page, told | {"basis": few})
    assert "from 8 patients and 10 are needed" in page.inner_text("#facts")


def test_with_few_cells_what_is_missing_is_said_once_and_nothing_empty_is_drawn(page, told):
    note = "5 of the 30 cells that a verdict takes are here."
    columns = [column | {"now": None, "since": None} for column in told["patients"]["columns"]]
    few = {"window": None, "basis": None, "since": None, "columns": [], "note": note}
    patients = told["patients"] | {"entered": 0, "columns": columns}
    shown(page, told | few | {"state": "waiting", "patients": patients})
    assert page.inner_text("#sentence") == f"No verdict on version 2 yet. {note}"
    assert page.inner_text("body").count("5 of the 30") == 1
    hidden = [page.locator(f"#{name}").is_hidden() for name in ("columns", "patient-columns", "patient-more")]
    assert hidden == [True] * 3 and page.inner_text("#moved") == "No report of this version yet."
    shown(page, told)
    assert page.locator("#columns").is_visible() and page.locator("#patient-columns").is_visible()
    assert page.faults == []


def test_figures_of_too_few_cells_are_grey_and_no_unit_stands_without_a_cell(page, told):
    drawn = drawn_performance()
    cells = answers(np.random.default_rng(1), patients=1, cells=2, labelled=0.0)
    span = {"since": NOW.isoformat(), "until": NOW.isoformat()}
    latest, nothing = (span | performance(part, LIMITS) for part in (cells, cells.iloc[:0]))
    now = {"latest": latest, "labelled": nothing}
    shown(page, told | {"performance": drawn | {"now": now, "windows": [latest]}})
    grey = page.locator("#figures .few").all_inner_texts()
    assert len(grey) == len(latest["estimated"]) and all(text.startswith("too few: ") for text in grey)
    said = f"a verdict takes {FEWEST_CELLS}, of {FEWEST_PATIENTS} patients."
    assert page.inner_text("#few") == f"Grey figures are of too few cells to go by: {said}"
    assert page.locator("#figures tr").last.locator("td").all_inner_texts() == ["patient", "", "patient"]
    assert "Intervals by cell" not in page.inner_text("#assumes")
    shown(page, told | {"performance": drawn})
    assert page.locator("#figures .few").count() == 0 and page.inner_text("#few") == "" and page.faults == []
