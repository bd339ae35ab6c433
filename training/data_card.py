"""What an imported data set holds, in numbers: for a person, and for the model card."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from blastwatch import DISCLAIMER
from blastwatch.decision import CLASS_NAMES
from blastwatch.manifest import Cells
from training.audit import contradicting, read_audit, read_statistics
from training.oddities import background_told, without_background
from training.pages import render
from training.thumbnails import thumbnail

# By the beginning of the source's name.
LICENCES = {"C-NMC": "CC BY 3.0, The Cancer Imaging Archive, C-NMC 2019 (Gupta and Gupta), 10.7937/tcia.2019.dc64i46r"}
NOT_STATED = "not stated by the source"
STAIN = ("cell_area", "od_red", "od_green", "od_blue", "brightness", "focus")
SHEET = 12  # cells of each label on the sheet, of as many subjects


def data_card(cells: Cells, audit: Path | None = None) -> dict[str, Any]:
    """Counts by label, source, size and subject, with what the import says of itself; values are plain JSON.

    Args:
        audit: folder of the audit, which adds the stain and what is known of leaks.
    """
    card = _counted(cells)
    if audit is None:
        return card | {"stain": {}, "leaks": None}
    found = read_audit(audit, cells)
    subject = cells.rows.set_index("path")["subject"]
    apart = [finding for finding in found.findings if subject[finding.a] != subject[finding.b]]
    return card | {
        "stain": stain(cells.rows, read_statistics(audit)),
        "leaks": {
            "findings": pd.Series([finding.kind for finding in found.findings], dtype=str).value_counts().to_dict(),
            "between_subjects": len(apart),
            "two_labels": len(contradicting(found.findings, cells.rows)),
            "groups": [group for group in found.groups if len(group) > 1],
            "patients": len(found.groups),
            "odd": len({odd.path for odd in found.odd}),
            "without_background": without_background(found.odd),
        },
    }


def stain(rows: pd.DataFrame, statistics: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Of each look in `STAIN` the 5th, 50th and 95th percentile of cells, and the share of its variance that lies
    between subjects (eta squared), 0 to 1: near 1 a model could read the subject off it."""
    table = statistics.merge(rows[["path", "subject"]], on="path")
    out = {}
    for name in STAIN:
        values = table[name].to_numpy(np.float64)
        between = pd.Series(values).groupby(table["subject"]).transform("mean").to_numpy(np.float64)
        low, middle, high = np.quantile(values, [0.05, 0.5, 0.95]).tolist()
        whole = float(values.var())
        share = float(between.var()) / whole if whole > 0 else 0.0
        out[name] = {"low": low, "median": middle, "high": high, "between_subjects": share}
    return out


def write_data_page(cells: Cells, card: dict[str, Any], path: Path) -> Path:
    """Write the card as one HTML file with a sheet of cells, which needs no network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        render(
            "data.html",
            card=card,
            short=_short,
            sheet=_sheet(cells),
            disclaimer=DISCLAIMER,
            background_told=background_told,
        ),
        encoding="utf-8",
    )
    return path


def _sheet(cells: Cells) -> dict[str, list[tuple[str, str]]]:
    """By label, subjects with a picture of one of their cells: one cell a subject, then a second one of each."""
    rows = cells.rows.sort_values("pixel_sha256")  # an order that has nothing to do with what the cells show
    rows = rows.assign(turn=rows.groupby("subject").cumcount()).sort_values(["turn", "subject"])
    sheet = {}
    for label in CLASS_NAMES:
        shown = rows[rows["label"] == label].head(SHEET)
        pictures = [thumbnail(cells.root / path) for path in map(str, shown["path"])]
        sheet[label] = list(zip(map(str, shown["subject"]), pictures, strict=True))
    return sheet


def _counted(cells: Cells) -> dict[str, Any]:
    rows = cells.rows
    per_subject = rows.groupby("subject").size()
    per_subject_and_label = rows.groupby(["subject", "label"], as_index=False).agg(cells=("path", "size"))
    return {
        "folder": str(cells.folder),
        "kind": cells.facts["kind"],
        "synthetic": cells.synthetic,
        "digest": cells.digest,
        "images": len(rows),
        "refused": cells.facts["refused"],
        "skipped": cells.facts["skipped"],
        "decoder": cells.facts["decoder"],
        "labels": {
            label: {
                "cells": int((rows["label"] == label).sum()),
                "subjects": int(rows.loc[rows["label"] == label, "subject"].nunique()),
            }
            for label in CLASS_NAMES
        },
        "subjects": len(per_subject),
        "cells_per_subject": {
            "least": int(per_subject.min()),
            "median": float(per_subject.median()),
            "most": int(per_subject.max()),
        },
        "sources": _counts(rows["source"]),
        "licences": {
            source: "drawn: no rights of others" if cells.synthetic else _licence(source)
            for source in sorted(set(rows["source"]))
        },
        "sizes": _counts(rows["width"].astype(str) + "x" + rows["height"].astype(str)),
        "by_subject": per_subject_and_label.to_dict("records"),
    }


def data_card_text(card: dict[str, Any]) -> str:
    """The card as a few lines of text; the subjects one by one stand only in the JSON."""
    labels = ", ".join(f"{count['cells']} {label} of {count['subjects']}" for label, count in card["labels"].items())
    spread = card["cells_per_subject"]
    origin = "synthetic: no patient is behind these cells" if card["synthetic"] else "not synthetic"
    lines = [
        f"{card['folder']} ({card['kind']}), {origin}",
        f"cells      {card['images']}: {labels} subjects",
        f"subjects   {card['subjects']}, of {spread['least']} to {spread['most']} cells, median {spread['median']:g}",
        f"sources    {_told(card['sources'])}",
        *(f"licence    {source}: {licence}" for source, licence in card["licences"].items()),
        f"sizes      {_told(card['sizes'])}",
        f"refused    {card['refused']}",
        *_leaks_text(card),
        *([f"left aside {_told(card['skipped'])}"] if card["skipped"] else []),
        f"decoder    {card['decoder']}",
        f"digest     {card['digest']}",
    ]
    return "\n".join(lines)


def _licence(source: str) -> str:
    return next((licence for name, licence in LICENCES.items() if source.startswith(name)), NOT_STATED)


def _leaks_text(card: dict[str, Any]) -> list[str]:
    leaks = card["leaks"]
    if leaks is None:
        return ["leaks      not looked for: name the audit's folder with --audit"]
    stained = (
        f"{name} {_short(row['median'])} ({_short(row['low'])} to {_short(row['high'])})"
        for name, row in card["stain"].items()
    )
    groups = "; ".join(" = ".join(group) for group in leaks["groups"]) or "none"
    return [
        f"leaks      {sum(leaks['findings'].values())} pairs of images show one cell "
        f"({_told(leaks['findings']) or 'none'}), "
        f"{leaks['between_subjects']} of them between subjects, {leaks['two_labels']} under two labels",
        f"tied       {groups}; {leaks['patients']} groups of patients",
        f"odd        {leaks['odd']} images",
        *([f"beware     {told}"] if (told := background_told(leaks["without_background"])) else []),
        f"stain      {', '.join(stained)}",
    ]


def _short(value: float) -> str:
    """Three digits, and no exponent for what is large."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().sort_index().items()}


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
