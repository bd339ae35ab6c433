"""The data card counts what an audit found: pairs under two labels, and images that it is not made for."""

from dataclasses import replace

import pandas as pd
import pytest

from tests.unit.training.test_audit import cells_of
from training import data_card as module
from training.audit import audit_cells, write_audit
from training.data_card import STAIN, data_card, data_card_text, write_data_page
from training.oddities import Oddity

FACTS = {"kind": "table", "refused": 0, "skipped": {}, "decoder": "pillow"}
TOLD = "2 images have no dark background"


@pytest.fixture
def cells(tmp_path):
    cells = cells_of([("1", "all", "a"), ("1", "all", "b"), ("H1", "hem", "c"), ("2", "all", "d")], folder=tmp_path)
    return replace(cells, facts=cells.facts | FACTS)


def card_of(cells, near, odd, folder):
    looks = pd.DataFrame({"path": cells.rows["path"], **dict.fromkeys(STAIN, 1.0)})
    write_audit(audit_cells(cells, near, odd=odd), looks, folder)
    return data_card(cells, folder)


def shown(cells, card, folder, monkeypatch):
    monkeypatch.setattr(module, "_sheet", lambda cells: {})
    return data_card_text(card), write_data_page(cells, card, folder / "data.html").read_text()


def test_pairs_under_two_labels_are_counted(cells, tmp_path, monkeypatch):
    near = [("0000.bmp", "0001.bmp", 0.9), ("0001.bmp", "0002.bmp", 0.9)]
    card = card_of(cells, near, [], tmp_path)
    assert card["leaks"]["two_labels"] == 1
    text, page = shown(cells, card, tmp_path, monkeypatch)
    assert "1 of them between subjects, 1 under two labels" in text
    assert "<strong>1 carry two labels</strong>" in page
    assert TOLD[2:] not in text + page
    text, page = shown(cells, card_of(cells, near[:1], [], tmp_path), tmp_path, monkeypatch)
    assert "0 under two labels" in text and "none carries two labels" in page


def test_images_that_the_audit_is_not_made_for_are_told(cells, tmp_path, monkeypatch):
    odd = [
        Oddity(path=path, kind=kind, statistic="cell_area", value=2.0, low=0.0, high=1.0)
        for path, kind in (("0000.bmp", "background"), ("0000.bmp", "size"), ("0003.bmp", "background"))
    ]
    card = card_of(cells, [], odd, tmp_path)
    assert card["leaks"]["without_background"] == 2
    for text in shown(cells, card, tmp_path, monkeypatch):
        assert TOLD in text
