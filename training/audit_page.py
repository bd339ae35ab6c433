"""`audit.html`: every finding of the audit with its two images side by side, in one file that needs no network."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from blastwatch import DISCLAIMER
from blastwatch.decision import CLASS_NAMES
from blastwatch.manifest import Cells
from training.audit import Audit, Finding, contradicting, crossing
from training.oddities import background_told, without_background
from training.pages import render
from training.thumbnails import thumbnail

PAGE = "audit.html"
PICTURED = 1000  # findings that are shown with pictures, and as many oddities; audit.json names all

EXPLAINED = {
    "label": "Equal pixels under two labels: one label is wrong. No split is made before this is mended.",
    "exact": "Equal pixels, whatever the files say.",
    "near": "One cell in two images: saved anew, rescaled, turned, or photographed twice. The score is the correlation "
    "of the detail inside the cell, 0 to 1.",
    "subject": "One subject on two sides of the split.",
}


@dataclass(frozen=True)
class Picture:
    path: str
    subject: str
    label: str
    side: str
    image: str


@dataclass(frozen=True)
class Shown:
    """A finding with its pictures; crosses: it lies on two sides of the split; apart: it ties two subjects;
    contradicts: the two carry two labels."""

    finding: Finding
    pictures: tuple[Picture, Picture]
    crosses: bool
    apart: bool
    contradicts: bool


def write_page(audit: Audit, cells: Cells, out: Path, *, split: pd.DataFrame | None = None) -> Path:
    """Draw the page; what carries two labels comes first, then what crosses the split, what ties subjects, and the
    least alike.

    Args:
        split: rows of `blastwatch.manifest.read_split` that the findings were held against.
    """
    facts = cells.rows.set_index("path")
    sides = dict(zip(split["path"], split["side"], strict=True)) if split is not None else {}
    crossed = {(found.a, found.b) for found in crossing(audit.shown, split)} if split is not None else set()
    disputed = {(found.a, found.b) for found in contradicting(audit.findings, cells.rows)}
    subject = facts["subject"].to_dict()
    order = sorted(
        audit.shown,
        key=lambda found: (
            (found.a, found.b) not in disputed,
            (found.a, found.b) not in crossed,
            subject[found.a] == subject[found.b],
            found.score,
        ),
    )[:PICTURED]
    all_odd = sorted({odd.path for odd in audit.odd})
    odd = all_odd[:PICTURED]
    images = _thumbnails(cells, {name for found in order for name in (found.a, found.b)} | set(odd))

    def picture(path: str) -> Picture:
        row = facts.loc[path]
        return Picture(path, str(row["subject"]), str(row["label"]), sides.get(path, ""), images[path])

    shown = [
        Shown(
            found,
            (picture(found.a), picture(found.b)),
            (found.a, found.b) in crossed,
            subject[found.a] != subject[found.b],
            (found.a, found.b) in disputed,
        )
        for found in order
    ]
    text = render(
        "audit.html",
        audit=audit,
        cells=cells,
        disclaimer=DISCLAIMER,
        tied=[group for group in audit.groups if len(group) > 1],
        kinds={
            kind: (
                why,
                sum(found.kind == kind for found in audit.shown),
                [s for s in shown if s.finding.kind == kind],
            )
            for kind, why in EXPLAINED.items()
        },
        crossing=len(crossed) if split is not None else None,
        disputed=len(disputed),
        no_background=background_told(without_background(audit.odd)),
        number_odd=len(all_odd),
        apart=sum(subject[found.a] != subject[found.b] for found in audit.findings),
        odd=[(picture(path), [odd for odd in audit.odd if odd.path == path]) for path in odd],
        counts=[
            (label, int(of_label.shape[0]), int(of_label["subject"].nunique()))
            for label in CLASS_NAMES
            for of_label in (cells.rows[cells.rows["label"] == label],)
        ],
        subjects=cells.rows.groupby(["subject", "label"]).size().reset_index(name="cells").itertuples(index=False),
    )
    (out / PAGE).write_text(text, encoding="utf-8")
    return out / PAGE


def _thumbnails(cells: Cells, paths: set[str]) -> dict[str, str]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(sorted(paths), pool.map(lambda name: thumbnail(cells.root / name), sorted(paths)), strict=True))
