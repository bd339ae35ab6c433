"""`python -m tests.benchmarks.patient_shifts [DATA] [--fields FOLDER] [--cache FILE]`: drift over patients.

DATA, FIELDS and FILE as for `tests.benchmarks.shifts`, whose shifted cells these are. A world has the patients that are
there, and every patient of a reference and of the streams held against it is one of them by chance, with cells drawn
anew; a linear model that has not seen the patient answers. A stream is as the reference first, then its patients are
shifted, or of another mix. Prints how many shifted patients came until the alarm, the cause that is named then, and the
false alarms of streams without shift: of patients of that world, and of new ones, who are drawn.
"""

import argparse
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from monitoring.directions import with_directions_of_patients
from monitoring.patient_drift import PATIENTS_PER_FALSE_ALARM, Floats, courses
from monitoring.patient_report import causes
from monitoring.patients import MOST_CELLS
from monitoring.scores import PROBABILITY
from monitoring.shifts import SHIFTS
from monitoring.signatures import CAUSES, transform
from monitoring.statistics import STATISTICS, TABLE
from tests.benchmarks.patient_looks import found_by_looks
from tests.benchmarks.shift_delays import NEVER, quantiles
from tests.benchmarks.shift_windows import FIELD_SHARE, MIX, REFERENCE_CELLS, LinearModel, signatures_of
from tests.benchmarks.shifts import STRENGTHS, add_cells, shifted_cells

FOLDS = 6
HEALTHIER, SICKER = "more patients healthy", "more patients ill"
COLUMNS = (*STATISTICS, PROBABILITY)
CALM = 1000  # patients in a stream without shift


class World:
    """The patients that are there: values of their cells by shift and strength, and whether they are ill."""

    def __init__(self, rows: pd.DataFrame) -> None:
        answered = out_of_fold(rows[rows["shift"] != "field"])
        of = answered[answered["shifted"]]
        self.cells = {
            key: [part[list(COLUMNS)].to_numpy() for _, part in frame.groupby("group", sort=True)]
            for key, frame in of.groupby(["shift", "strength"])
        }
        self.ill = (of.groupby("group", sort=True)["label"].first() == "all").to_numpy()
        self.fields = answer_fields(rows)
        self.signatures = signatures_of(rows[rows["shift"] == ""].groupby("group").head(REFERENCE_CELLS))

    def draw(self, who: np.ndarray, each: int, name: str, strength: float, random: np.random.Generator) -> Floats:
        """Means of the columns over so many cells of each patient, shape (patients, columns)."""
        found = np.empty((len(who), len(COLUMNS)))
        plain = self.cells["", 0.0]
        for row, patient in enumerate(who):
            cells = (self.cells[name, strength] if name in SHIFTS else plain)[patient]
            chosen = cells[random.integers(len(cells), size=each)]
            if name == "field":
                strangers = random.random(each) < FIELD_SHARE * strength
                chosen[strangers] = self.fields[random.integers(len(self.fields), size=strangers.sum())]
            found[row] = chosen.mean(axis=0)
        return found

    def patients(self, count: int, name: str, strength: float, random: np.random.Generator) -> np.ndarray:
        """Who comes: by chance, or with those of one kind replaced by the other with a probability."""
        who = random.integers(len(self.ill), size=count)
        if name in (HEALTHIER, SICKER):
            wanted = np.flatnonzero(self.ill == (name == SICKER))
            replaced = (self.ill[who] != (name == SICKER)) & (random.random(count) < strength)
            who[replaced] = random.choice(wanted, size=replaced.sum())
        return who


def out_of_fold(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the probability of a linear model that had not seen the patient."""
    names = np.random.default_rng(0).permutation(sorted(rows["group"].unique()))
    parts = []
    for fold in range(FOLDS):
        held = rows["group"].isin(names[fold::FOLDS])
        model = LinearModel(rows[~held & (rows["shift"] == "")])
        parts.append(model(rows[held]))
    return pd.concat(parts, ignore_index=True)


def answer_fields(rows: pd.DataFrame) -> Floats:
    return LinearModel(rows[rows["shift"] == ""])(rows[rows["shift"] == "field"])[list(COLUMNS)].to_numpy()


def drawn(
    world: World, given: argparse.Namespace, parts: Sequence[tuple[int, str, float]], random: np.random.Generator
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A reference and a stream of parts (patients, shift, strength), a row a patient."""
    reference = world.draw(world.patients(given.known, "", 0.0, random), MOST_CELLS, "", 0.0, random)
    reference[given.answered :, COLUMNS.index(PROBABILITY)] = np.nan
    came = [
        world.draw(world.patients(count, name, strength, random), given.cells, name, strength, random)
        for count, name, strength in parts
    ]
    known, others = (pd.DataFrame(rows, columns=list(COLUMNS)) for rows in (reference, np.concatenate(came)))
    return with_directions_of_patients(known, others, world.signatures)


def delay(world: World, given: argparse.Namespace, name: str, strength: float, random) -> tuple[float, str]:
    """Shifted patients until an alarm, and the cause that is named first then; `NEVER` and "" where none comes. Alarms
    before the shift are left out."""
    known, came = drawn(world, given, [(given.before, "", 0.0), (given.after, name, strength)], random)
    uniforms = random.random(len(came))
    found = courses(known, came, uniforms).values()
    places = [change.found for course in found for change in course.changes if change.found >= given.before]
    if not places:
        return NEVER, ""
    until = min(places) + 1
    cut = came.iloc[:until]
    named = causes(courses(known, cut, uniforms[:until]), known, cut, world.signatures)
    return until - given.before, named[0]["cause"]


def calm_line(world: World, given: argparse.Namespace) -> str:
    random = np.random.default_rng(1)
    counts = []
    for _ in range(given.calm):
        known, came = drawn(world, given, [(given.patients, "", 0.0)], random)
        counts.append(len(found_by_looks(known, came, random.random(given.patients), every=given.every)))
    total, alarmed = given.patients * given.calm, np.mean(np.array(counts) > 0)
    return (
        f"Without shift, {total} patients in {given.calm} streams against references of {given.known}: {sum(counts)} "
        f"alarms, stated at most {total / PATIENTS_PER_FALSE_ALARM:g}; {alarmed:.0%} of the streams have one"
    )


def new_line(world: World, given: argparse.Namespace) -> str:
    """Of patients who are none of the world's: their means are drawn from a normal distribution with its patients'."""
    plain = [cells.mean(axis=0) for cells in world.cells["", 0.0]]
    means = pd.DataFrame(plain, columns=list(COLUMNS))
    values = np.column_stack([transform(means), means[PROBABILITY]])
    centre, covariance = values.mean(axis=0), np.cov(values.T)
    factors = np.array([row.ratio for row in TABLE])

    def people(count: int) -> pd.DataFrame:
        found = random.multivariate_normal(centre, covariance, size=count, method="eigh")
        measured = np.where(factors, np.exp(found[:, :-1]), found[:, :-1])
        return pd.DataFrame(np.column_stack([measured, found[:, -1]]), columns=list(COLUMNS))

    random, alarms = np.random.default_rng(1), 0
    for _ in range(given.new):
        known, came = with_directions_of_patients(people(given.known), people(given.patients), world.signatures)
        alarms += len(found_by_looks(known, came, random.random(given.patients), every=given.every))
    total = given.patients * given.new
    return f"{total} new patients without shift: {alarms} alarms, stated at most {total / PATIENTS_PER_FALSE_ALARM:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_cells(parser)
    parser.add_argument("--known", type=int, default=36, help="patients of the reference")
    parser.add_argument("--answered", type=int, default=36, help="of these, whom the model had not seen")
    parser.add_argument("--cells", type=int, default=MOST_CELLS, help="of each patient who comes")
    parser.add_argument("--before", type=int, default=40, help="patients who come before the shift")
    parser.add_argument("--after", type=int, default=100, help="shifted patients who come at most")
    parser.add_argument("--streams", type=int, default=60, help="of each shift and strength")
    parser.add_argument("--calm", type=int, default=100, help="streams of patients without shift")
    parser.add_argument("--patients", type=int, default=CALM, help="of a stream without shift")
    parser.add_argument("--every", type=int, default=CALM, help="of them come between two looks")
    parser.add_argument("--new", type=int, default=25, help="streams of as many new patients")
    parser.add_argument("--calm-alone", action="store_true", help="print the false alarms and no table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        world = World(shifted_cells(given, Path(scratch)))
    print(f"A world of {len(world.ill)} patients, {world.ill.mean():.0%} ill; {given.cells} cells of each who comes")
    if not given.calm_alone:
        print_tables(world, given)
    print(calm_line(world, given))
    print(new_line(world, given))


def print_tables(world: World, given: argparse.Namespace) -> None:
    print("| shift | " + " | ".join(f"{value:g}: half, 95 %" for value in STRENGTHS) + " |")
    print("|---" * (len(STRENGTHS) + 1) + "|")
    named: dict[str, Counter[str]] = defaultdict(Counter)
    for name in (*SHIFTS, "field", HEALTHIER, SICKER):
        told = []
        for strength in STRENGTHS:
            random = np.random.default_rng(0)
            found = [delay(world, given, name, strength, random) for _ in range(given.streams)]
            told.append(quantiles([count for count, _ in found]))
            named[name].update(word for _, word in found if word)
        print(f"| {name} | " + " | ".join(told) + " |", flush=True)
    print("\n| shift, all strengths | alarms | right cause first | else |\n|---|---|---|---|")
    for name, words in named.items():
        right = CAUSES[MIX if name in (HEALTHIER, SICKER) else name].word
        total = sum(words.values())
        rest = ", ".join(f"{word} {count / total:.0%}" for word, count in words.most_common() if word != right)
        print(f"| {name} | {total} | {words[right] / max(1, total):.0%} | {rest} |")


if __name__ == "__main__":
    main()
