"""audit.html: in a browser, every finding has both pictures, what crosses a split comes first, nothing is fetched."""

import re
from dataclasses import replace

import pytest
from PIL import Image

from blastwatch.manifest import read_cells
from training import audit_page
from training.audit import audit_cells
from training.audit_page import write_page
from training.importing import import_cells
from training.looks import look
from training.near_duplicates import near_duplicates
from training.oddities import Alike, Oddity, oddities
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
    return write_page(audit, cells, folder, split=split), audit, cells


def test_it_is_one_file_that_fetches_nothing(page):
    text = page[0].read_text()
    assert set(re.findall(r'src="([^:"]*):', text)) == {"data"}
    assert "http" not in text
    assert "&lt;2&gt;" in text and "<2>" not in text


def test_pairs_under_two_labels_come_first_and_are_told(page, tmp_path):
    cells = page[2]
    rows = cells.rows.sort_values(["subject", "path"], ignore_index=True)
    (a, b, c), other = rows["path"][:3], rows["path"][6]  # three cells of one subject, and one of another
    rows.loc[1, "label"] = "hem" if rows.loc[0, "label"] == "all" else "all"
    disputed = replace(cells, rows=rows)
    # Without the labels the other pair would come first: it ties subjects, and it is the less alike.
    audit = audit_cells(disputed, [(a, b, 0.99), (c, other, 0.7)])
    text = write_page(audit, disputed, tmp_path).read_text()
    tiles = [tile for tile in text.split("<li ")[1:] if 'class="pair"' in tile]
    near = [tile for tile in tiles if "score 0." in tile]
    assert "score 0.990, <strong>two labels</strong>" in near[0] and near[0].startswith('class="wrong"')
    assert "two labels" not in near[1] and near[1].startswith('class="apart"')
    assert "<strong>1 of the pairs carry two labels:</strong>" in text
    assert "carry two labels:" not in page[0].read_text()


def test_a_heading_counts_all_odd_images_and_not_those_with_a_picture(page, tmp_path, monkeypatch):
    monkeypatch.setattr(audit_page, "PICTURED", 2)
    path, audit, cells = page
    odd = [
        Oddity(path=name, kind="background", statistic="cell_area", value=2.0, low=0.0, high=1.0)
        for name in cells.rows["path"]
    ]
    text = write_page(replace(audit, odd=odd), cells, tmp_path).read_text()
    assert f"do not look like the rest: {len(odd)}<" in text and "The first 2 are shown" in text
    assert f"{len(odd)} images have no dark background" in text
    told = path.read_text()
    assert "do not look like the rest: 1<" in told
    assert "are shown" not in told and "no dark background" not in told


@pytest.mark.browser
def test_a_browser_shows_both_pictures_of_every_finding(page, browser):
    path, audit, _ = page
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
