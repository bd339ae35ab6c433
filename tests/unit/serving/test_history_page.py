"""The page that says what served when: on any screen, for any question, and to the digit."""

import pytest
from playwright.sync_api import expect

from blastwatch.rounding import against, fixed, significant
from serving.keys import KeyFolder
from tests.in_thread import front

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    home = tmp_path_factory.mktemp("page")
    key = KeyFolder(home / "api-keys").add("lab")
    with front(served, home) as service:
        service.key = key
        yield service


@pytest.fixture
def opened(door, browser):
    """Opens the page where the service says of its history what is given."""

    def call(told, width=1100):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.route("**/v1/history*", lambda route: route.fulfill(json=told))
        page.goto(f"{door.url}/history")
        page.get_by_text("Version 9 served at").wait_for()
        return page

    return call


GATES = [
    {"name": name, "passed": verdict != "overridden", "verdict": verdict, "value": value, "limit": limit, "note": note}
    | more
    for name, verdict, value, limit, note, more in (
        ("parity", "passed", 0.00123456, 0.01, "openvino-int8", {"bound": "at most", "unit": ""}),
        ("latency", "off", "not measured", "off by policy", "", {"bound": "at most", "unit": "ms"}),
        ("reference-cells", "overridden", 200.0, 300.0, "under uneven", {"bound": "at least", "unit": "cells"}),
        ("calibration", "passed", 0.1, 0.2, "", {}),  # as reports were before they had a bound and a unit
    )
]
WHY = "better on the same patients, and the stain of ward 3 is among those that it was trained on by now"


BOXES = """cell => {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), words = document.createRange(), boxes = [];
    while (texts.nextNode()) {
        words.selectNodeContents(texts.currentNode);
        boxes.push(...[...words.getClientRects()].map((box) => [box.left, box.top]));
    }
    return boxes;
}"""


def history():
    """What /v1/history says of three champions."""
    times = [f"2026-11-{day}T14:05:07.123456+00:00" for day in (17, 24, 28)]
    entries = [
        {
            "number": 9 - at, "time": time, "who": "mia.wallenstein", "action": "promote", "version": str(9 - at),
            "alias": "champion", "before": str(8 - at), "after": str(9 - at), "why": WHY,
            "overridden": ["reference-cells"],
        }
        for at, time in enumerate(reversed(times))
    ]  # fmt: skip
    told = {
        "at": times[2], "version": "9", "since": times[2], "action": "promote", "by": "mia.wallenstein", "why": WHY,
        "promoted": {"time": times[2], "by": "mia.wallenstein", "why": WHY}, "overridden": ["reference-cells"],
        "digest": "d" * 64, "data_digest": "e" * 64, "split_digest": "f" * 64, "git_commit": "a" * 40, "gates": GATES,
        "unsure": [],
    }  # fmt: skip
    return {"told": told, "entries": entries, "total": 3, "check": {"intact": True, "entries": 3, "faults": []}}


def test_no_page_leads_to_a_history_that_the_service_has_not(door, browser):
    page = browser.new_page()
    page.add_init_script(f"sessionStorage.setItem('blastwatch-key', '{door.key}')")
    with page.expect_response("**/v1/model") as model:
        page.goto(door.url)
    link = page.get_by_role("link", name="What served when")
    expect(link).to_be_hidden()
    assert page.get_by_role("link", name="Description of the interface").is_visible()
    told = model.value.json() | {"history": True}
    page.route("**/v1/model", lambda route: route.fulfill(json=told))
    page.reload()
    expect(page.locator("#facts")).to_contain_text("version 7")
    expect(link).to_be_visible()
    page.goto(f"{door.url}/history")  # a bookmark leads there still
    page.get_by_text("There is no history here. This service has its version without a registry").wait_for()


@pytest.mark.parametrize("width", [400, 1100])
def test_the_history_can_be_read_on_a_telephone(door, opened, width, tmp_path):
    page = opened(history(), width)
    page.locator("#report summary").click()
    page.screenshot(path=tmp_path / f"history-{width}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    rows = page.get_by_role("row").filter(has_text="champion: 8")
    expect(rows).to_have_count(1)  # a row still, to a reader of the screen
    cells = rows.get_by_role("cell").all()
    for cell in (cells[1], cells[2], cells[5]):  # time, who, moved: each on one line
        assert len({top for _left, top in cell.evaluate(BOXES)}) == 1
    why = cells[6].bounding_box()
    assert why["x"] + why["width"] <= width and why["width"] > 200


def test_the_answer_is_announced_each_time(opened):
    page = opened(history())
    spoken = """() => {
        window.spoken = [];
        for (const region of document.querySelectorAll("[role=status]")) {
            new MutationObserver(() => spoken.push(region.textContent)).observe(region, {childList: true});
        }
    }"""
    page.evaluate(spoken)
    page.get_by_role("button", name="Tell").click()
    page.get_by_text("Version 9 served at").wait_for()
    said = [words for words in page.evaluate("spoken") if words]
    assert said[0] == "Asking…" and said[1].startswith("Version 9 served at ")
    assert said[2:] == ["All 3 entries are what was signed."]


def test_the_history_tells_of_each_gate_what_its_report_has(opened):
    page = opened(history())
    page.locator("#report summary").click()
    rows = [[cell.inner_text() for cell in row.get_by_role("cell").all()] for row in page.locator("#gates tr").all()]
    assert rows == [
        ["parity", "passed", "0.001235", "at most 0.01", "openvino-int8"],
        ["latency", "off", "not measured", "off by policy", ""],
        ["reference-cells", "overridden", "200 cells", "at least 300", "under uneven"],
        ["calibration", "passed", "0.1", "0.2", ""],
    ]


def test_a_figure_and_its_limit_are_never_rounded_together(opened):
    told = history()
    rows = ((0.899961, 0.9, "failed"), (0.99998, 0.5, "passed"), (0.9, 0.9, "passed"))
    told["told"]["gates"] = [
        {"name": "auroc", "passed": verdict == "passed", "verdict": verdict, "value": value, "limit": limit, "note": ""}
        | {"bound": "at least", "unit": ""}
        for value, limit, verdict in rows
    ]
    page = opened(told)
    page.locator("#report summary").click()
    shown = [row.get_by_role("cell").all_inner_texts()[2:4] for row in page.locator("#gates tr").all()]
    assert shown == [["0.89996", "at least 0.9"], ["0.99998", "at least 0.5"], ["0.9", "at least 0.9"]]


def test_the_pages_round_as_the_reports_do(opened):
    page = opened(history())
    values = [0.0, 1.0, -1.0, 0.5, 0.9996, 0.99999999, 1e-9, -1e-9, -0.0004, 1 - 1e-14, 2.99996, 0.00049, 123456.7]
    assert page.evaluate("values => values.map((value) => fixed(value))", values) == [fixed(one) for one in values]
    readable = [value for value in values if abs(value) > 1e-5 or not value]
    assert page.evaluate("values => values.map((value) => significant(value))", readable) == [
        significant(one) for one in readable
    ]
    pairs = [[0.899961, 0.9], [0.9, 0.9], [200.0, 300.0], [0.1 + 0.2, 0.3], [123456.4, 123456.0]]
    assert page.evaluate("pairs => pairs.map((pair) => against(...pair))", pairs) == [
        list(against(*pair)) for pair in pairs
    ]


def test_a_refusal_takes_the_earlier_answer_away(opened):
    page = opened(history())
    problem = {"type": "/problems/time-unreadable", "title": "The time cannot be read", "detail": "Expected a time."}
    content = "application/problem+json"
    page.unroute("**/v1/history*")
    page.route("**/v1/history*", lambda route: route.fulfill(status=400, json=problem, content_type=content))
    page.get_by_role("button", name="Now").click()
    page.get_by_text("The time cannot be read. Expected a time.").wait_for()
    for name in ("sentence", "unsure", "overridden", "facts", "gates", "entries", "check", "shown"):
        assert page.locator(f"#{name}").text_content() == "", name
    expect(page.locator("#report")).to_be_hidden()


def test_an_answer_that_comes_late_is_not_shown_for_the_next_question(opened):
    page, answers = opened(history()), []
    page.unroute("**/v1/history*")
    page.route("**/v1/history*", lambda route: answers.append(route))
    for count in (1, 2):
        with page.expect_request("**/v1/history*"):
            page.get_by_role("button", name="Now").click()
        expect(page.locator("#status")).to_have_text("Asking…")
        assert page.locator("#sentence").text_content() == "" and len(answers) == count
    later, earlier = (history() for _ in range(2))
    later["told"]["version"], earlier["told"]["version"] = "10", "8"
    answers[1].fulfill(json=later)
    page.get_by_text("Version 10 served at").wait_for()
    with page.expect_response("**/v1/history*"):
        answers[0].fulfill(json=earlier)
    page.evaluate("new Promise((done) => setTimeout(done, 50))")
    assert "Version 10" in page.inner_text("#sentence")


def test_it_says_how_many_entries_it_does_not_show(opened):
    page = opened(history())
    assert page.locator("#shown").text_content() == ""
    page = opened(history() | {"total": 1200})
    expect(page.locator("#shown")).to_have_text("Shown are the latest 3 of 1200 until then.")


def test_it_names_the_entries_of_which_it_is_not_known_whether_they_were_there(opened):
    assert opened(history()).locator("#unsure").text_content() == ""
    doubted = history()
    doubted["told"]["unsure"] = [4, 5]
    expect(opened(doubted).locator("#unsure")).to_have_text(
        "Unsure whether these entries were there then, which a clock that ran ahead wrote: 4, 5."
    )


@pytest.mark.parametrize("width", [400, 1100])
def test_words_of_others_turn_nothing_behind_them_and_a_long_name_wraps(opened, width):
    """Where no new reason may have such signs, an old entry can."""
    told = history()
    told["entries"][0] |= {"who": "service-account@" + 5 * "of-the-laboratory.", "why": "tested \u202eno"}
    page = opened(told, width)
    row = page.locator("#entries tr").first
    assert row.locator("bdi").all_text_contents() == [told["entries"][0]["who"], "tested \u202eno"]
    assert row.locator("bdi").last.evaluate("one => getComputedStyle(one).unicodeBidi") == "isolate"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    lefts = [left for left, _top in row.get_by_role("cell").last.evaluate(BOXES)]
    assert min(lefts) == lefts[0]  # what follows stands beside it or below, not under the head of the line
    table = page.get_by_role("region", name="Table of the entries")
    expect(table).to_have_attribute("tabindex", "0")
    # Beside others; in the narrow window each has a line of its own.
    assert row.get_by_role("cell").nth(2).bounding_box()["width"] < (340 if width > 600 else width)
