"""The page in a browser: what it says of the version that gave each answer, whatever else it may or may not ask."""

import pytest

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
def test_each_answer_says_whether_its_version_learnt_from_synthetic_cells(page, door):
    first = ask(page, door)
    page.locator(SYNTHETIC).wait_for()
    assert "synthetic cells" in first.locator(".more").text_content()
    answer = door.predict(door.key, door.cell.read_bytes()).json()
    answer["model"] |= {"synthetic": False, "version": "8"}  # as after a promotion
    page.route("**/v1/predict", lambda route: route.fulfill(json=answer), times=1)
    second = ask(page, door)
    page.locator("#synthetic[hidden]").wait_for(state="attached")
    assert "real cells" in second.locator(".more").text_content()


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
