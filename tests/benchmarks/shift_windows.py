"""Windows of shifted cells against a reference of other patients: alarms, and the causes that are named first."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.images import Preprocessing, crop_cell, decode
from blastwatch.package import DriftReference
from monitoring.calibration import calibrate, scorers_of, thresholds_for
from monitoring.directions import with_directions
from monitoring.scores import EMBEDDING_SCORE, EVIDENTLY_DEFAULT, METHODS, PROBABILITY
from monitoring.signatures import CAUSES, NEAR, UNKNOWN, measure_signatures, rank, transform
from monitoring.store import EMBEDDING

CELLS, PATIENTS = 200, 4
WINDOWS, CALM_WINDOWS = 60, 400
REFERENCE_CELLS, HELD_CELLS = 80, 50  # of each patient
FEWEST_CELLS = 30  # of a patient who is held out
FIELD_SHARE = 0.2  # of the window, at strength 1
POWER = 0.95
MIX = "disease_mix"
SEEN = Preprocessing(crop=320, size=128)


@dataclass(frozen=True)
class Dealing:
    """learn, reference: shares of the patients that the model learns from, and that it does not; the rest is held out.
    trained: what drift knows of those the model learns from: `nothing`, what is `measured` of their cells, or also what
    other fits `answered` that had not seen them."""

    learn: float = 0.28
    reference: float = 0.36
    trained: str = "measured"


TRAINED = ("nothing", "measured", "answered")


@dataclass
class Deal:
    """One dealing of the patients: a model, a reference with its thresholds, and who is held out."""

    model: object
    reference: DriftReference
    thresholds: dict
    held: list
    signatures: dict


@dataclass
class Found:
    """Of one shift at one strength, over windows: our alarms, Evidently's, and the cause named first at ours."""

    ours: list
    any_column: list
    half_the_columns: list
    named: Counter


def tables(rows: pd.DataFrame, *, deals: int, plot: Path | None, rate: float, dealing: Dealing) -> str:
    found = defaultdict(lambda: Found([], [], [], Counter()))
    kinds = [name for name in dict.fromkeys(rows["shift"]) if name not in ("", "field")]
    strengths = sorted(set(rows.loc[rows["shift"].isin(kinds), "strength"]))
    for number in range(deals):
        random = np.random.default_rng(number)
        deal = dealt(rows, random, rate, dealing)
        look(deal, rows, "", 0.0, CALM_WINDOWS, random, found["", 0.0])
        for name in (*kinds, MIX, "field"):
            for strength in strengths:
                look(deal, rows, name, strength, WINDOWS, random, found[name, strength])
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
        self.learned = rows
        self.axes = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)[2]

    def __call__(self, rows: pd.DataFrame) -> pd.DataFrame:
        scaled = (transform(rows) - self.mean) / self.std
        embedding = np.zeros((len(rows), len(EMBEDDING)))
        embedding[:, : len(self.axes)] = scaled @ self.axes.T
        answers = pd.DataFrame(embedding, columns=list(EMBEDDING))
        answers["probability"] = self.regression.predict_proba(scaled)[:, 1]
        return pd.concat([rows.reset_index(drop=True), answers], axis=1)

    def out_of_fold(self) -> pd.DataFrame:
        """Of what it learned from, the probabilities by fits to the other patients."""
        from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

        scaled = (transform(self.learned) - self.mean) / self.std
        dealt = StratifiedGroupKFold(3, shuffle=True, random_state=0)
        found = cross_val_predict(
            self.regression, scaled, self.learned["label"] == "all", groups=self.learned["group"], cv=dealt,
            method="predict_proba",
        )  # fmt: skip
        return self(self.learned).assign(probability=found[:, 1])


def dealt(rows: pd.DataFrame, random: np.random.Generator, rate: float, dealing: Dealing) -> Deal:
    """The patients dealt, with thresholds for a rate of false alarms."""
    names = random.permutation(sorted(rows.loc[rows["shift"] == "", "group"].unique()))
    first, second = (round(len(names) * part) for part in (dealing.learn, dealing.learn + dealing.reference))
    return deal_of(rows, names[:first], names[first:second], names[second:], rate=rate, trained=dealing.trained)


def deal_of(rows: pd.DataFrame, learned, known_besides, others, *, rate: float, trained: str) -> Deal:
    """The deal of these patients: who is learned from, who is known besides, and of whom windows are drawn."""
    plain = rows[rows["shift"] == ""]
    model = LinearModel(plain[plain["group"].isin(learned)])
    known = [model(plain[plain["group"].isin(known_besides)])]
    if trained == "answered":
        known.append(model.out_of_fold())
    elif trained == "measured":
        known.append(model.learned.assign(**dict.fromkeys((PROBABILITY, *EMBEDDING), np.nan)))
    parts = [part.groupby("group").head(REFERENCE_CELLS) for part in known]
    cells = pd.concat(parts, ignore_index=True)
    signatures = signatures_of(cells)
    found = calibrate(DriftReference(cells), signatures=signatures, window_sizes=(CELLS,), false_alarm_rate=rate)
    thresholds, reference = thresholds_for(found, CELLS), DriftReference(with_directions(cells, signatures))
    counts = plain["group"].value_counts()
    held = [name for name in others if counts[name] >= FEWEST_CELLS]
    return Deal(model, reference, thresholds, held, signatures)


def signatures_of(reference: pd.DataFrame) -> dict:
    """As packaging measures them."""

    def crops_of(chosen: np.ndarray) -> np.ndarray:
        return np.stack([crop_cell(decode(Path(path).read_bytes()), SEEN) for path in reference["path"].iloc[chosen]])

    return measure_signatures(reference, crops_of, SEEN)


def look(deal, rows: pd.DataFrame, name: str, strength: float, count: int, random, found: Found) -> None:
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
        word, cosine = rank(deal.signatures, mean)[0]
        found.named[word if cosine >= NEAR else UNKNOWN] += 1


def scored(deal: Deal, current: pd.DataFrame, windows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Names of the scores, and those of each window (windows, scores), given how often each cell is in each."""
    known, current = deal.reference.cells, with_directions(current, deal.signatures)
    both = pd.concat([known, current], ignore_index=True)
    both["group"] = ["reference"] * len(known) + ["current"] * len(current)
    counts, sides = np.zeros((len(windows), len(both))), np.zeros((len(windows), len(both)))
    counts[:, len(known) :] = windows
    sides[:, : len(known)] = 1
    answered = both[PROBABILITY].notna().to_numpy()
    names, scores = [], []
    for scorer in scorers_of(DriftReference(both)):
        rows = np.ones(len(both), bool) if len(scorer.groups) == len(both) else answered
        names += scorer.columns
        scores.append(scorer(counts[:, rows], sides[:, rows]))
    return names, np.hstack(scores)


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
