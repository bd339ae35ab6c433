"""What an imported data set holds, in numbers: for a person, and for the model card."""

from typing import Any

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.manifest import Cells


def data_card(cells: Cells) -> dict[str, Any]:
    """Counts by label, source, size and subject, with what the import says of itself; values are plain JSON."""
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
        f"sizes      {_told(card['sizes'])}",
        f"refused    {card['refused']}",
        *([f"left aside {_told(card['skipped'])}"] if card["skipped"] else []),
        f"decoder    {card['decoder']}",
        f"digest     {card['digest']}",
    ]
    return "\n".join(lines)


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().sort_index().items()}


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
