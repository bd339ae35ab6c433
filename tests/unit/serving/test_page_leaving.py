"""What is chosen and what is answered stays until a person lets it go: the queue can be stopped, a service that hangs
holds nothing for ever, and the page is not left without a question."""

import pytest
from PIL import Image
from playwright.sync_api import expect

from serving.keys import PREDICT, READ, KeyFolder
from tests.in_thread import front
from tests.service_packages import write_cell
from tests.stalling import stalling

PROBLEM = "application/problem+json"
# Whether the browser would ask before it goes.
HELD = """() => {
    const event = new Event("beforeunload", {cancelable: true});
    dispatchEvent(event);
    return event.defaultPrevented;
}"""
# What a browser goes by that takes no notice of `preventDefault`.
HELD_OF_OLD = """() => {
    const event = document.createEvent("BeforeUnloadEvent");
    event.initEvent("beforeunload", false, true);
    dispatchEvent(event);
    return event.returnValue;
}"""
# The longest wait for an answer is written down and shortened.
IMPATIENT = """() => {
    const later = setTimeout;
    window.limits = [];
    window.setTimeout = (call, ms) => { limits.push(ms); return later(call, 50); };
}"""
# What Firefox ESR 115, Chrome 109 or Safari 16.3 does not have.
OLD = """
    delete AbortSignal.any; delete AbortSignal.timeout; delete window.OffscreenCanvas;
    delete Element.prototype.ariaInvalid;
"""

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    """A service, a key and three cells."""
    home = tmp_path_factory.mktemp("page")
    with front(served, home) as service:
        service.key = KeyFolder(home / "api-keys").add("lab", may=(PREDICT, READ))
        service.cells = [write_cell(home / f"cell-{number}.bmp") for number in range(3)]
        service.model = service.ask("/v1/model", service.key).json()
        yield service


@pytest.fixture
def page(door, browser):
    """The page with a key, where what serves has a history."""
    opened = browser.new_page()
    opened.goto(f"{door.url}/page.css")  # an address of the service, to put the key beside
    opened.evaluate("key => sessionStorage.setItem('blastwatch-key', key)", door.key)
    opened.route("**/v1/model", lambda route: route.fulfill(json=door.model | {"history": True}))
    opened.goto(door.url)
    return opened


def test_while_there_is_something_to_lose_the_browser_asks_before_it_goes(page, door):
    held, asked = [], []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.accept()))
    clear = page.get_by_role("button", name="Clear the answers")
    expect(clear).to_be_hidden()
    assert not page.evaluate(HELD)
    page.route("**/v1/predict", lambda route: (held.append(page.evaluate(HELD)), route.continue_()))
    page.set_input_files("#choose", door.cells[:2])
    page.get_by_text("2 of 2 read.").wait_for()
    assert held == [True, True] and page.evaluate(HELD) and page.evaluate(HELD_OF_OLD) == "true"
    clear.click()
    assert asked == ["Clear the 2 answers?"]
    expect(page.locator("#status")).to_have_text("The answers were cleared.")
    assert page.evaluate("document.activeElement.id") == "status"
    assert page.locator(".answer").count() == 0 and page.get_by_text("None yet.").is_visible()
    expect(clear).to_be_hidden()
    assert not page.evaluate(HELD) and page.evaluate(HELD_OF_OLD) == ""


def test_the_browser_itself_asks_before_the_answers_go(page, door):
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    page.locator("#ask").click()  # of a page that nobody has touched no browser asks
    page.reload()
    assert asked == []
    page.locator("#ask").click()
    page.set_input_files("#choose", door.cells[0])
    page.get_by_text("1 of 1 read.").wait_for()
    page.reload()
    assert asked == ["beforeunload"]


def test_what_is_cleared_hides_no_image_that_waits(page, door):
    page.on("dialog", lambda dialog: dialog.accept())
    answers = [lambda route: route.continue_(), lambda route: route.fulfill(status=401)]
    page.route("**/v1/predict", lambda route: answers.pop(0)(route))
    page.set_input_files("#choose", door.cells[:2])
    page.get_by_text("1 of 1 read. 1 image waits.").wait_for()
    page.get_by_role("button", name="Clear the answers").click()
    words = "The answers were cleared. 1 image waits. The service needs an API key."
    expect(page.locator("#status")).to_have_text(words)


def test_the_links_take_no_answer_along_and_the_key_is_handed_on(page, door):
    page.set_input_files("#choose", door.cells[0])
    page.get_by_text("1 of 1 read.").wait_for()
    asked = []
    page.context.on("request", lambda request: asked.append(request) if "/v1/history" in request.url else None)
    for name, back in (
        ("What served when (opens a window)", "Read a cell"),
        ("Description of the interface (opens a window)", "Close this window"),
    ):
        with page.expect_popup() as opened:
            page.get_by_role("link", name=name, exact=True).click()
        link = opened.value.get_by_role("link", name=back)
        opened.value.wait_for_load_state("load")
        assert opened.value.evaluate("sessionStorage.getItem('blastwatch-key')") == door.key
        if name.startswith("What served"):
            opened.value.locator("#status:text-matches('.[^…]$')").wait_for()  # its first answer has come
            assert opened.value.locator("#key").count() == 0
        with opened.value.expect_event("close"):  # and not a second page, without the answers
            link.click()
    assert [request.headers["authorization"] for request in asked] == [f"Bearer {door.key}"]
    assert page.locator(".answer").count() == 1


@pytest.mark.parametrize("opener", ["", "open(location.href); document.body.replaceChildren()"])
def test_where_no_page_of_the_cells_waits_the_link_leads_to_one(page, door, opener):
    page.goto(f"{door.url}/history")
    if opener:  # the page that opened it shows something else by now
        with page.expect_popup() as opened:
            page.evaluate(opener)
        page = opened.value
    page.get_by_role("link", name="Read a cell").click()
    page.wait_for_url(f"{door.url}/")


def asked_to_wait(route):
    problem = {"type": "/problems/rate-limited", "title": "Not now", "detail": "Because of the rate."}
    route.fulfill(status=429, json=problem, headers={"Retry-After": "60"}, content_type=PROBLEM)


@pytest.mark.parametrize(
    ("refuse", "said"), [(lambda _route: None, "Reading 2 of 3"), (asked_to_wait, "Because of the rate. Sent again in")]
)
def test_the_queue_can_be_stopped_whatever_it_waits_for(page, door, refuse, said):
    stop, words = page.get_by_role("button", name="Stop reading"), "2 images wait. Reading was stopped."
    expect(stop).to_be_hidden()
    answers = [lambda route: route.continue_(), refuse]
    page.route("**/v1/predict", lambda route: answers.pop(0)(route))
    second = lambda request: request.url.endswith("/v1/predict") and len(answers) == 1  # noqa: E731
    with page.expect_request(second):
        page.set_input_files("#choose", door.cells)
    page.get_by_text(said).wait_for()
    stop.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_have_text(f"1 of 1 read. {words}")
    assert page.evaluate("document.activeElement.id") == "status"
    expect(stop).to_be_hidden()
    assert (page.locator(".answer").count(), answers) == (1, [])
    page.unroute("**/v1/predict")
    page.get_by_role("button", name="Read the 2 images that wait").click()
    page.get_by_text("2 of 2 read.").wait_for()


def test_a_service_that_hangs_holds_no_image_for_ever(door, browser):
    page = browser.new_page()
    page.add_init_script(f"sessionStorage.setItem('blastwatch-key', '{door.key}')")
    page.goto(door.url)
    page.evaluate(IMPATIENT)
    page.route("**/v1/predict", lambda _route: None)
    page.set_input_files("#choose", door.cells)
    page.get_by_text("3 images wait. The service has not answered within 150 seconds: it hangs or is").wait_for()
    assert page.evaluate("limits") == [150_000]


def test_an_answer_that_stops_on_its_way_is_told_as_silence_and_can_be_stopped(door, browser):
    with stalling(door.url, "/v1/predict") as url:
        page = browser.new_page()
        page.add_init_script(f"sessionStorage.setItem('blastwatch-key', '{door.key}')")
        page.goto(url)
        with page.expect_response("**/v1/predict"):
            page.set_input_files("#choose", door.cells)
        page.get_by_role("button", name="Stop reading").click()
        expect(page.locator("#status")).to_have_text("3 images wait. Reading was stopped.")
        page.evaluate(IMPATIENT)
        page.get_by_role("button", name="Read the 3 images that wait").click()
        page.get_by_text("3 images wait. The service has not answered within 150 seconds: it hangs or is").wait_for()
        page.close()


def test_a_browser_of_some_years_ago_reads_a_cell_and_shows_it(door, browser):
    page, faults = browser.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script(f"{OLD} sessionStorage.setItem('blastwatch-key', '{door.key}')")
    page.goto(door.url)
    page.set_input_files("#choose", door.cells[0])
    page.get_by_text("1 of 1 read.").wait_for()
    shown = page.locator(".answer .cell")
    page.wait_for_function("image => image.naturalWidth > 0", arg=shown.element_handle())
    expect(page.locator("#facts")).to_contain_text("version 7")
    page.get_by_label("Pseudonym of the patient (optional)").fill("P\u200b1")
    page.set_input_files("#choose", door.cells[0])
    page.get_by_text("1 image waits").wait_for()
    expect(page.locator("#patient")).to_have_attribute("aria-invalid", "true")
    assert faults == []


def test_a_wait_ends_with_its_signal_and_leaves_nothing_behind(page):
    assert page.evaluate("wait(60, AbortSignal.abort(new Unanswered('Stopped.'))).catch((error) => error.message)") == (
        "Stopped."
    )
    listening = """async () => {
        const {signal} = new AbortController(), heard = [];
        signal.addEventListener = (_name, call) => heard.push(call);
        signal.removeEventListener = (_name, call) => heard.splice(heard.indexOf(call), 1);
        const answers = wait(0.01, signal), asked = askWithKey("v1/model", {signal}), during = heard.length;
        await Promise.all([answers, asked]);
        return [during, heard.length];
    }"""
    assert page.evaluate(listening) == [2, 0]


def test_a_late_refusal_of_the_old_key_says_nothing_of_the_new_one(door, browser):
    page, held = browser.new_page(), []
    page.goto(f"{door.url}/page.css")
    page.evaluate("sessionStorage.setItem('blastwatch-key', 'bw_old')")
    page.goto(door.url)

    def hold(route):
        old = route.request.headers["authorization"] == "Bearer bw_old"
        held.append(route) if old else route.continue_()

    page.route("**/v1/predict", hold)
    page.get_by_label("This service needs an API key").wait_for()
    with page.expect_request("**/v1/predict"):
        page.set_input_files("#choose", door.cells[0])
    page.get_by_label("This service needs an API key").fill(door.key)
    page.keyboard.press("Enter")
    expect(page.locator("#facts")).to_contain_text("version 7")
    problem = {"type": "/problems/key-refused", "title": "No", "detail": "No key."}
    held[0].fulfill(status=401, json=problem, content_type=PROBLEM)
    page.get_by_text("1 of 1 read.").wait_for()
    assert page.locator("#key").count() == 0


def test_an_answer_keeps_a_small_picture_and_not_the_file(page, tmp_path):
    large = tmp_path / "field.bmp"
    Image.new("RGB", (900, 450), (90, 10, 120)).save(large)
    page.evaluate("""() => {
        window.kept = [];
        const make = URL.createObjectURL;
        URL.createObjectURL = (data) => { kept.push(data.constructor.name); return make.call(URL, data); };
    }""")
    page.set_input_files("#choose", large)
    shown = page.locator(".answer .cell")
    page.wait_for_function("image => image.naturalWidth > 0", arg=shown.element_handle())
    assert shown.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [400, 200]
    assert page.evaluate("kept") == ["Blob"]  # else File


@pytest.mark.parametrize("path", ["/", "/history"])
def test_without_scripts_the_page_says_what_else_there_is(door, browser, path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(door.url + path)
    assert "This page needs JavaScript. Without it: blastwatch " in page.inner_text("body")
