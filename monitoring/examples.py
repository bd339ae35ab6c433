"""Example cells of an alarm: the nearest and the farthest from the reference, in the window and from before the drift.

Only cells whose picture is kept can be shown (`monitoring.image_capture`). Near and far is the distance to the nearest
cells of the reference in the embedding, as for the cells to label next (`monitoring.review`).
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from blastwatch.package import Package
from blastwatch.settings import Settings
from monitoring.image_store import ImageStore, open_image_store
from monitoring.review import unlikeness
from monitoring.statistics import STATISTICS
from monitoring.store import Store
from monitoring.windows import FURTHEST, once

EACH = 4  # cells of a kind that are shown
AMONG = 500  # latest pictures of a span to choose from, each image of a patient once
KNOWN = (0.05, 0.95)  # quantiles of the reference between which a value counts as known
_MOMENT = timedelta(microseconds=1)  # a report names the times of its oldest and its newest cell


@dataclass(frozen=True, kw_only=True)
class Examples:
    """document: for the page; pictures: the PNG files of the cells in it, by id."""

    document: dict[str, Any]
    pictures: dict[str, bytes] = field(default_factory=dict)


class ExampleCells:
    """Chooses example cells; opens the database of predictions when it first has to."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._images: ImageStore | None = None

    def choose(
        self, store: Store, package: Package, report: dict[str, Any] | None, *, calm_until: str | None
    ) -> Examples:
        """Choose for what the page says now.

        Args:
            report: the document of the last report on this version; None where there is none.
            calm_until: with drift, time of the newest cell in the last report before it (ISO 8601); None for none.
        """
        kinds: dict[str, Any] = {"now": None, "before": None}
        document = {"policy": self._settings.keep_images, "statistic": None, **kinds}
        if report is None:
            return Examples(document=document)
        window = {name: datetime.fromisoformat(report["window"][name]) for name in ("since", "until")}
        spans = {"now": {"since": window["since"], "until": window["until"] + _MOMENT}}
        if report["drifted"] and calm_until is not None:
            spans["before"] = {"until": datetime.fromisoformat(calm_until) + _MOMENT}
        cells = {
            kind: once(store.read(model_digest=package.digest, pictured=True, limit=AMONG * FURTHEST, **span)).tail(
                AMONG
            )
            for kind, span in spans.items()
        }
        if all(frame.empty for frame in cells.values()):
            return Examples(document=document)
        reference = package.reference()
        moved = _statistic(report)
        document["statistic"] = moved and {"name": moved, "known": _known(reference.cells[moved])}
        document |= {kind: _ends(frame, reference.answered, moved) for kind, frame in cells.items()}
        shown = [cell["id"] for kind in kinds for end in (document[kind] or {}).values() for cell in end]
        self._images = self._images or open_image_store(self._settings.predictions_url)
        return Examples(document=document, pictures=self._images.pictures(shown))

    def close(self) -> None:
        """Give the database back."""
        if self._images is not None:
            self._images.close()


def _statistic(report: dict[str, Any]) -> str | None:
    """With drift, the image statistic that is farthest beyond its threshold, or nearest to it."""
    moved = [
        (column["score"] / column["threshold"], column["name"])
        for column in report["columns"]
        if report["drifted"] and column["name"] in STATISTICS
    ]
    return max(moved)[1] if moved else None


def _known(values: pd.Series) -> list[float]:
    return [float(value) for value in values.quantile(list(KNOWN))]


def _ends(cells: pd.DataFrame, reference: pd.DataFrame, moved: str | None) -> dict[str, list[dict[str, Any]]] | None:
    """The farthest and the nearest of the cells, none of them twice; None without cells."""
    if cells.empty:
        return None
    distance, unlike = unlikeness(cells, reference)
    order = distance.argsort(kind="stable")[::-1]
    half = min(EACH, -(-len(order) // 2))
    ends = {"farthest": order[:half], "nearest": order[half:][::-1][:half]}
    return {end: [_cell(cells.iloc[row], float(unlike[row]), moved) for row in rows] for end, rows in ends.items()}


def _cell(row: pd.Series, unlike: float, moved: str | None) -> dict[str, Any]:
    return {
        "id": row["id"],
        "time": row["time"].isoformat(),
        "label": row["label"],
        "probability": float(row["probability"]),
        "decision": row["decision"],
        "unlike": unlike,
        # A row of a Blastwatch before that statistic has none.
        "value": None if moved is None or np.isnan(row[moved]) else float(row[moved]),
    }
