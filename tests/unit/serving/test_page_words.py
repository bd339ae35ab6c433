"""What the page says: which version serves now, why a cell is referred, what a figure is, and what went wrong."""

import math

import pytest
from playwright.sync_api import expect

from blastwatch.rounding import significant
from monitoring.statistics import TABLE
from serving.keys import PREDICT, READ, KeyFolder
from tests.in_thread import front
from tests.service_packages import write_cell

GONE = "The service does not answer: it is stopped or out of reach. Try again when it runs."

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    """A service, a key that may predict and read, one that may not read, and a cell."""
    home = tmp_path_factory.mktemp("page")
    keys = KeyFolder(home / "api-keys")
    with front(served, home) as service:
        service.key, service.blind = keys.add("lab", may=(PREDICT, READ)), keys.add("blind", may=(PREDICT,))
        service.cell = write_cell(home / "cell.bmp")
        service.model = service.ask("/v1/model", service.key).json()
        service.answer = service.predict(service.key, service.cell.read_bytes()).json()
        yield service


def always(json):
    """A route that answers this."""
    return lambda route: route.fulfill(json=json)


@pytest.fixture
def opened(door, browser):
    """Opens the page with a key, at an address and a width."""

    def call(key=door.key, path="/", width=1100, **answers):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.add_init_script(f"sessionStorage.setItem('blastwatch-key', '{key}')")
        for route, json in answers.items():
            page.route(f"**/v1/{route}*", always(json))
        page.goto(door.url + path)
        return page

    return call


def read(page, door):
    count = page.locator(".answer").count()
    page.set_input_files("#choose", door.cell)
    expect(page.locator(".answer")).to_have_count(count + 1)
    page.locator("#status:text-matches('1 of 1 read|refused')").wait_for()
    return page.locator(".answer").first


def said(page, name):
    """What stands beside a name in the section of the model."""
    return page.locator(f"#facts dt:text-is('{name}') + dd")


def test_an_answer_of_another_version_makes_the_page_ask_what_serves(door, opened):
    """Else a tab that is open for days tells of a version that was rolled back long ago."""
    page = opened()
    expect(said(page, "name and version")).to_contain_text("version 7 (champion)")
    newer, model = door.answer | {"model": door.answer["model"] | {"version": "8"}}, door.model | {"version": "8"}
    asked = []
    page.route("**/v1/predict", always(newer))
    page.route("**/v1/model", lambda route: (asked.append(1), route.fulfill(json=model)))
    for _ in range(2):
        read(page, door)
        expect(said(page, "name and version")).to_contain_text("version 8 (champion)")
    assert len(asked) == 1
    canary = newer | {"model": newer["model"] | {"version": "9", "alias": "challenger"}}
    page.route("**/v1/predict", always(canary))
    read(page, door)
    expect(said(page, "name and version")).to_contain_text("version 8 (champion)")
    assert len(asked) == 1


def test_a_service_that_is_gone_is_called_so_and_asked_again(door, opened):
    page = opened()
    page.route("**/v1/*", lambda route: route.abort())
    page.evaluate("showModel()")
    expect(page.locator("#model-fault")).to_have_text(f"What serves is not shown. {GONE}")
    assert page.locator("#facts dd").count() == 0  # nothing stale
    page.set_input_files("#choose", door.cell)
    expect(page.locator("#status")).to_have_text(f"1 image waits. {GONE}")
    page.unroute("**/v1/*")
    page.get_by_role("button", name="Read the image that waits").click()
    page.get_by_text("1 of 1 read.").wait_for()
    expect(said(page, "name and version")).to_contain_text("version 7 (champion)")
    expect(page.locator("#model-fault")).to_be_hidden()


def test_a_key_that_may_not_read_leaves_no_section_without_a_word(door, opened):
    page = opened(door.blind)
    words = "What serves is not shown. The API key may not do this. Expected a key with the permission `read`"
    expect(page.locator("#model-fault")).to_contain_text(words)
    with page.expect_response("**/v1/model"):
        read(page, door)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    read(page, door)
    assert not [url for url in asked if url.endswith("/v1/model")]  # one refusal more is enough
    expect(page.locator("#model-fault")).to_contain_text(words)


def test_until_a_key_is_given_the_section_says_that_it_needs_one(door, opened):
    page = opened("bw_wrong")
    expect(page.locator("#model-fault")).to_have_text("What serves is not shown. It needs a key.")
    page.get_by_label("This service needs an API key").fill(door.key)
    page.keyboard.press("Enter")
    expect(said(page, "name and version")).to_contain_text("version 7 (champion)")
    expect(page.locator("#model-fault")).to_be_hidden()


def test_the_reasons_are_the_words_of_the_service(door, opened):
    reasons = ["the cell is blurred (focus 1, expected at least 2)", "too uncertain: between 0.451 and 0.713"]
    page = opened(predict=door.answer | {"decision": "refer", "reasons": reasons})
    assert read(page, door).locator(".concerns li").all_inner_texts() == reasons


def test_a_damaged_file_and_one_that_is_gone_are_told_once_and_plainly(door, opened, tmp_path):
    page = opened()
    cut = tmp_path / "cut.bmp"
    cut.write_bytes(door.cell.read_bytes()[:5000])
    page.set_input_files("#choose", cut)
    expect(page.locator(".refused .words")).to_contain_text("The image is incomplete or damaged: ")
    assert page.inner_text(".refused .words").count("The image is incomplete or damaged") == 1
    moved = tmp_path / "moved.bmp"
    moved.write_bytes(door.cell.read_bytes())
    page.set_input_files("#choose", moved)
    page.get_by_text("1 of 1 read.").wait_for()
    moved.unlink()
    page.get_by_role("button", name="Show where the network looked").click()
    expect(page.locator(".answer .heat-words").first).to_contain_text("The file cannot be read")


def test_statistics_have_units_and_figures_have_intervals(door, opened):
    page = opened()
    more = read(page, door).locator(".more")
    for row in TABLE:
        value = significant(door.answer["quality"]["statistics"][row.name])
        expect(more.locator(f"dt:text-is('{row.name}') + dd")).to_have_text(f"{value} ({row.unit})")
    assert "e+" not in more.text_content()
    expect(said(page, "test cells")).to_have_text("weighted_f1 0.900 (0.850 to 0.950); 95 % intervals by patient")


def test_no_statistic_is_rounded_onto_one_or_to_thousands(door, opened):
    statistics = door.answer["quality"]["statistics"] | {"cell_area": 20123.456, "dark_share": 0.99996}
    page = opened(predict=door.answer | {"quality": door.answer["quality"] | {"statistics": statistics}})
    more = read(page, door).locator(".more")
    expect(more.locator("dt:text-is('cell_area') + dd")).to_contain_text("20123")
    expect(more.locator("dt:text-is('dark_share') + dd")).to_contain_text("0.99996")


def test_no_probability_is_rounded_onto_the_threshold_that_decides(door, opened):
    """Also where the answer came before the page knew the thresholds."""
    thresholds = {"hem": 0.1236, "all": 0.8774}
    page = opened(door.blind, predict=door.answer | {"probability": 0.8771})
    expect(page.locator("#model-fault")).to_contain_text("What serves is not shown.")
    page.route("**/v1/model", lambda route: None)  # no later refusal takes away what the test tells below
    number = read(page, door).locator(".number")
    expect(number).to_have_text("0.877")
    page.evaluate("model => tellModel(model)", door.model | {"thresholds": thresholds})
    expect(number).to_have_text("0.8771")
    expect(said(page, "decides")).to_have_text("normal cell up to a probability of 0.1236, blast from 0.8774")
    later = door.model | {"version": "8", "thresholds": {"hem": 0.2, "all": 0.8}}  # as after a promotion
    page.evaluate("model => tellModel(model)", later)
    expect(number).to_have_text("0.8771")
    for value, text in (
        (0.49973, "0.4997"), (0.5, "0.500"), (0.9, "0.900"), (0.12356, "0.12356"), (0.99996, "0.99996"),
        (0.8774, "0.8774"), (math.nextafter(0.8774, 0), "< 0.8774"), (math.nextafter(0.1236, 1), "> 0.1236"),
    ):  # fmt: skip
        assert page.evaluate("value => besides(value, [0.5, 0.1236, 0.8774])", value) == text, value
    for value, text in ((0.0123457, "0.0123457"), (0.01234571, "> 0.0123457"), (0.0123456, "< 0.0123457")):
        assert page.evaluate("value => besides(value, [0.5, 0.0123457, 0.8774])", value) == text, value


def test_where_the_units_are_not_at_hand_the_page_says_so(door, opened):
    page = opened()
    page.route("**/docs.json", lambda route: route.abort())
    expect(read(page, door).locator(".more")).to_contain_text(f"not known. {GONE}")
