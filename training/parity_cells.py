"""On which cells engines are compared with float32, and which of the calibration side are left to fit them on."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

FEWEST_COMPARED = 100
"""Cells below which some that int8 is calibrated on are compared on too, if there are no others."""


@dataclass(frozen=True)
class ParityCells:
    """Rows of a split.

    compared: cells to compare engines on. ranges: calibration cells that int8 takes its ranges from. most: cells to
    compare on that were asked for.
    """

    compared: pd.DataFrame
    ranges: pd.DataFrame
    most: int

    def others(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Of some rows those that are not compared on."""
        return rows[~rows["path"].isin(self.compared["path"])].reset_index(drop=True)

    def told(self) -> str:
        """On which cells the engines were compared, in sentences for the card.

        The sides are named and no patients: a split by image has cells of one patient on several.
        """
        sides = self.compared["side"].value_counts()
        tested, filled = (int(sides.get(side, 0)) for side in ("test", "calibration"))
        again = int(self.compared["path"].isin(self.ranges["path"]).sum())
        if not filled:
            return f"Compared on {tested} test cells, on which nothing of an engine was fitted."
        told = (
            f"Compared on {tested} test cells and, since these are fewer than {self.most}, {filled} calibration cells"
        )
        if not again:
            return f"{told}. Nothing of an engine was fitted on any of them."
        return f"{told}. On {again} of them int8 was calibrated, on the others nothing of an engine was fitted."


def deal_parity(rows: pd.DataFrame, *, most: int, ranges: int, random: np.random.Generator) -> ParityCells:
    """Choose the compared cells first, so that nothing need be fitted on them.

    They are test cells, filled up with calibration cells. Of these int8 keeps so many as it wants, but half of them
    are left to compare on where they are few: on 100 cells an engine that flips three labels of a hundred passes for
    one that flips one in a fifth of all draws, on 500 in 0.3 %.

    Args:
        rows: with path and side. most: cells to compare on. ranges: calibration cells that int8 wants.
    """
    known = rows[rows["side"] == "calibration"]
    compared = some(rows[rows["side"] == "test"], most, random)
    lacking = most - len(compared)
    fresh = some(known, min(lacking, max(len(known) - ranges, len(known) // 2)), random)
    rest = known[~known["path"].isin(fresh["path"])]
    own = some(rest, ranges, random)
    again = some(own, max(0, min(FEWEST_COMPARED, most) - len(compared) - len(fresh)), random)
    parts = [part for part in (compared, fresh, again) if len(part)]
    return ParityCells(pd.concat(parts, ignore_index=True), own, most)


def some(rows: pd.DataFrame, most: int, random: np.random.Generator) -> pd.DataFrame:
    """All rows, or so many drawn of them, in their order."""
    if len(rows) > most:
        rows = rows.iloc[np.sort(random.choice(len(rows), most, replace=False))]
    return rows.reset_index(drop=True)
