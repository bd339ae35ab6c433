"""Dealing groups of patients to the sides of a split or to folds: deterministic, balanced by label, size, source."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from blastwatch.decision import CLASS_NAMES
from blastwatch.errors import DataError

DEALS = 256


@dataclass(frozen=True)
class Unit:
    """What is dealt as a whole: cells, and the source that most of them come from."""

    cells: int
    source: str


def units_by_label(rows: pd.DataFrame) -> dict[str, dict[str, Unit]]:
    """The units of each label, a unit with cells of both counting where it has more.

    Args:
        rows: of the manifest, with the column `unit`.
    """
    counts = rows.groupby("unit")["label"].value_counts().unstack(fill_value=0).reindex(columns=list(CLASS_NAMES))
    label = counts.fillna(0).idxmax(axis=1)
    size = rows.groupby("unit").size()
    # The first of the most frequent sources; a group hardly ever has two.
    source = rows.groupby(["unit", "source"]).size().reset_index(name="cells")
    source = source.sort_values(["cells", "source"], ascending=[False, True]).drop_duplicates("unit").set_index("unit")
    return {
        name: {str(unit): Unit(int(size[unit]), str(source.at[unit, "source"])) for unit in label[label == name].index}
        for name in CLASS_NAMES
    }


def deal_labels(
    units: Mapping[str, Mapping[str, Unit]],
    fractions: Mapping[str, float],
    *,
    key: str,
    kept: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Deal the units of each label by themselves, so that every side gets its share of both.

    Args:
        units: by label, as `units_by_label` gives them. fractions: share of the cells by side; they add up to 1.
        kept: units that stay on their sides.

    Raises:
        DataError: where a label has fewer units than there are sides, or those that stay leave a side without it.
    """
    sides: dict[str, str] = {}
    for label, of_label in units.items():
        check_enough(label, len(of_label), len(fractions), f"side of the split ({', '.join(fractions)})")
        known = {unit: side for unit, side in (kept or {}).items() if unit in of_label}
        dealt = deal(of_label, fractions, key=f"{key}:{label}", kept=known)
        if empty := [side for side in fractions if side not in dealt.values()]:
            raise DataError(
                f"Expected groups of patients with the label {label} on every side but those that stay where they "
                f"were leave none for {', '.join(empty)}. Import more patients, or split anew with split.keep empty."
            )
        sides |= dealt
    return sides


def check_enough(label: str, groups: int, needed: int, each: str) -> None:
    """Raise `DataError` where a label has fewer groups of patients than there are sides, or folds, to deal them to."""
    if groups < needed:
        fewer = ", or set fewer split.folds" if each == "fold" else ""
        raise DataError(
            f"Expected at least {needed} groups of patients with the label {label}, one for each {each}, but got "
            f"{groups}. Import more patients{fewer}."
        )


def deal(
    units: Mapping[str, Unit], fractions: Mapping[str, float], *, key: str, kept: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Put units on sides, so that numbers of units and of cells, of every source, all follow the fractions.

    The number of units a side gets is fixed by the fractions, at least one each. Of `DEALS` shuffles the one is kept
    whose cells come nearest to the fractions. Each shuffle sorts the units by a hash of key, number and name, so the
    order in which they come and the version of a random generator do not matter.

    Args:
        units: at least as many as sides. kept: units that stay where they are.
    """
    held = dict(kept or {})
    free = [name for name in units if name not in held]
    already = [sum(side == name for side in held.values()) for name in fractions]
    quotas = quota(len(free), list(fractions.values()), already)
    best: tuple[float, dict[str, str]] = (math.inf, {})
    for number in range(DEALS if max(unit.cells for unit in units.values()) > 1 else 1):  # single cells are all alike
        order = sorted(free, key=lambda unit: hashlib.sha256(f"{key}:{number}:{unit}".encode()).digest())
        sides, start = dict(held), 0
        for side, wanted in zip(fractions, quotas, strict=True):
            sides |= dict.fromkeys(order[start : start + wanted], side)
            start += wanted
        error = _imbalance(units, sides, fractions)
        if error < best[0]:
            best = (error, sides)
    return best[1]


def _imbalance(units: Mapping[str, Unit], sides: Mapping[str, str], fractions: Mapping[str, float]) -> float:
    """Cells that are on another side than the fractions ask for, summed over sides and sources."""
    cells: dict[tuple[str, str], int] = {}
    of_source: dict[str, int] = {}
    for name, unit in units.items():
        place = unit.source, sides[name]
        cells[place] = cells.get(place, 0) + unit.cells
        of_source[unit.source] = of_source.get(unit.source, 0) + unit.cells
    return sum(
        abs(cells.get((source, side), 0) - fraction * total)
        for source, total in of_source.items()
        for side, fraction in fractions.items()
    )


def quota(units: int, fractions: Sequence[float], already: Sequence[int] | None = None) -> list[int]:
    """Share out a number of units by fractions that add up to 1, at least one each, by largest remainder.

    Where two are equally far behind, the later gets the unit: the test side comes last, and its patients are the proof.

    Args:
        already: units that each has; what is shared out comes on top.

    >>> quota(12, [0.55, 0.15, 0.15, 0.15])
    [6, 2, 2, 2]
    >>> quota(11, [0.55, 0.15, 0.15, 0.15])
    [6, 1, 2, 2]
    >>> quota(4, [0.55, 0.15, 0.15, 0.15])
    [1, 1, 1, 1]
    >>> quota(4, [0.55, 0.15, 0.15, 0.15], already=[6, 2, 1, 1])
    [2, 0, 1, 1]
    """
    held = list(already or [0] * len(fractions))
    total = units + sum(held)
    if total < len(fractions):
        raise ValueError(f"Expected at least {len(fractions)} units but got {total}")
    shares = list(held)
    for _ in range(units):
        behind = [
            (share == 0, fraction * total - share, index)
            for index, (fraction, share) in enumerate(zip(fractions, shares, strict=True))
        ]
        shares[max(behind)[-1]] += 1
    return [share - before for share, before in zip(shares, held, strict=True)]
