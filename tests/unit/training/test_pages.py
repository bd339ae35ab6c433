"""What the pages that training writes have in common: they fit a telephone, can be read aloud, and round no figure onto
a bound."""

import re

import pytest

from blastwatch import DISCLAIMER
from training.pages import render

AREA = {"value": 0.9996, "low": 0.8123, "high": 1.0}
CELLS, PATIENTS = (
    ("auroc", "weighted_f1"),
    ("mean_accuracy", "worst_quarter_accuracy", "specificity_over_healthy"),
)
NAMES = ("resnet50", "last-layers-of-two-networks", "boosted", "sizes")
PARTS = {"cells": CELLS, "patients": PATIENTS}


def recipe(kind):
    """Facts of one recipe of a cross-validation, as `training.crossvalidation` writes them."""
    patient = {"subject": "UID_1", "group": "1", "label": "all", "fold": 0, "cells": 30, "accuracy": 0.9996}
    return {part: dict.fromkeys(names, AREA) for part, names in PARTS.items()} | {
        "kind": kind,
        "parameters": {"train": {"weights_file": "w" * 90}} if kind == "network" else {},
        "size_matched": AREA,
        "ece": dict.fromkeys(("before", "after", "lowered_by"), AREA),
        "coverage": dict.fromkeys(("coverage_over_healthy", "coverage_over_ill"), AREA),
        "aimed_coverage": {"hem": 0.9, "all": 0.9},
        "folds": 5 * [{part: dict.fromkeys(names, 0.9) for part, names in PARTS.items()}],
        "spread": {part: {name: {"mean": 0.9, "sd": 0.02} for name in names} for part, names in PARTS.items()},
        "per_patient": [patient],
    }


def crossvalidation_page():
    recipes = {name: recipe("network" if place < 2 else "baseline") for place, name in enumerate(NAMES)}
    row = {"metric": "auroc", "reference_value": 0.9, "baseline_value": 0.8, "difference": -0.0001, "low": -0.1,
           "high": 0.0, "p": 0.00002, "p_holm": 1.0}  # fmt: skip
    facts = {
        "recipes": recipes, "reference": NAMES[0], "counts": {"cells": 10, "subjects": 3, "groups": 3},
        "folds": 5 * [0], "synthetic": False, "parameters": {"split": {"folds_by": "x"}, "evaluate": {"resamples": 10}},
        "run_id": "r", "data_digest": "a" * 64, "split_digest": "b" * 64, "pack_digest": "c" * 64,
        "comparison": [row | {"baseline": name} for name in NAMES[1:]],
    }  # fmt: skip
    differing = {"train.architecture": dict(zip(NAMES[:2], ("resnet50", "r" * 90), strict=True))}
    return render("crossvalidation.html", facts=facts, differing=differing, unknown=[], disclaimer=DISCLAIMER)


def data_page():
    long, moments = "s" * 120, {"low": 0.1, "median": 0.2, "high": 0.3, "between_subjects": 0.999}
    leaks = {"findings": {}, "between_subjects": 0, "two_labels": 0, "patients": 1, "odd": 0, "groups": [[long, "P2"]],
             "without_background": 0}  # fmt: skip
    card = {
        "folder": "/data/" + long, "digest": "a" * 64, "synthetic": False, "images": 1, "subjects": 1, "refused": 0,
        "labels": {"all": {"cells": 1, "subjects": 1}}, "skipped": {}, "decoder": "a decoder", "sources": {long: 3},
        "cells_per_subject": {"least": 1, "most": 2, "median": 1.5}, "licences": {long: "free to " + long},
        "sizes": {"450x450": 1}, "leaks": leaks, "stain": dict.fromkeys(("od_red", "sharpness_of_all_edges"), moments),
        "by_subject": [{"subject": long, "label": "all", "cells": 1}],
    }  # fmt: skip
    given = {"short": lambda value: f"{value:.3g}", "background_told": str, "sheet": {}}
    return render("data.html", card=card, **given, disclaimer=DISCLAIMER)


PAGES = pytest.mark.parametrize("page", [crossvalidation_page, data_page])


@PAGES
def test_each_table_moves_by_itself_and_names_its_columns_and_rows(page):
    text = page()
    heads = re.findall(r"<th\b(.*?)>(.*?)</th>", text)
    assert heads and all('scope="' in attributes and words for attributes, words in heads)
    labels = re.findall(r'<div class="wide" role="region" tabindex="0" aria-label="(.*?)">\s*<table>', text)
    assert len(labels) == text.count("<table") == len(set(labels))
    for row in re.findall(r"<tr>.*?</tr>", re.sub("<thead>.*?</thead>", "", text)):
        assert row.startswith('<tr><th scope="row">'), row


@pytest.mark.browser
def test_they_fit_a_telephone(browser, tmp_path):
    opened = browser.new_page(viewport={"width": 360, "height": 800})
    for page in (crossvalidation_page, data_page):
        (tmp_path / f"{page.__name__}.html").write_text(page())
        opened.goto((tmp_path / f"{page.__name__}.html").as_uri())
        opened.screenshot(path=tmp_path / f"{page.__name__}.png", full_page=True)
        assert opened.evaluate("document.documentElement.scrollWidth") <= 360, page


@pytest.mark.browser
def test_on_paper_no_column_is_cut_off_and_no_fold_stays_closed(browser, tmp_path):
    opened = browser.new_page()
    opened.emulate_media(media="print")
    cut = """regions => regions.filter((one) => getComputedStyle(one).overflowX !== "visible"
        || one.scrollWidth > one.clientWidth).map((one) => one.ariaLabel)"""
    style = "folds => folds.map((fold) => getComputedStyle(fold, '::details-content').contentVisibility)"
    for page in (crossvalidation_page, data_page):
        (tmp_path / "page.html").write_text(page())
        opened.goto((tmp_path / "page.html").as_uri())
        for width in (1047, 718):  # px of A4 within its margins
            opened.set_viewport_size({"width": width, "height": 740})
            assert opened.locator(".wide").evaluate_all(cut) == [], (page, width)
        assert set(opened.locator("details").evaluate_all(style)) <= {"visible"}, page


def test_no_figure_is_rounded_onto_a_bound():
    text = crossvalidation_page()
    assert '<td class="number">0.9996 <span class="notice">0.812 to 1.000</span></td>' in text
    assert '<td class="number">-0.0001</td>' in text and '<td class="number">0.00002</td>' in text
