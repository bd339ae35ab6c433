"""The pictures of a run. Each says whether the cells were synthetic, and that this is no medical device."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from blastwatch import DISCLAIMER
from blastwatch.explanation import heat_map, overlay
from blastwatch.images import normalise
from blastwatch.rounding import fixed
from training.calibration import reliability
from training.figures import HALF

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import nn

    from training.pack import Packed

PICTURES = ("confusion", "roc", "reliability", "patients", "parts", "errors")
"""What the evaluation report shows, each a PNG of that name."""

BLUE, RED, GREY = "#2b6cb0", "#c53030", "#616e7c"
LONGEST_NAME = 40  # characters that an axis shows of a name
LONGEST_TITLE = 16  # characters that stand over one cell of a row of eight


def _figure(width: float, height: float, title: str, *, synthetic: bool) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    figure.suptitle(f"{title} (synthetic cells)" if synthetic else title)
    figure.supxlabel(DISCLAIMER, fontsize=7, color=GREY)
    return figure


def drawn_name(name: str, instead: str, most: int = LONGEST_NAME) -> str:
    """A name of the data as a picture can show it; whoever draws it says `parse_math=False`, for dollars are letters.

    Args:
        instead: what stands for a name that has a character without a glyph in the font, or none to be seen.
        most: characters; of a longer name the middle is left out, since names of one source begin alike.

    >>> drawn_name("ward-3-of-the-hospital-P0417", "subject 2", most=12)
    'ward-3…P0417'
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    if not name.isprintable() or not all(font.get_char_index(ord(sign)) for sign in name):
        return instead
    kept = most - 1
    return name if len(name) <= most else f"{name[: kept - kept // 2]}…{name[len(name) - kept // 2 :]}"


def numbered(subjects: Iterable[str]) -> dict[str, int]:
    """The number of every subject, from 1 in the order of their names: what stands for a name that cannot be drawn."""
    return {name: place for place, name in enumerate(sorted(set(subjects)), start=1)}


def plot_curves(curves: pd.DataFrame, best_epoch: int, path: Path, *, synthetic: bool) -> None:
    """Loss, and AUROC with accuracy by patient, over epochs."""
    figure = _figure(9, 3.8, "Training", synthetic=synthetic)
    left, right = figure.subplots(1, 2)
    for name, color, axes in (
        ("train_loss", GREY, left),
        ("validation_loss", BLUE, left),
        ("validation_auroc", BLUE, right),
        ("validation_subject_accuracy", RED, right),
    ):
        axes.plot(curves["epoch"], curves[name], color=color, marker=".", label=name.replace("_", " "))
    for axes in (left, right):
        axes.axvline(best_epoch, color="black", linewidth=0.8, linestyle=":", label="best epoch")
        axes.set_xlabel("epoch")
        axes.legend(fontsize=8)
    left.set_ylabel("cross-entropy")
    figure.savefig(path)


def plot_all(
    table: pd.DataFrame, metrics: dict[str, Any], packed: "Packed", network: "nn.Module", out: Path
) -> list[Path]:
    """Every picture of an evaluation, in `out`."""
    synthetic = bool(metrics["synthetic"])
    paths = plot_evaluation(table, metrics, out)
    more = [out / name for name in ("patients.png", "parts.png", "mistakes.png", "errors.png")]
    plot_patients(metrics, more[0])
    plot_parts(metrics, more[1])
    plot_mistakes(table, packed, more[2], synthetic=synthetic)
    plot_explained_errors(table, packed, network, more[3], synthetic=synthetic)
    return [*paths, *more]


def plot_evaluation(table: pd.DataFrame, metrics: dict[str, Any], out: Path) -> list[Path]:
    """Confusion matrix, ROC and reliability of the test cells."""
    from sklearn.metrics import confusion_matrix, roc_curve

    truth, blast = np.asarray(table["label"] == "all"), table["probability"].to_numpy()
    synthetic = bool(metrics["synthetic"])
    paths = [out / name for name in ("confusion.png", "roc.png", "reliability.png")]

    figure = _figure(4.2, 4, "Test cells", synthetic=synthetic)
    axes = figure.subplots()
    counts = confusion_matrix(truth, blast >= 0.5)
    axes.imshow(counts / counts.sum(axis=1, keepdims=True), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        dark = count > 0.5 * counts[row].sum()
        axes.text(column, row, str(count), ha="center", va="center", color="white" if dark else "black")
    axes.set(xticks=[0, 1], yticks=[0, 1], xticklabels=["hem", "all"], yticklabels=["hem", "all"])
    axes.set(xlabel="answer", ylabel="truth")
    figure.savefig(paths[0])

    figure = _figure(4.2, 4, "ROC, test cells", synthetic=synthetic)
    axes = figure.subplots()
    wrong, right, _ = roc_curve(truth, blast)
    area = metrics["cells"]["auroc"]
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    told = f"AUROC {fixed(area['value'])}\n95 % by patient {fixed(area['low'])} to {fixed(area['high'])}"
    axes.plot(wrong, right, color=BLUE, label=told)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(paths[1])

    figure = _figure(4.2, 4, "Reliability, test cells", synthetic=synthetic)
    axes = figure.subplots()
    bins = pd.DataFrame(reliability(blast, truth))
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
    axes.plot(bins["probability"], bins["share"], color=BLUE, linewidth=1)
    axes.scatter(bins["probability"], bins["share"], s=20 + 300 * bins["weight"], color=BLUE, alpha=0.6)
    before, after = (metrics["calibration"][name] for name in ("ece_before", "ece_after"))
    axes.set(xlabel="probability of a blast", ylabel="share of blasts", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(f"ECE {fixed(before)} before, {fixed(after)} after temperature", fontsize=8)
    figure.savefig(paths[2])
    return paths


def plot_patients(metrics: dict[str, Any], path: Path) -> None:
    """Share of each test patient's cells answered rightly, worst first, and the mean over each label.

    A patient is a group, of a label where it has cells of both: what the figures of `patients` are means over.
    """
    rows = pd.DataFrame(metrics["per_patient"])
    cells = rows.assign(right=rows["accuracy"] * rows["cells"]).groupby(["group", "label"])[["right", "cells"]].sum()
    patients = cells.assign(accuracy=cells["right"] / cells["cells"]).reset_index()
    patients = patients.sort_values(["accuracy", "group"], ignore_index=True)
    figure = _figure(9, 3.6, "Test patients", synthetic=bool(metrics["synthetic"]))
    axes = figure.subplots()
    for label, color, marker in (("all", RED, "o"), ("hem", BLUE, "s")):
        own = patients[patients["label"] == label]
        counted = f"{len(own)} patient{'s' if len(own) != 1 else ''}"
        axes.scatter(own.index, own["accuracy"], color=color, marker=marker, label=f"{label}, {counted}")
        axes.axhline(own["accuracy"].mean(), color=color, linewidth=0.8, linestyle=":")
    axes.set(xlabel="patients, worst first", ylabel="cells answered rightly", ylim=(-0.03, 1.03), xticks=[])
    axes.legend(fontsize=8, title="dotted: mean over patients", title_fontsize=8)
    figure.savefig(path)


def plot_parts(metrics: dict[str, Any], path: Path) -> None:
    """AUROC with its interval within every part of the test cells that has one."""
    rows = [
        (f"{kind.replace('_', ' ')}: {drawn_name(row['name'], f'row {place} of its table')}", row["figures"]["auroc"])
        for kind, parts in metrics["breakdown"].items()
        for place, row in enumerate(parts, start=1)
        if "auroc" in row["figures"]
    ]
    figure = _figure(9, 1.4 + 0.28 * len(rows), "AUROC within parts of the test cells", synthetic=metrics["synthetic"])
    axes = figure.subplots()
    whole = metrics["cells"]["auroc"]["value"]
    axes.axvline(whole, color=GREY, linewidth=0.8, linestyle=":", label=f"all test cells {fixed(whole)}")
    for place, (_, area) in enumerate(rows):
        axes.plot([area["low"], area["high"]], [place, place], color=BLUE, linewidth=1.5)
        axes.plot(area["value"], place, color=BLUE, marker="o", markersize=5)
    axes.set(xlim=(0, 1.02), xlabel="AUROC, 95 % interval by patient", ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=8, parse_math=False)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path)


def plot_mistakes(table: pd.DataFrame, packed: "Packed", path: Path, *, synthetic: bool, most: int = 24) -> None:
    """The cells that were wrong with the highest probability, worst first."""
    worst = certain_errors(table, most)
    figure = _figure(9, 5.6, f"Worst mistakes on test cells ({len(worst)} shown)", synthetic=synthetic)
    grid = figure.subplots(3, 8)
    for axes in grid.flat:
        axes.axis("off")
    rows = packed.rows_of(worst["path"].tolist())
    titles = _titles(worst, table)
    for axes, row, title, (_, cell) in zip(grid.flat, rows, titles, worst.iterrows(), strict=False):
        axes.imshow(packed.crops[row])
        told = f"{title}\n{cell['label']}, p {fixed(cell['probability'], 2)}"
        axes.set_title(told, fontsize=7, parse_math=False)
    figure.savefig(path)


def plot_explained_errors(
    table: pd.DataFrame, packed: "Packed", network: "nn.Module", path: Path, *, synthetic: bool, most: int = 12
) -> None:
    """The most certain errors, each beside the map of what spoke for the wrong answer (`blastwatch.explanation`)."""
    worst = certain_errors(table, most)
    title = f"The {len(worst)} most certain errors, and what spoke for the wrong answer"
    figure = _figure(11, 6, title if len(worst) else "No test cell was answered wrongly", synthetic=synthetic)
    network = network.cpu().eval()
    grid = figure.subplots(3, 8)
    for axes in grid.flat:
        axes.axis("off")
    rows = packed.rows_of(worst["path"].tolist())
    titles = _titles(worst, table)
    for (plain, under), row, title, (_, cell) in zip(grid.reshape(-1, 2), rows, titles, worst.iterrows(), strict=False):
        crop = np.asarray(packed.crops[row])
        heat, _target = heat_map(network, normalise(crop[None], packed.preprocessing))
        plain.imshow(crop)
        under.imshow(overlay(crop, heat))
        plain.set_title(f"{title}\nis {cell['label']}", fontsize=7, parse_math=False)
        under.set_title(f"blast with {fixed(cell['probability'])}", fontsize=7)
    figure.savefig(path)


def _titles(cells: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """The subject of each cell as its title names it; table: of all test cells, by whose subjects they are numbered."""
    number = numbered(table["subject"])
    return [drawn_name(name, f"subject {number[name]}", LONGEST_TITLE) for name in cells["subject"]]


def certain_errors(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """The cells answered wrongly at one half whose probability lies farthest from the truth, that one first."""
    gap = np.abs(table["probability"] - (table["label"] == "all"))
    wrong = (table["probability"] >= HALF) != (table["label"] == "all")
    return table.assign(gap=gap)[wrong].sort_values(["gap", "path"], ascending=[False, True]).head(most)
