"""When a patient enters the comparison of challenger and champion, and with what: once, and for good.

A patient enters once, `SETTLE` after the first word on any of its labels, with the mean over its cells that had a label
at that moment, each with the label that it had then. What is said later, a late label or a correction, changes no
entry: the sequence of differences only grows, whoever looks and whenever, and that is what `blastwatch.sequential`
needs. Patients that enter at the same moment stand in the order of their hashed keys, which know nothing of the
outcome.

An image of a patient counts once, however often it was asked. The cell whose label had the first word stands for it:
what comes later cannot change which one that is. Without keys each image enters by itself, under its digest.

Entries are computed from the labelled cells and their labels at every look. Before any of these are deleted the entries
are written down (`keep_entries`), without what was said of a cell, and stand from then on as they were.
"""

import uuid
from collections.abc import Iterable
from datetime import datetime, timedelta

import pandas as pd
import sqlalchemy as sa

from monitoring.shadow_store import SAME, SHADOW, ShadowStore

SETTLE = timedelta(days=1)
"""From the first word on a patient's labels to the patient's entry: labels of one smear come together."""

PATIENT, CELL = "patient", "cell"
ORDERED_BY = 4  # first digits of a forgotten patient's key that keep its place among those of one moment

_entries = SHADOW.tables["shadow_entries"]


def unit_of(kept: pd.DataFrame, *, keyed: bool) -> str:
    """`patient` where any cell has a key, or had one. kept: from `ShadowStore.entries`. keyed: whether one has."""
    return PATIENT if keyed or (kept["unit"] == PATIENT).any() else CELL


def entries(
    cells: pd.DataFrame, words: pd.DataFrame, kept: pd.DataFrame, *, unit: str, at: datetime, settle: timedelta
) -> tuple[pd.DataFrame, int]:
    """The units that have entered before a moment, in their order.

    Args:
        cells: from `ShadowStore.read`, those with a label. words: from `ShadowStore.words`, oldest first.
        kept: from `ShadowStore.entries`.
        unit: `patient` (cells without a key are left out) or `cell`.

    Returns:
        Columns key, enters, difference; and how many units have a label but enter later.
    """
    names = ["key", "enters", "difference"]
    stand = kept[kept["unit"] == unit]
    known = once(cells[cells["patient"] != ""] if unit == PATIENT else cells, words)
    keys = known.set_index("id")["patient" if unit == PATIENT else "image"]
    # By the cell's own id, too: so were entries kept before images counted once.
    keys = keys[~(keys.isin(stand["key"]) | keys.index.isin(stand["key"]))]
    said = words[words["id"].isin(keys.index)].assign(key=lambda rows: rows["id"].map(keys))
    # Before `at` and not at it: so do words count, and one of that very moment would change what had entered.
    parts, waiting = [stand[stand["enters"] < pd.Timestamp(at)][names]], 0
    if len(said):
        enters = said.groupby("key")["time"].min() + settle
        in_time = said[said["time"] <= said["key"].map(enters)]
        judged = graded(known, in_time.groupby("id")["label"].last()).assign(key=lambda rows: rows["id"].map(keys))
        difference = (judged["challenger_right"] - judged["champion_right"]).groupby(judged["key"]).mean()
        table = pd.DataFrame({"enters": enters, "difference": difference}).rename_axis("key").reset_index()
        there = table["enters"] < pd.Timestamp(at)
        parts.append(table[there][names])
        waiting = int((~there).sum())
    filled = [part for part in parts if len(part)] or parts[:1]
    return pd.concat(filled).sort_values(["enters", "key"], ignore_index=True), waiting


def once(cells: pd.DataFrame, words: pd.DataFrame) -> pd.DataFrame:
    """Of the cells of each image of a patient the one whose label had the first word; none of an image without a label.

    Args:
        words: oldest first.
    """
    order = words["id"].drop_duplicates()
    return cells.set_index("id").reindex(order[order.isin(cells["id"])]).reset_index().drop_duplicates(SAME)


def graded(cells: pd.DataFrame, truth: "pd.Series[str]") -> pd.DataFrame:
    """The cells that have a label, with whether each version gave it (0 or 1)."""
    known = cells.assign(truth=cells["id"].map(truth)).dropna(subset=["truth"])
    return known.assign(
        **{
            f"{who}_right": (known[f"{who}_label"] == known["truth"]).astype(float)
            for who in ("champion", "challenger")
        }
    )


def keep_entries(store: ShadowStore, pairs: Iterable[tuple[str, str]], at: datetime) -> None:
    """Write down who has entered the comparisons of some pairs (digests of champion and challenger) by a moment; call
    it before labelled cells of theirs are deleted."""
    for champion, challenger in pairs:
        pair = {"champion": champion, "challenger": challenger}
        cells, kept = store.read(**pair, until=at, labelled=True), store.entries(**pair)
        unit = unit_of(kept, keyed=store.keyed(**pair, until=at))
        entered, _ = entries(cells, store.words(**pair, until=at), kept, unit=unit, at=at, settle=SETTLE)
        store.keep(entered[~entered["key"].isin(kept["key"])], unit=unit, **pair)


def forget_key(connection: sa.Connection, patient: str) -> None:
    """Take a patient's hashed key out of what was written down: what is left is a moment and a difference."""
    other = f"{patient[:ORDERED_BY]}-{uuid.uuid4().hex}"
    connection.execute(sa.update(_entries).where(_entries.c.key == patient).values(key=other))
