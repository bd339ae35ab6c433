"""Where the sequence of patients begins: it goes on from a place that stands, in blocks one after another.

Only the latest patients are looked at, and cells are deleted by age, so the first of them leave. A process that began
anew with whoever is first now would be another one at every look, and many of them alarm more often than one. So the
first patient of a block is kept in a file, and the process is over the patients from there on. Once that patient has
left, to make room or deleted, the block has ended with the last who was looked at, and the next begins behind them,
held against the reference and patients of blocks before it. The chance that a block of n patients alarms falsely is at
most n over what is needed, and so are those of all blocks together. A block has at most
`monitoring.patients.MOST_PATIENTS` patients, and fewer where fewer stay stored.
"""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from monitoring.patient_drift import Floats
from monitoring.patients import Came

MOST_BEFORE = 500
"""Values of patients of earlier blocks, of each column. They are taken by place and never changed for others: while
patients are exchangeable, so are they with whoever comes, which quantiles are not."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """Times of first cells are ISO 8601, and None while there is nobody yet. after: patients whose first cell came
    later are of the block; None for all. first: of its first patient. seen: the latest that was looked at. before: of
    each column the values of patients of earlier blocks, sorted."""

    after: str | None = None
    first: str | None = None
    seen: str | None = None
    before: dict[str, list[float]] = field(default_factory=dict)

    def counts(self, came: Came) -> NDArray[np.bool_]:
        """Who is of the block."""
        return behind(came, self.after)

    def baseline(self, name: str, reference: Floats) -> Floats:
        """What the block's patients are held against."""
        return np.concatenate([reference, self.before.get(name, [])])


def behind(came: Came, moment: str | None) -> NDArray[np.bool_]:
    """Whose first cell came later. By time and not by place, since who is stored late stands behind the others for a
    monitor that runs, and among them for one that starts anew."""
    if moment is None:
        return np.ones(len(came.first), dtype=np.bool_)
    return np.asarray(came.first > pd.Timestamp(moment), dtype=np.bool_)


def block_now(block: Block, came: Came, names: Collection[str]) -> Block:
    """The block once somebody came, or left.

    Args:
        names: columns whose patients so far are as known.
    """
    if came.first.empty:
        return block
    if block.first is not None and not (came.first == pd.Timestamp(block.first)).any():
        block = _next(block, came, names)
    newest = came.first.max()
    if block.first is None and block.after is not None and pd.Timestamp(block.after) > newest:
        # Who was the last is deleted, or was of a clock that ran ahead: who comes next is not to wait for that time.
        block = replace(block, after=newest.isoformat())
    of_block = came.first[block.counts(came)]
    if of_block.empty:
        return block
    return replace(block, first=block.first or of_block.iloc[0].isoformat(), seen=newest.isoformat())


def _next(block: Block, came: Came, names: Collection[str]) -> Block:
    """Behind all who were looked at. Nobody who came since then is among those that the next ones are held against."""
    left = came.rows[block.counts(came) & ~behind(came, block.seen)]
    before = {name: _with(block.before.get(name, []), left[name].dropna().to_numpy(np.float64)) for name in names}
    return Block(after=block.seen, before=before)


def _with(before: list[float], values: Floats) -> list[float]:
    """With values of others as far as there is room, evenly spaced."""
    room = min(MOST_BEFORE - len(before), len(values))
    chosen = values[np.linspace(0, len(values) - 1, room).round().astype(np.intp)] if room > 0 else values[:0]
    return sorted([*before, *(float(value) for value in chosen)])
