"""Challenger against champion on the cells that both read: agreement, and the comparison on labels that came later.

The unit of the comparison is the patient, because cells of one patient are not independent; when one enters, and with
what, is said in `monitoring.shadow_entries`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from blastwatch import DISCLAIMER
from blastwatch.entry import Entry
from blastwatch.sequential import ALPHA, MARGIN, UNDECIDED, Look, follow, verdict
from monitoring.shadow_entries import CELL, PATIENT, SETTLE, entries, graded, once, unit_of
from monitoring.shadow_store import ShadowStore

UNSEEN = (
    "neither version learned from any of these patients (an image that one of them learned from is left out; of other "
    "images of the same patients nobody knows)"
)
ASSUMES = {
    PATIENT: f"{UNSEEN}; patients are independent, and the order in which their labels come says nothing of the "
    "difference",
    CELL: f"{UNSEEN}; cells are independent, which cells of one patient are not: too sure of itself where patients "
    "have several",
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What was settled before the first look; other rules make another comparison, with an error of its own."""

    margin: float = MARGIN
    alpha: float = ALPHA
    settle: timedelta = SETTLE


def report(
    store: ShadowStore, champion: Entry, challenger: Entry, *, at: datetime, rules: Rules | None = None
) -> dict[str, Any]:
    """All that is known of a pair at a moment, as one JSON object.

    Args:
        at: rows and labels from then on are left out.
    """
    rules = rules or Rules()
    pair = {"champion": champion.digest, "challenger": challenger.digest}
    counts, cells = store.counts(**pair, until=at), store.read(**pair, until=at, labelled=True)
    words = store.words(**pair, until=at)
    kept = store.entries(**pair) if rules.settle == SETTLE else store.entries(**pair).head(0)
    unit = unit_of(kept, keyed=any(row["keyed"] for row in counts))
    return {
        "champion": {"version": champion.version, "digest": champion.digest, "synthetic": champion.synthetic},
        "challenger": {"version": challenger.version, "digest": challenger.digest, "synthetic": challenger.synthetic},
        "at": at.astimezone(UTC).isoformat(),
        **_agreement(counts, read=store.count(**pair, until=at)),
        "labelled": _labelled(cells, words),
        "comparison": _comparison(cells, words, kept, unit, at, rules),
        "disclaimer": DISCLAIMER,
    }


def _agreement(counts: Sequence[sa.RowMapping], *, read: int) -> dict[str, Any]:
    """How alike the two answer, without any label. counts, read: from `ShadowStore.counts` and `.count`."""
    labels: Counter[tuple[str, str]] = Counter()
    decisions: Counter[tuple[str, str]] = Counter()
    for row in counts:
        labels[row["champion_label"], row["challenger_label"]] += row["cells"]
        decisions[row["champion_decision"], row["challenger_decision"]] += row["cells"]
    cells = labels.total()
    same = sum(number for (ours, theirs), number in labels.items() if ours == theirs)
    return {
        "cells": cells,
        "repeated": read - cells,
        "since": min(row["since"] for row in counts).isoformat() if cells else None,
        "until": max(row["until"] for row in counts).isoformat() if cells else None,
        "agreement": same / cells if cells else None,
        "flips": {"hem_to_all": labels["hem", "all"], "all_to_hem": labels["all", "hem"]},
        "probability_difference": {
            "mean": sum(row["difference"] for row in counts) / cells if cells else None,
            "mean_absolute": sum(row["distance"] for row in counts) / cells if cells else None,
            "largest": max(row["largest"] for row in counts) if cells else None,
        },
        "decisions": [
            {"champion": ours, "challenger": theirs, "cells": number}
            for (ours, theirs), number in sorted(decisions.items())
        ],
    }


def _labelled(cells: pd.DataFrame, words: pd.DataFrame) -> dict[str, Any]:
    """Accuracy of both by the labels as they stand now, each image of a patient once, patients weighing the same."""
    known = graded(once(cells, words), words.groupby("id")["label"].last())
    named = known[known["patient"] != ""]
    patients = named.groupby("patient")[["champion_right", "challenger_right"]].mean()
    counts = named.groupby("patient").size()

    def means(frame: pd.DataFrame) -> dict[str, float | None]:
        return {who: float(frame[f"{who}_right"].mean()) if len(frame) else None for who in ("champion", "challenger")}

    return {
        "cells": len(known),
        "cells_without_patient": len(known) - len(named),
        "patients": len(patients),
        "accuracy_by_cell": means(known),
        "accuracy_by_patient": means(patients),
        "per_patient": [
            {
                "patient": key,
                "cells": int(counts[key]),
                "champion": row.champion_right,
                "challenger": row.challenger_right,
            }
            for key, row in zip(patients.index, patients.itertuples(index=False), strict=True)
        ],
    }


def _comparison(
    cells: pd.DataFrame, words: pd.DataFrame, kept: pd.DataFrame, unit: str, at: datetime, rules: Rules
) -> dict[str, Any]:
    """The sequential test, and its state at the end of each day on which a unit entered."""
    entered, waiting = entries(cells, words, kept, unit=unit, at=at, settle=rules.settle)
    moments = entered["enters"].tolist()
    # One look a moment: what entered at one moment came together, and no order within it can be chosen afterwards.
    looks = [count for count, moment in enumerate(moments, 1) if count == len(moments) or moments[count] != moment]
    history = follow(entered["difference"].to_numpy(np.float64), looks=looks, margin=rules.margin, alpha=rules.alpha)
    last = history[-1] if history else None
    days = {moments[look.units - 1].date(): look for look in history}
    return {
        "unit": unit,
        "assumes": ASSUMES[unit],
        "margin": rules.margin,
        "alpha": rules.alpha,
        "settle_hours": rules.settle.total_seconds() / 3600,
        "e_needed": 2 / rules.alpha,
        "verdict": verdict(last, margin=rules.margin) if last else UNDECIDED,
        "units_waiting": waiting,
        **_state(last),
        "history": [{"day": day.isoformat(), **_state(look)} for day, look in days.items()],
    }


def _state(look: Look | None) -> dict[str, Any]:
    found = look or Look(units=0, mean=0.0, better=1.0, worse=1.0, p_better=1.0, p_worse=1.0, low=-1.0, high=1.0)
    value = asdict(found)
    return {
        "units": value["units"],
        "difference": {"mean": value["mean"] if look else None, "low": value["low"], "high": value["high"]},
        "better": {"e": value["better"], "p": value["p_better"]},
        "worse": {"e": value["worse"], "p": value["p_worse"]},
    }
