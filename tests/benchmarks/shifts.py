"""`python -m tests.benchmarks.shifts [DATA] [--fields FOLDER] [--cache FILE]`: what drift detection finds.

DATA is a folder with `cells` (an import) and, where there is one, `audit`; by default a synthetic cohort is drawn. The
cells are shifted as the camera's images (`monitoring.shifts`), cropped, and measured. Then, over and over, the patients
are dealt anew into those that a linear model on image statistics learns from (it stands in the network's place), those
of the reference, and those held out; windows of 200 cells of four held-out patients are held against the calibrated
thresholds and against Evidently's defaults. Then streams change to shifted cells, and those are counted until the
alarm. Prints Markdown tables.
"""

import argparse
import json
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.images import Preprocessing, crop_cell, decode
from blastwatch.manifest import read_cells
from monitoring.calibration import FALSE_ALARM_RATE
from monitoring.shifts import SHIFTS, field, shift
from monitoring.statistics import image_statistics
from tests.benchmarks.shift_delays import delay_table, delays
from tests.benchmarks.shift_windows import TRAINED, Dealing, dealt, tables

STRENGTHS = (0.1, 0.2, 0.35, 0.6, 1.0)
CAMERA = Preprocessing(crop=320, size=320)
SEEN = Preprocessing(crop=320, size=128)
SHIFTED_CELLS, PLAIN_CELLS = 50, 150  # of each patient
FIELDS = 120
DELAYED = (0.6, 1.0)  # strengths at which the delay is looked at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_cells(parser)
    parser.add_argument("--deals", type=int, default=8, help="how often the patients are dealt anew")
    add_dealing(parser)
    parser.add_argument("--delays-alone", action="store_true", help="print the table of delays and no other")
    parser.add_argument("--plot", type=Path, help="write the curves of power into this PNG file")
    given = parser.parse_args()
    dealing = dealing_of(given)
    with tempfile.TemporaryDirectory() as scratch:
        rows = shifted_cells(given, Path(scratch))
    if not given.delays_alone:
        print(tables(rows, deals=given.deals, plot=given.plot, rate=given.rate, dealing=dealing), end="\n\n")
    print(waited(rows, deals=given.deals, rate=given.rate, dealing=dealing))


def add_cells(parser: argparse.ArgumentParser) -> None:
    """The arguments that `shifted_cells` reads."""
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--fields", type=Path, help="folder of whole fields (JPEG); default: stand-ins of the cells")
    parser.add_argument("--cache", type=Path, help="statistics of the shifted cells are kept in this Parquet file")


def shifted_cells(given: argparse.Namespace, scratch: Path) -> pd.DataFrame:
    """The rows of `measured`, out of the cache where there is one; a synthetic cohort is drawn into the folder."""
    if given.cache and given.cache.is_file():
        return pd.read_parquet(given.cache)
    rows = measured(given.data or synthetic(scratch), given.fields)
    if given.cache:
        rows.to_parquet(given.cache)
    return rows


def add_dealing(parser: argparse.ArgumentParser) -> None:
    """The options that `dealing_of` reads."""
    plain = Dealing()
    parser.add_argument(
        "--rate", type=float, default=FALSE_ALARM_RATE, help="stated share of windows that alarm falsely"
    )
    parser.add_argument("--learn", type=float, default=plain.learn, help="share of the patients that is learned from")
    parser.add_argument("--reference", type=float, default=plain.reference, help="share that is the reference alone")
    parser.add_argument(
        "--trained", choices=TRAINED, default=plain.trained, help="what is known of those that are learned from"
    )


def dealing_of(given: argparse.Namespace) -> Dealing:
    return Dealing(learn=given.learn, reference=given.reference, trained=given.trained)


def waited(rows: pd.DataFrame, *, deals: int, rate: float, dealing: Dealing) -> str:
    """The table of delays."""
    found: dict[tuple[str, float], list[float]] = defaultdict(list)
    for number in range(deals):
        random = np.random.default_rng(number)
        deal = dealt(rows, random, rate, dealing)
        for name in (*SHIFTS, "field"):
            for strength in DELAYED:
                found[name, strength] += delays(deal, rows, name, strength, random)
    return delay_table(found)


def synthetic(folder: Path) -> Path:
    from training.importing import import_cells
    from training.synthesis import synthesise

    synthesise(folder / "source", patients=36, cells=60, seed=0, duplicates=0)
    import_cells(folder / "source", kind="cnmc", out=folder / "cells")
    return folder


def measured(data: Path, fields: Path | None, *, shifts: Iterable[str] = SHIFTS) -> pd.DataFrame:
    """One row a cell, shift and strength: label, group, shift ("" for none), strength, the statistics, and the crop."""
    cells = read_cells(data / "cells")
    rows = cells.rows.sort_values("path").reset_index(drop=True)
    rows["group"] = groups_of(data, rows["subject"])
    tasks = []
    for number, (group, members) in enumerate(rows.groupby("group")):
        chosen = members.sample(min(len(members), PLAIN_CELLS), random_state=number)
        for place, row in enumerate(chosen.itertuples()):
            ways = tuple(shifts) if place < SHIFTED_CELLS else ()
            tasks.append((cells.root / row.path, str(group), row.label, ways, place < SHIFTED_CELLS, len(tasks)))
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = [row for part in pool.map(measure, tasks, chunksize=20) for row in part]
    return pd.DataFrame(found + whole_fields(fields, [task[0] for task in tasks]))


def groups_of(data: Path, subjects: pd.Series) -> list[str]:
    """Of each row the group of patients that the audit found, or the subject where there is no audit."""
    path = data / "audit" / "audit.json"
    found = json.loads(path.read_text())["groups"] if path.is_file() else []
    known = {subject: group[0] for group in found for subject in group}
    return [known.get(str(subject), str(subject)) for subject in subjects]


def measure(task: tuple[Path, str, str, tuple[str, ...], bool, int]) -> list[dict]:
    path, group, label, shifts, is_shifted, number = task
    image = crop_cell(decode(path.read_bytes()), CAMERA)
    wanted = [("", 0.0)] + [(name, strength) for name in shifts for strength in STRENGTHS]
    random = np.random.default_rng(number)
    rows = []
    for name, strength in wanted:
        seen = crop_cell(shift(image, name, strength, random=random) if name else image, SEEN)
        facts = {"group": group, "label": label, "shift": name, "strength": strength, "shifted": is_shifted}
        rows.append(facts | image_statistics(seen, SEEN) | {"path": str(path)})
    return rows


def whole_fields(folder: Path | None, cells: list[Path]) -> list[dict]:
    random = np.random.default_rng(0)
    if folder:
        images = [decode(path.read_bytes()) for path in sorted(folder.glob("*.jpg"))[:FIELDS]]
    else:
        some = np.stack([crop_cell(decode(path.read_bytes()), CAMERA) for path in cells[:: max(len(cells) // 20, 1)]])
        images = [field(some, random=random) for _ in range(FIELDS)]
    facts = {"group": "", "label": "", "shift": "field", "strength": 1.0, "shifted": False, "path": ""}
    return [facts | image_statistics(crop_cell(image, SEEN), SEEN) for image in images]


if __name__ == "__main__":
    main()
