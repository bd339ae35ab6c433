"""The pictures of an evaluation: which errors are shown, and that they can be drawn of any table."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from blastwatch.images import Preprocessing
from blastwatch.network import build
from tests.answers import draw_answers
from training.evaluation import fit, measure
from training.pack import Packed
from training.parameters import EvaluateParameters
from training.plots import (
    certain_errors,
    drawn_name,
    plot_explained_errors,
    plot_mistakes,
    plot_parts,
    plot_patients,
)


def test_the_most_certain_errors_come_first():
    table = draw_answers(4, patients=10, cells=12)
    worst = certain_errors(table, 12)
    wrong = (table["probability"] >= 0.5) != (table["label"] == "all")
    assert len(worst) == 12
    assert worst["gap"].is_monotonic_decreasing
    assert worst["gap"].min() >= np.sort(np.abs(table["probability"] - (table["label"] == "all"))[wrong])[-12]
    # One half itself is called a blast: an error only where the cell is normal.
    assert set(certain_errors(table.assign(probability=0.5), 1000)["label"]) == {"hem"}


def pack_of(table):
    """A pack with a crop of noise for each cell."""
    crops = np.random.default_rng(1).integers(0, 256, (len(table), 32, 32, 3), dtype=np.uint8)
    return Packed(crops=crops, paths=tuple(table["path"]), preprocessing=Preprocessing(size=32), digest="")


@pytest.mark.parametrize("cells", [1, 12])
@pytest.mark.parametrize("right", [True, False])
def test_errors_are_drawn_with_their_maps(tmp_path, cells, right):
    table = draw_answers(4, patients=4, cells=cells)
    if right:
        table["probability"] = (table["label"] == "all").astype(float)
    plot_explained_errors(table, pack_of(table), build("resnet18"), tmp_path / "errors.png", synthetic=True)
    with Image.open(tmp_path / "errors.png") as image:
        assert image.size == (1210, 660)


# Formulas to matplotlib, signs that its font lacks, and a long one.
ODD = ("P$1$", "$H_04$^", r"lab$\2026$7", "患者一", "x" * 300)


@pytest.fixture
def titles(monkeypatch):
    """What stands over the axes and beside them once a picture is saved, as it is drawn."""
    drawn = []
    save = Figure.savefig

    def savefig(figure, path):
        save(figure, path)
        for axes in figure.axes:
            texts = (axes.title, *(axes.get_yticklabels() if axes.axison else ()))
            drawn.extend(text.get_text() for text in texts if text.get_text())

    monkeypatch.setattr(Figure, "savefig", savefig)
    return drawn


def test_names_of_the_data_are_drawn_as_they_are_or_as_numbers(tmp_path, titles):
    """After hours of training no name may end the evaluation, nor be drawn as boxes (a warning: an error here)."""
    table = draw_answers(4, patients=5, cells=1).assign(subject=ODD, probability=0.9996, label="hem")
    plot_mistakes(table, pack_of(table), tmp_path / "mistakes.png", synthetic=False)
    shown = [*ODD[:3], "subject 5", f"{'x' * 8}…{'x' * 7}"]
    assert titles == [f"{name}\nhem, p 0.9996" for name in shown]


def test_the_title_of_an_explained_error_takes_any_name_and_is_never_surer_than_the_answer(tmp_path, titles):
    table = draw_answers(4, patients=2, cells=1).head(1).assign(subject="P$1$", probability=0.9998, label="hem")
    plot_explained_errors(table, pack_of(table), build("resnet18"), tmp_path / "errors.png", synthetic=False)
    assert titles == ["P$1$\nis hem", "blast with 0.9998"]


def test_parts_of_the_test_cells_may_have_any_name(tmp_path, titles):
    area = {"value": 0.9, "low": 0.8, "high": 0.95}
    parts = [{"name": name, "figures": {"auroc": area}} for name in (r"site $A_b\c$", "患者", "x" * 200)]
    metrics = {"synthetic": False, "cells": {"auroc": area}, "breakdown": {"source": parts}}
    plot_parts(metrics, tmp_path / "parts.png")
    assert titles == [r"source: site $A_b\c$", "source: row 2 of its table", f"source: {'x' * 20}…{'x' * 19}"]


def test_the_patients_drawn_are_those_whose_figures_the_metrics_tell(tmp_path, monkeypatch):
    """Ties make eight patients of twelve subjects; three cells of H's are blasts, so H stands under both labels."""
    tied = {"P001": "P003", "P005": "P003", "P007": "P003", "P002": "P000", "P006": "H"}
    table, held = draw_answers(4, patients=12, cells=20), draw_answers(5, patients=12, cells=20)
    table["group"] = table["subject"].replace(tied)
    table.loc[table.index[table["subject"] == "P006"][:3], "label"] = "all"
    table = table.drop(table.index[table["subject"] == "P001"][5:])  # subjects of one patient weigh by their cells
    parameters = EvaluateParameters(resamples=20)
    fitted = fit(held, held[["logit_hem", "logit_all"]].to_numpy(), parameters)
    metrics = measure(table, fitted, parameters) | {"synthetic": True}
    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: (save(figure, path), drawn.extend(figure.axes)))
    plot_patients(metrics, tmp_path / "patients.png")
    [axes] = drawn
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["all, 4 patients", "hem, 5 patients"]
    assert [len(points.get_offsets()) for points in axes.collections] == [4, 5]
    means = [float(line.get_ydata()[0]) for line in axes.lines]
    told = [metrics["patients"][name]["value"] for name in ("sensitivity_over_ill", "specificity_over_healthy")]
    assert means == pytest.approx(told)


def test_a_name_that_cannot_be_seen_is_drawn_as_a_number():
    assert drawn_name("P1\n", "subject 3") == drawn_name("P\u202e1", "subject 3") == "subject 3"
