"""`python -m tests.benchmarks.patient_shifts [DATA] [--fields FOLDER] [--cache FILE]`: drift over patients.

DATA, FIELDS and FILE as for `tests.benchmarks.shifts`, whose shifted cells these are. A world has the patients that are
there, and every patient of a reference and of the streams held against it is one of them by chance, with cells drawn
anew; a linear model that has not seen the patient answers. A stream is as the reference first, then its patients are
shifted, or of another mix. Prints how many shifted patients came until the alarm, and the false alarms of streams
without shift.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from monitoring.patient_drift import PATIENTS_PER_FALSE_ALARM, Course, Floats, courses
from monitoring.patients import MOST_CELLS
from monitoring.scores import MEASURED, PROBABILITY
from monitoring.shifts import SHIFTS
from tests.benchmarks.shift_delays import NEVER, quantiles
from tests.benchmarks.shift_windows import FIELD_SHARE, LinearModel
from tests.benchmarks.shifts import STRENGTHS, measured, synthetic

FOLDS = 6
HEALTHIER, SICKER = "more patients healthy", "more patients ill"
COLUMNS = (*MEASURED, PROBABILITY)
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


def stream_courses(
    world: World, given: argparse.Namespace, parts: Sequence[tuple[int, str, float]], random: np.random.Generator
) -> dict[str, Course]:
    """A reference, and a stream of parts (patients, shift, strength) held against it."""
    reference = world.draw(world.patients(given.known, "", 0.0, random), MOST_CELLS, "", 0.0, random)
    reference[given.answered :, COLUMNS.index(PROBABILITY)] = np.nan
    came = [
        world.draw(world.patients(count, name, strength, random), given.cells, name, strength, random)
        for count, name, strength in parts
    ]
    frames = [pd.DataFrame(values, columns=list(COLUMNS)) for values in (reference, np.concatenate(came))]
    return courses(*frames, random.random(len(frames[1])))


def delay(world: World, given: argparse.Namespace, name: str, strength: float, random) -> float:
    """Shifted patients until an alarm, `NEVER` where none comes; alarms before the shift are left out."""
    parts = [(given.before, "", 0.0), (given.after, name, strength)]
    found = stream_courses(world, given, parts, random).values()
    places = [change.found for course in found for change in course.changes if change.found >= given.before]
    return min(places) - given.before + 1 if places else NEVER


def calm_line(world: World, given: argparse.Namespace) -> str:
    random = np.random.default_rng(1)
    counts = [
        sum(len(course.changes) for course in stream_courses(world, given, [(CALM, "", 0.0)], random).values())
        for _ in range(given.calm)
    ]
    total, alarmed = CALM * given.calm, np.mean(np.array(counts) > 0)
    return (
        f"Without shift, {total} patients in {given.calm} streams against references of {given.known}: {sum(counts)} "
        f"alarms, stated at most {total / PATIENTS_PER_FALSE_ALARM:g}; {alarmed:.0%} of the streams have one"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--fields", type=Path, help="folder of whole fields (JPEG); default: stand-ins of the cells")
    parser.add_argument("--cache", type=Path, help="statistics of the shifted cells are kept in this Parquet file")
    parser.add_argument("--known", type=int, default=36, help="patients of the reference")
    parser.add_argument("--answered", type=int, default=36, help="of these, whom the model had not seen")
    parser.add_argument("--cells", type=int, default=MOST_CELLS, help="of each patient who comes")
    parser.add_argument("--before", type=int, default=40, help="patients who come before the shift")
    parser.add_argument("--after", type=int, default=100, help="shifted patients who come at most")
    parser.add_argument("--streams", type=int, default=60, help="of each shift and strength")
    parser.add_argument("--calm", type=int, default=100, help=f"streams of {CALM} patients without shift")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.cache and given.cache.is_file():
            rows = pd.read_parquet(given.cache)
        else:
            rows = measured(given.data or synthetic(Path(scratch)), given.fields)
    world = World(rows)
    print(f"A world of {len(world.ill)} patients, {world.ill.mean():.0%} ill; {given.cells} cells of each who comes")
    print("| shift | " + " | ".join(f"{value:g}: half, 95 %" for value in STRENGTHS) + " |")
    print("|---" * (len(STRENGTHS) + 1) + "|")
    for name in (*SHIFTS, "field", HEALTHIER, SICKER):
        told = []
        for strength in STRENGTHS:
            random = np.random.default_rng(0)
            told.append(quantiles([delay(world, given, name, strength, random) for _ in range(given.streams)]))
        print(f"| {name} | " + " | ".join(told) + " |", flush=True)
    print(calm_line(world, given))


if __name__ == "__main__":
    main()
