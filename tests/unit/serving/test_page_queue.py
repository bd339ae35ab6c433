"""The page's queue: no cell is lost where the service asks to wait, needs a key or is away, and little is announced."""

import json

import pytest
from playwright.sync_api import expect

from serving.keys import PREDICT, READ, KeyFolder
from tests.in_thread import front
from tests.service_packages import write_cell

FIELD = "Pseudonym of the patient (optional)"
PROBLEM = "application/problem+json"
# Pauses are written down in place of being waited for, and what is announced too; the limit of an answer is no pause.
WATCHED = """
    const later = setTimeout;
    window.pauses = []; window.announced = [];
    window.setTimeout = (call, ms) => {
        if (ms === 1000 * LONGEST_ANSWER) return later(call, ms);
        pauses.push(ms / 1000);
        return later(call, 0);
    };
    addEventListener("DOMContentLoaded", () => new MutationObserver(() => announced.push(
        document.getElementById("status").textContent)).observe(document.getElementById("status"), {childList: true}));
"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    """A service, a key, an answer, and 13 cells in files of different names."""
    home = tmp_path_factory.mktemp("page")
    with front(served, home) as service:
        service.key = KeyFolder(home / "api-keys").add("lab", may=(PREDICT, READ))
        service.cells = [write_cell(home / f"cell-{number}.bmp") for number in range(13)]
        service.answer = service.predict(service.key, service.cells[0].read_bytes()).json()
        yield service


@pytest.fixture
def page(door, browser):
    """The page with a key; `page.sent` are the requests for a prediction."""
    opened = browser.new_page()
    opened.add_init_script(f"sessionStorage.setItem('blastwatch-key', '{door.key}')")
    opened.add_init_script(WATCHED)
    opened.sent = []
    opened.on("request", lambda request: opened.sent.append(request) if "/v1/predict" in request.url else None)
    opened.goto(door.url)
    return opened


def refusal(status, kind, after=None):
    """A route that refuses as the service does."""
    headers = {"Retry-After": str(after)} if after is not None else {}
    problem = {"type": f"/problems/{kind}", "title": "Not now", "detail": f"Because of {kind}."}
    return lambda route: route.fulfill(status=status, json=problem, headers=headers, content_type=PROBLEM)


def test_who_is_asked_to_wait_waits_and_sends_again(page, door):
    refusals = [refusal(429, "rate-limited", 7), refusal(503, "store-unavailable", 5), refusal(502, "internal")]
    page.route("**/v1/predict", lambda route: refusals.pop(0)(route) if refusals else route.continue_())
    page.set_input_files("#choose", door.cells[:2])
    page.get_by_text("2 of 2 read.").wait_for()
    assert (page.locator(".answer").count(), page.locator(".refused").count(), len(page.sent)) == (2, 0, 5)
    first, second, third = page.evaluate("pauses")
    assert 7 <= first <= 8.75 and 5 <= second <= 6.25 and 1 <= third <= 1.25
    assert page.evaluate("announced") == [
        "Reading 2 images.",
        "The service asks to wait: each image is sent again when it may be.",
        "2 of 2 read.",
    ]


def test_who_has_waited_long_enough_keeps_the_images(page, door):
    page.route("**/v1/predict", refusal(429, "overloaded", 60))
    page.set_input_files("#choose", door.cells[:3])
    page.get_by_text("3 images wait. Not now. Because of overloaded.").wait_for()
    assert len(page.sent) == 3 and len(page.evaluate("pauses")) == 2  # 120 seconds, as the clients
    assert page.get_by_text("None yet.").is_visible()
    page.unroute("**/v1/predict")
    page.get_by_role("button", name="Read the 3 images that wait").click()
    page.get_by_text("3 of 3 read.").wait_for()
    expect(page.locator("#again")).to_be_hidden()


def test_a_key_that_is_asked_for_later_costs_no_cell(page, door):
    field = page.get_by_label(FIELD)
    field.fill("P-1")
    answers = [lambda route: route.continue_(), refusal(401, "key-refused")]
    page.route("**/v1/predict", lambda route: answers.pop(0)(route))
    page.set_input_files("#choose", door.cells[:3])
    page.get_by_text("1 of 1 read. 2 images wait. The service needs an API key.").wait_for()
    assert len(page.sent) == 2
    page.unroute("**/v1/predict")
    field.fill("P-2")
    page.get_by_label("This service needs an API key").fill(door.key)
    page.keyboard.press("Enter")
    page.get_by_text("2 of 2 read.").wait_for()
    assert [request.headers["blastwatch-patient"] for request in page.sent] == 4 * ["P-1"]
    expect(page.locator("#again")).to_be_hidden()


def test_a_page_of_a_proxy_is_no_answer(page, door):
    page.route("**/v1/predict", lambda route: route.fulfill(body="<html>Log in</html>", content_type="text/html"))
    page.set_input_files("#choose", door.cells[0])
    page.get_by_text("1 image waits. What came is no answer of the service").wait_for()
    assert "Unexpected token" not in page.inner_text("body")


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        ({"title": "Service Unavailable", "status": 503}, "Service Unavailable (HTTP 503)."),
        ({"type": "about:blank", "detail": "No backend."}, "No backend."),
        ({}, "The service answered HTTP 503."),
        (None, "The service answered HTTP 503."),
    ],
)
def test_a_problem_of_a_gateway_that_says_little_is_waited_for_all_the_same(page, door, problem, words):
    refused = lambda route: route.fulfill(status=503, body=json.dumps(problem), content_type=PROBLEM)  # noqa: E731
    page.route("**/v1/predict", refused)
    page.set_input_files("#choose", door.cells[0])
    expect(page.locator("#status")).to_have_text(f"1 image waits. {words}")
    assert len(page.sent) == 4 and page.locator(".refused").count() == 0


def test_an_image_that_is_refused_is_shown_with_what_one_can_do(page, door):
    page.set_input_files("#choose", {"name": "notes.bmp", "mimeType": "image/bmp", "buffer": b"patient 7"})
    expect(page.locator(".refused")).to_contain_text("Send BMP, JPEG, PNG, TIFF or WebP.")


def test_two_drops_are_one_queue_of_which_little_is_announced(page, door):
    def answer(route):
        if len(page.sent) == 3:
            page.set_input_files("#choose", door.cells[12])
        route.fulfill(json=door.answer)

    page.route("**/v1/predict", answer)
    page.set_input_files("#choose", door.cells[:12])
    page.get_by_text("13 of 13 read.").wait_for()
    assert page.evaluate("announced") == ["Reading 12 images.", "10 of 13 done.", "13 of 13 read."]
    assert page.locator("#reading").text_content() == ""
    names = [button.get_attribute("aria-describedby") for button in page.locator(".explain").all()]
    assert len(set(names)) == 13
    expect(page.locator(".explain").last).to_have_accessible_description("cell-0.bmp")


def test_until_its_answer_a_cell_shows_no_figure_and_afterwards_none_that_is_too_sure(page, door, tmp_path):
    turned = tmp_path / "cell-\u202eno.bmp"
    turned.write_bytes(door.cells[0].read_bytes())
    waiting = []
    page.route("**/v1/predict", lambda route: waiting.append(route))
    with page.expect_request("**/v1/predict"):
        page.set_input_files("#choose", turned)
    card = page.locator(".answer")
    expect(card.locator(".pending")).to_have_text("No answer yet.")
    for name in ("meter", ".explain", "summary"):
        expect(card.locator(name)).to_be_hidden()
    assert page.locator("#reading bdi").text_content() == turned.name == card.locator("h3 bdi").text_content()
    waiting[0].fulfill(json=door.answer | {"probability": 0.99996})
    expect(card.locator(".number")).to_have_text("0.99996")
    expect(card.locator(".explain")).to_be_visible()
    expect(card.locator(".pending")).to_have_count(0)
    page.screenshot(path=tmp_path / "answered.png", full_page=True)
