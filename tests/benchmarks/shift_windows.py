"""Windows of shifted cells against a reference of other patients: alarms, and the causes that are named first."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.images import Preprocessing, crop_cell, decode
from monitoring.calibration import calibrate, thresholds_for
from monitoring.scores import EMBEDDING_SCORE, EVIDENTLY_DEFAULT, METHODS, Scorer
from monitoring.signatures import CAUSES, NEAR, UNKNOWN, measure_signatures, rank, transform
from monitoring.store import EMBEDDING

CELLS, PATIENTS = 200, 4
WINDOWS, CALM_WINDOWS = 60, 400
REFERENCE_CELLS, HELD_CELLS = 80, 50  # of each patient
FEWEST_CELLS = 30  # of a patient who is held out
LEARN, REFERENCE = 0.28, 0.36  # shares of the patients; the rest is held out
FIELD_SHARE = 0.2  # of the window, at strength 1
POWER = 0.95
MIX = "disease_mix"
SEEN = Preprocessing(crop=320, size=128)


@dataclass
class Deal:
    """One dealing of the patients: a model, a reference with its thresholds, and who is held out."""

    model: object
    reference: pd.DataFrame
    thresholds: dict
    held: list


@dataclass
class Found:
    """Of one shift at one strength, over windows: our alarms, Evidently's, and the cause named first at ours."""

    ours: list
    any_column: list
    half_the_columns: list
    named: Counter


def tables(rows: pd.DataFrame, *, deals: int, plot: Path | None, rate: float) -> str:
    found = defaultdict(lambda: Found([], [], [], Counter()))
    kinds = [name for name in dict.fromkeys(rows["shift"]) if name not in ("", "field")]
    strengths = sorted(set(rows.loc[rows["shift"].isin(kinds), "strength"]))
    for number in range(deals):
        random = np.random.default_rng(number)
        deal = dealt(rows, random, rate)
        signatures = signatures_of(deal.reference)
        look(deal, rows, "", 0.0, CALM_WINDOWS, random, found["", 0.0], signatures)
        for name in (*kinds, MIX, "field"):
            for strength in strengths:
                look(deal, rows, name, strength, WINDOWS, random, found[name, strength], signatures)
    if plot:
        draw_power(found, strengths, plot)
    return "\n\n".join(
        (calm_line(found["", 0.0], deals, rate), power_table(found, strengths), cause_table(found, strengths))
    )


class LinearModel:
    """Logistic regression and principal axes of the image statistics, in place of the network and its embedding."""

    def __init__(self, rows: pd.DataFrame) -> None:
        from sklearn.linear_model import LogisticRegression

        values = transform(rows)
        self.mean, self.std = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-3)
        scaled = (values - self.mean) / self.std
        self.regression = LogisticRegression(C=0.1, max_iter=500).fit(scaled, rows["label"] == "all")
        self.axes = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)[2]

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        scaled = (transform(rows) - self.mean) / self.std
        embedding = np.zeros((len(rows), len(EMBEDDING)))
        embedding[:, : len(self.axes)] = scaled @ self.axes.T
        answers = pd.DataFrame(embedding, columns=list(EMBEDDING))
        answers["probability"] = self.regression.predict_proba(scaled)[:, 1]
        return pd.concat([rows.reset_index(drop=True), answers], axis=1)


def dealt(rows: pd.DataFrame, random: np.random.Generator, rate: float) -> Deal:
    """A dealing, with thresholds for a rate of false alarms."""
    plain = rows[rows["shift"] == ""]
    names = random.permutation(sorted(plain["group"].unique()))
    first, second = round(len(names) * LEARN), round(len(names) * (LEARN + REFERENCE))
    model = LinearModel(plain[plain["group"].isin(names[:first])])
    known = plain[plain["group"].isin(names[first:second])].groupby("group").head(REFERENCE_CELLS)
    reference = model(known)
    thresholds = thresholds_for(calibrate(reference, window_sizes=(CELLS,), false_alarm_rate=rate), CELLS)
    counts = plain["group"].value_counts()
    held = [name for name in names[second:] if counts[name] >= FEWEST_CELLS]
    return Deal(model, reference, thresholds, held)


def signatures_of(reference: pd.DataFrame) -> dict:
    """As packaging measures them; only the crops that are shifted are read, all of the statistics are used."""
    some = reference.groupby("group").head(2).reset_index(drop=True)
    crops = np.stack([crop_cell(decode(Path(path).read_bytes()), SEEN) for path in some["path"]])
    rest = reference[~reference["path"].isin(some["path"])]
    ordered = pd.concat([some, rest], ignore_index=True)
    return measure_signatures(ordered, Lazy(crops, len(ordered)), SEEN, cells=len(some))


class Lazy:
    """Stands for the crops of all rows, of which few were read: another one of those is given for a row without. Before
    and after a shift the same crop is measured, so a movement is that of the crops that were read."""

    def __init__(self, crops: np.ndarray, length: int) -> None:
        self.crops, self.length = crops, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, chosen):
        return self.crops[np.asarray(chosen) % len(self.crops)]


def look(deal, rows: pd.DataFrame, name: str, strength: float, count: int, random, found: Found, signatures) -> None:
    """Draw windows of one shift and score them."""
    image_shift = name if name not in (MIX, "field") else ""
    pool = rows[rows["group"].isin(deal.held) & rows["shifted"] & (rows["shift"] == image_shift)]
    if image_shift:
        pool = pool[pool["strength"] == strength]
    fields = rows[rows["shift"] == "field"].head(0 if name != "field" else None)
    current = deal.model(pd.concat([pool, fields], ignore_index=True))
    windows = np.zeros((count, len(current)))
    for row in range(count):
        groups = patients_of(pool, deal.held, strength if name == MIX else 0.0, random)
        windows[row] = draw(pool, len(fields), groups, strength, random)
    columns, scores = scored(deal, current, windows)
    defaults = np.array([EVIDENTLY_DEFAULT[METHODS[column]] for column in columns])
    alarmed = alarms(deal, columns, scores)
    found.ours += list(alarmed)
    beyond = scores >= defaults
    found.any_column += list(beyond.any(axis=1))
    single = [index for index, column in enumerate(columns) if column != EMBEDDING_SCORE]
    found.half_the_columns += list(beyond[:, single].mean(axis=1) >= 0.5)
    means = windows @ transform(current) / CELLS
    for mean in means[alarmed]:
        word, cosine = rank(signatures, mean)[0]
        found.named[word if cosine >= NEAR else UNKNOWN] += 1


def scored(deal: Deal, current: pd.DataFrame, windows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of the scores, and those of each window (windows, scores), given how often each cell is in each."""
    both = pd.concat([deal.reference, current], ignore_index=True)
    both["group"] = ["reference"] * len(deal.reference) + ["current"] * len(current)
    counts = np.zeros((len(windows), len(both)))
    counts[:, len(deal.reference) :] = windows
    sides = np.zeros_like(counts)
    sides[:, : len(deal.reference)] = 1
    scorer = Scorer(both)
    return list(scorer.columns), scorer(counts, sides)


def alarms(deal: Deal, columns: list[str], scores: np.ndarray) -> np.ndarray:
    limits = np.array([deal.thresholds.get(column, np.inf) for column in columns])
    return (scores >= limits).any(axis=1)


def patients_of(pool: pd.DataFrame, held: list, healthier: float, random) -> list:
    """Four patients by chance; each with leukemia gives way to a healthy one with the given probability."""
    chosen = list(random.choice(held, size=PATIENTS, replace=False))
    if not healthier:
        return chosen
    healthy = set(pool.loc[pool["label"] == "hem", "group"])
    spare = [name for name in random.permutation(sorted(healthy)) if name not in chosen]
    for place, name in enumerate(chosen):
        if name not in healthy and spare and random.random() < healthier:
            chosen[place] = spare.pop()
    return chosen


def draw(pool: pd.DataFrame, fields: int, groups: list, strength: float, random) -> np.ndarray:
    """How often each row of the pool, and each field after them, is in the window."""
    counts = np.zeros(len(pool) + fields)
    strangers = round(CELLS * FIELD_SHARE * strength) if fields else 0
    np.add.at(counts, len(pool) + random.choice(max(fields, 1), strangers, replace=False), 1)
    of_group = pool["group"].to_numpy()
    for number, name in enumerate(groups):
        members = np.flatnonzero(of_group == name)
        share = (CELLS - strangers) // len(groups) + (number < (CELLS - strangers) % len(groups))
        rounds, rest = divmod(share, len(members))
        counts[members] += rounds
        counts[random.permutation(members)[:rest]] += 1
    return counts


def calm_line(found: Found, deals: int, rate: float) -> str:
    shares = [100 * np.mean(part) for part in (found.ours, found.any_column, found.half_the_columns)]
    return (
        f"{len(found.ours)} windows of {CELLS} cells without shift, {PATIENTS} patients each, {deals} deals: "
        f"calibrated {shares[0]:.1f} % alarm (stated {100 * rate:.2g}), Evidently's defaults {shares[1]:.1f} % (any "
        f"column) and {shares[2]:.1f} % (half of the columns)"
    )


def power_table(found: dict, strengths: list) -> str:
    lines = ["| shift | " + " | ".join(f"{value:g}" for value in strengths) + " | smallest with 95 % | half of the "
             "columns beyond Evidently's defaults |", "|---" * (len(strengths) + 3) + "|"]  # fmt: skip
    for name in CAUSES:
        powers = [np.mean(found[name, strength].ours) for strength in strengths]
        enough = next((f"{value:g}" for value, power in zip(strengths, powers, strict=True) if power >= POWER), "none")
        theirs = " / ".join(f"{100 * np.mean(found[name, value].half_the_columns):.0f}" for value in strengths)
        lines.append(f"| {name} | " + " | ".join(f"{100 * p:.0f}" for p in powers) + f" | {enough} | {theirs} |")
    return "\n".join(lines)


def draw_power(found: dict, strengths: list, path: Path) -> None:
    """The curves of `power_table`; no image of a cell is in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for number, name in enumerate(CAUSES):
        powers = [100 * np.mean(found[name, strength].ours) for strength in strengths]
        axes.plot(strengths, powers, "-o" if number < 5 else "--s", markersize=4, label=name.replace("_", " "))
    axes.axhline(100 * POWER, color="0.6", linewidth=0.8)
    axes.set(xlabel="strength", ylabel=f"windows of {CELLS} cells that alarm, %", ylim=(0, 102), xlim=(0, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)


def cause_table(found: dict, strengths: list) -> str:
    words = [*dict.fromkeys(cause.word for cause in CAUSES.values()), UNKNOWN]
    lines = ["| shift, all strengths | alarms | " + " | ".join(words) + " | right |", "|---" * (len(words) + 3) + "|"]
    for name, cause in CAUSES.items():
        named = sum((found[name, strength].named for strength in strengths), Counter())
        total = sum(named.values())
        shares = [f"{100 * named[word] / total:.0f}" if total else "" for word in words]
        right = f"{100 * named[cause.word] / total:.0f} %" if total else ""
        lines.append(f"| {name} | {total} | " + " | ".join(shares) + f" | {right} |")
    return "\n".join(lines)
