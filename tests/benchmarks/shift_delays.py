"""How many shifted cells a stream has given before its window of the latest 200 cells alarms."""

import numpy as np
import pandas as pd

from tests.benchmarks.shift_windows import CELLS, FIELD_SHARE, PATIENTS, Deal, alarms, scored

STEPS = (10, 25, 50, 75, 100, 125, 150, 175, 200)  # shifted cells, the newest ones of the window
STREAMS = 60
NEVER = float("inf")


def delays(deal: Deal, rows: pd.DataFrame, name: str, strength: float, random) -> list[float]:
    """Of each stream the smallest of `STEPS` at which its window alarms, `NEVER` where none does.

    A stream is 200 cells of four held-out patients, one patient after the other; the newest are shifted.
    """
    held = rows[rows["group"].isin(deal.held) & rows["shifted"]]
    plain = held[held["shift"] == ""].drop_duplicates("path").reset_index(drop=True)
    if name == "field":
        changed = rows[rows["shift"] == "field"]
    else:
        changed = held[(held["shift"] == name) & (held["strength"] == strength)].drop_duplicates("path")
        changed = changed.set_index("path").loc[plain["path"]].reset_index()
    current = deal.model(pd.concat([plain, changed], ignore_index=True))
    windows = np.zeros((STREAMS, len(STEPS), len(current)))
    for stream in windows:
        before = cells_of(plain, deal.held, random)
        after = before + len(plain)
        if name == "field":
            replaced = random.random(CELLS) < FIELD_SHARE * strength
            after = np.where(replaced, len(plain) + random.integers(len(changed), size=CELLS), before)
        for window, newest in zip(stream, STEPS, strict=True):
            np.add.at(window, np.concatenate([before[: CELLS - newest], after[CELLS - newest :]]), 1)
    columns, scores = scored(deal, current, windows.reshape(-1, len(current)))
    alarmed = alarms(deal, columns, scores).reshape(STREAMS, len(STEPS))
    return [STEPS[int(row.argmax())] if row.any() else NEVER for row in alarmed]


def cells_of(plain: pd.DataFrame, held: list, random) -> np.ndarray:
    """Places of 200 cells: of four patients in turn, each as often as the others, oldest first."""
    of_group, parts = plain["group"].to_numpy(), []
    for name in random.choice(held, size=PATIENTS, replace=False):
        members = random.permutation(np.flatnonzero(of_group == name))
        parts.append(np.resize(members, CELLS // PATIENTS))
    return np.concatenate(parts)


def delay_table(found: dict[tuple[str, float], list[float]]) -> str:
    """Median and 95 % of the streams, by shift and strength."""
    strengths = sorted({strength for _, strength in found})
    heads = [f"at {strength:g}: half of the streams, 95 %" for strength in strengths]
    lines = ["| shift | " + " | ".join(heads) + " |", "|---" * (len(strengths) + 1) + "|"]
    for name in dict.fromkeys(name for name, _ in found):
        lines.append(f"| {name} | " + " | ".join(quantiles(found[name, strength]) for strength in strengths) + " |")
    return "\n".join(lines)


def quantiles(streams: list[float]) -> str:
    found = np.quantile(streams, (0.5, 0.95), method="higher")
    return ", ".join("never" if value == NEVER else f"{value:g}" for value in found)
