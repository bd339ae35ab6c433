"""The page's field for the patient: what is sent and kept of it, and that nothing is lost where it is refused."""

import pytest
from playwright.sync_api import expect

from serving.client import Client
from serving.keys import PREDICT, KeyFolder
from tests.in_thread import front
from tests.service_packages import write_cell

FIELD = "Pseudonym of the patient (optional)"
TOO_LONG = "A header is too long. Expected at most 1024 bytes in Blastwatch-Patient but got 1200."
NOT_PRINTABLE = "Expected printable text but got the character U+200B. Write the pseudonym anew, without it."

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    """A service, a key that may predict, a cell and a file that is none."""
    home = tmp_path_factory.mktemp("page")
    key = KeyFolder(home / "api-keys").add("lab", may=(PREDICT,))
    with front(served, home) as service:
        service.key, service.cell, service.notes = key, write_cell(home / "cell.bmp"), home / "notes.bmp"
        service.notes.write_text("no image")
        yield service


@pytest.fixture
def page(door, browser):
    """The page with a key; `page.sent` are the requests for a prediction."""
    opened = browser.new_page()
    opened.add_init_script(f"sessionStorage.setItem('blastwatch-key', '{door.key}')")
    opened.sent = []
    opened.on("request", lambda request: opened.sent.append(request) if "/v1/predict" in request.url else None)
    opened.goto(door.url)
    yield opened
    opened.close()


def read(page, *files):
    """Choose images, and wait until each has its answer."""
    count = page.locator(".answer").count()
    page.set_input_files("#choose", files)
    expect(page.locator(".answer .number:not(:empty)")).to_have_count(count + len(files))


def whose(page):
    """The patient of each answer, the newest first."""
    return [words.inner_text() for words in page.locator(".answer .patient").all()]


def test_it_is_sent_as_the_clients_send_it(page, door, monkeypatch):
    records, key = [], "Müller à 4711 à"
    monkeypatch.setattr(door.service.capture, "submit", records.append)
    with Client(door.url, api_key=door.key) as client:
        client.predict(door.cell, patient=key)
    for words in (f"\u00a0{key} ", ""):  # a pasted one brings spaces along
        page.get_by_label(FIELD).fill(words)
        read(page, door.cell)
    by_client, by_page, nobody = (record.patient for record in records)
    assert by_page == by_client and len(by_page) == 64 and nobody == ""
    assert whose(page) == ["", f"of the patient {key}"]
    with page.expect_request("**/v1/explain") as asked:
        page.get_by_role("button", name="Show where the network looked").last.click()
    assert "blastwatch-patient" not in asked.value.headers


@pytest.mark.parametrize(("wrong", "words", "asked"), [("ü" * 600, TOO_LONG, 1), ("P\u200b417", NOT_PRINTABLE, 0)])
@pytest.mark.parametrize("keys", [("Enter",), ("Tab", "Space")])
def test_where_it_is_refused_the_field_says_why_and_the_images_wait(page, door, wrong, words, asked, keys):
    field, again = page.get_by_label(FIELD), page.get_by_role("button", name="Read the 2 images that wait")
    field.fill(wrong)
    page.set_input_files("#choose", [door.cell, door.notes])
    page.get_by_text("2 images wait until the pseudonym is corrected.").wait_for()
    expect(page.get_by_role("alert")).to_have_text(words)
    expect(field).to_have_accessible_description(f"{page.inner_text('#patient-hint')} {words}")
    expect(field).to_have_attribute("aria-invalid", "true")
    expect(field).to_be_focused()
    expect(field).to_have_value(wrong)
    assert len(page.sent) == asked
    assert whose(page) == [] and page.get_by_text("None yet.").is_visible()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type("P-0417")
    for key in keys:
        page.keyboard.press(key)
    page.get_by_text("1 of 2 read, 1 refused.").wait_for()
    assert whose(page) == 2 * ["of the patient P-0417"]
    expect(again).to_be_hidden()
    expect(page.get_by_role("alert")).to_be_hidden()
    assert field.get_attribute("aria-invalid") is None
    assert page.evaluate("document.activeElement.id") == ("patient" if keys == ("Enter",) else "status")
    page.keyboard.press("Enter")  # nothing waits any more
    assert len(page.sent) == asked + 2


def test_images_that_wait_are_read_as_nobody_elses(page, door):
    """Those of the next patient go first, since only a person can say whose the others are."""
    field = page.get_by_label(FIELD)
    field.fill("P\u200b1")
    page.set_input_files("#choose", door.cell)
    again = page.get_by_role("button", name="Read the image that waits")
    again.wait_for()
    field.fill("P-2")
    read(page, door.cell)
    assert whose(page) == ["of the patient P-2"]
    field.fill("P-1")
    again.click()
    expect(page.locator(".answer .number:not(:empty)")).to_have_count(2)
    assert whose(page) == ["of the patient P-1", "of the patient P-2"]


def test_what_is_written_while_images_are_read_is_of_the_next_ones(page, door):
    field = page.get_by_label(FIELD)
    page.route("**/v1/predict", lambda route: (field.fill("P-2"), route.continue_()))
    field.fill("P-1")
    read(page, door.cell, door.cell)
    assert whose(page) == 2 * ["of the patient P-1"]
    assert [request.headers["blastwatch-patient"] for request in page.sent] == ["P-1", "P-1"]


def test_the_browser_keeps_nothing_of_it(page, door):
    field = page.get_by_label(FIELD)
    field.fill("P-0417")
    read(page, door.cell)
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, history.state])")
    assert "P-0417" not in kept + page.url
    assert field.get_attribute("autocomplete") == "off" and field.get_attribute("spellcheck") == "false"
    page.goto(f"{door.url}/docs")
    page.go_back()
    expect(field).to_have_value("")
    field.fill("P-0417")
    page.reload()
    expect(field).to_have_value("")
    field.fill("P-0417")
    page.evaluate("dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))")  # as into the page cache
    expect(field).to_have_value("")


def test_by_keyboard_it_comes_before_the_images_and_says_what_it_is_for(page):
    for key in ("Tab", "Enter"):  # the link that skips the head
        page.keyboard.press(key)
    field = page.get_by_role("textbox", name=FIELD)
    expect(field).to_be_focused()
    expect(field).to_have_accessible_description(
        "Whose cells these are, for alarms over patients: any word that stays the same for one patient. "
        "No name or number of a person belongs here. Stored only as a keyed hash."
    )
    page.keyboard.press("Enter")
    assert page.sent == []
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "choose"
