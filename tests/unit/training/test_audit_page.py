"""audit.html: in a browser, every finding has both pictures, what crosses a split comes first, nothing is fetched."""

import re

import pytest
from PIL import Image

from blastwatch.manifest import read_cells
from training.audit import audit_cells
from training.audit_page import write_page
from training.importing import import_cells
from training.looks import look
from training.near_duplicates import near_duplicates
from training.oddities import Alike, oddities
from training.synthesis import synthesise


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    synthesise(folder / "source", patients=10, cells=3, seed=3, duplicates=2)
    sample = sorted((folder / "source").rglob("*_all.bmp"))[0]
    Image.open(sample).rotate(90).save(sample.with_name("UID_99_1_1_all.png"))
    Image.new("RGB", (450, 450)).save(sample.with_name("UID_99_1_2_all.png"))
    import_cells(folder / "source", folder / "cells", kind="cnmc")
    cells = read_cells(folder / "cells")
    looks = look(cells)
    turned = cells.rows["path"].str.contains("UID_99_")
    audit = audit_cells(
        cells,
        near_duplicates(looks),
        links=[["1", "2"]],
        odd=oddities(cells.rows, looks.table()),
        alike=[Alike(a="1", b="<2>", distance=0.5)],
        split=(
            split := cells.rows.assign(group=cells.rows["subject"], side=turned.map({True: "test", False: "train"}))
        ),
    )
    return write_page(audit, cells, folder, split=split), audit


def test_it_is_one_file_that_fetches_nothing(page):
    text = page[0].read_text()
    assert set(re.findall(r'src="([^:"]*):', text)) == {"data"}
    assert "http" not in text
    assert "&lt;2&gt;" in text and "<2>" not in text


@pytest.mark.browser
def test_a_browser_shows_both_pictures_of_every_finding(page, browser):
    path, audit = page
    tab = browser.new_page()
    failures = []
    tab.on("console", lambda message: failures.append(message.text))
    tab.goto(path.as_uri())
    assert tab.locator(".pair").count() == len(audit.findings) == 3
    assert tab.locator(".pair img").count() == 6
    assert tab.locator("li.wrong").count() == 1
    assert "The split leaks" in tab.locator(".verdict.wrong").inner_text()
    assert "synthetic" in tab.locator("body").inner_text()
    drawn = tab.evaluate("Promise.all([...document.images].map(i => { i.loading='eager'; return i.decode() }))")
    assert len(drawn) == 7  # the empty image is odd
    assert failures == []
    tab.close()
