"""The page in a browser: what it says of the version that gave each answer, whatever else it may or may not ask."""

import pytest
from playwright.sync_api import expect

from serving.keys import PREDICT, KeyFolder
from tests.in_thread import front
from tests.service_packages import write_cell

SYNTHETIC = "#synthetic:not([hidden])"


@pytest.fixture(scope="module")
def door(served, tmp_path_factory):
    """A service over synthetic cells, and a key that may predict but not read what serves."""
    home = tmp_path_factory.mktemp("page")
    key = KeyFolder(home / "api-keys").add("lab", may=(PREDICT,))
    with front(served, home) as service:
        service.key, service.cell = key, write_cell(home / "cell.bmp")
        yield service


@pytest.fixture
def page(door, browser):
    """Opened with the key, after what serves was refused to it."""
    opened = browser.new_page()
    opened.add_init_script(f"sessionStorage.setItem('blastwatch-key', '{door.key}')")
    with opened.expect_response("**/v1/model") as model:
        opened.goto(door.url)
    assert model.value.status == 403
    assert opened.locator(SYNTHETIC).count() == 0  # nothing is known of it yet
    return opened


def ask(page, door):
    """The newest answer of the page."""
    count = page.locator(".answer").count()
    page.set_input_files("#choose", door.cell)
    page.locator(f".answer:nth-of-type({count + 1})").wait_for()
    page.get_by_text("1 of 1 read.").wait_for()
    return page.locator(".answer").first


@pytest.mark.browser
def test_each_answer_says_whether_its_version_learnt_from_synthetic_cells_or_this_one(page, door):
    first = ask(page, door)
    page.locator(SYNTHETIC).wait_for()
    assert "synthetic cells" in first.locator(".more").text_content()
    learned = "The model learned from this very image"
    assert learned not in first.text_content()
    answer = door.predict(door.key, door.cell.read_bytes()).json()
    answer |= {"model": answer["model"] | {"synthetic": False, "version": "8"}}  # as after a promotion
    answer["seen_in_training"] = True
    page.route("**/v1/predict", lambda route: route.fulfill(json=answer), times=1)
    second = ask(page, door)
    page.locator("#synthetic[hidden]").wait_for(state="attached")
    assert "real cells" in second.locator(".more").text_content()
    assert learned in second.locator(".concerns").text_content()


@pytest.mark.browser
@pytest.mark.parametrize(("version", "label", "words"), [
    ("7", "hem", 'what spoke for "normal cell"; bright is more'),
    ("7", "all", 'what spoke for "leukemic blast"; bright is more'),
    ("8", "hem", 'what spoke for "normal cell"; bright is more. Drawn by version 8, the answer is of version 7.'),
])  # fmt: skip
def test_the_heat_map_is_told_by_what_drew_it(page, door, version, label, words):
    drawn = door.ask("/v1/explain", door.key, files={"image": door.cell.read_bytes()})
    assert drawn.headers["Blastwatch-Model-Version"] == "7" and drawn.headers["Blastwatch-Label"] in ("all", "hem")
    headers = {"Content-Type": "image/png", "Blastwatch-Model-Version": version, "Blastwatch-Label": label}
    page.route("**/v1/explain", lambda route: route.fulfill(body=drawn.content, headers=headers), times=1)
    answer = ask(page, door)
    answer.get_by_role("button", name="Show where the network looked").click()
    answer.locator(".heat:not([hidden])").wait_for()
    assert answer.locator(".heat-words").inner_text() == words
    assert words.split('"')[1] in answer.locator(".heat").get_attribute("alt").lower()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_the_pages_fit_the_window_and_a_refused_file_leaves_no_hole(door, browser, tmp_path, width, scheme):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.add_init_script(f"sessionStorage.setItem('blastwatch-key', '{door.key}')")
    page.goto(door.url)
    (tmp_path / "notes.bmp").write_text("no image")
    page.get_by_label("Pseudonym of the patient (optional)").fill("P" * 1100)
    page.set_input_files("#choose", door.cell)
    page.get_by_text("1 image waits").wait_for()
    page.get_by_label("Pseudonym of the patient (optional)").fill("P" * 1000)
    page.set_input_files("#choose", [door.cell, tmp_path / "notes.bmp"])
    page.get_by_text("1 of 2 read, 1 refused.").wait_for()
    page.locator(".refused figure").wait_for(state="detached")
    frame, words = (page.locator(name).bounding_box() for name in (".refused", ".refused .words"))
    assert words["x"] - frame["x"] < 30
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=tmp_path / f"page-{width}-{scheme}.png", full_page=True)
    page.goto(f"{door.url}/history")
    page.get_by_text("The API key may not do this").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_a_file_dropped_beside_the_frame_does_not_take_the_page_away(page, door):
    """Else the browser opens it in place of the page, and the answers are gone."""
    drop = """([where, file]) => {
        const data = new DataTransfer();
        if (file) data.items.add(new File([Uint8Array.from(file)], "cell.bmp"));
        else data.setData("text/plain", "P-0417");
        const event = (name) => new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true});
        return ["dragover", "drop"].map((name) => !document.querySelector(where).dispatchEvent(event(name)));
    }"""
    assert page.evaluate(drop, ["#answers", [1]]) == [True, True]
    assert page.evaluate(drop, ["#patient", None]) == [False, False]  # words go where they are dropped
    assert page.evaluate(drop, ["#drop", None]) == [True, True]
    assert (page.locator(".answer").count(), page.inner_text("#status")) == (0, "")
    assert page.evaluate(drop, ["#drop", list(door.cell.read_bytes())]) == [True, True]
    page.get_by_text("1 of 1 read.").wait_for()


@pytest.mark.browser
def test_who_gives_a_key_by_keyboard_goes_on_where_it_leads(door, browser):
    opened = browser.new_page()
    opened.goto(door.url)
    opened.get_by_label("This service needs an API key").focus()
    assert opened.locator("#key").get_attribute("aria-invalid") is None
    opened.keyboard.type("bw_wrong")
    opened.keyboard.press("Enter")
    opened.get_by_text("This key is not good. Give another one.").wait_for()
    expect(opened.locator("#key")).to_have_accessible_description("This key is not good. Give another one.")
    expect(opened.locator("#key")).to_have_attribute("aria-invalid", "true")
    opened.locator("#key:focus").wait_for()
    opened.keyboard.type(door.key)
    opened.keyboard.press("Enter")
    opened.locator("#patient:focus").wait_for()
