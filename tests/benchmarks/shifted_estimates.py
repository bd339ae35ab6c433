"""`python -m tests.benchmarks.shifted_estimates --cells DIR [--folds DIR --recipe NAME | --split DIR [--graph ONNX]]`:
estimated against realised accuracy on real cells of patients that the model never saw, as they are and after shifts, as
a Markdown table.

Estimates are recalibrated as the monitor does (`monitoring.recalibration`), on those who choose the temperature. With
the folder of a cross-validation each cell is answered by the training of its fold, at the temperature that this was
given on patients of its own, and these are the training patients, by fits that had not seen them. With the float32
graph of a network, of a package for instance, only the sides `calibration` and `test` of its split are read: in three
turns a temperature is fitted on two thirds of their patients and the last third is tested. With a split alone a
logistic regression on the image statistics stands in the network's place: fitted on three fifths of all patients, each
weighing the same within its class, a temperature on one fifth, tested on the last, in five turns. The shifts
(`monitoring.shifts`) are applied to the camera's images of the tested cells alone.

With the folder of a cross-validation each row also says in how many windows of the tested cells drift alarms, since
then the estimate is in doubt (`monitoring.doubts`): windows of 200 cells of four tested patients against what is
measured of the other patients. A linear model on image statistics stands in the network's place there, so
`--drift-alone` needs no more than the folds.
"""

import argparse
import os
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from blastwatch.decision import CLASS_NAMES, POSITIVE, probabilities
from blastwatch.images import Preprocessing, crop_cell, decode
from blastwatch.inference import Engine
from blastwatch.manifest import Cells, read_cells, read_json
from blastwatch.openvino_engine import OpenVinoEngine
from monitoring.calibration import FALSE_ALARM_RATE
from monitoring.performance import Limits, performance
from monitoring.recalibration import Recalibration, recalibrate
from monitoring.shifts import SHIFTS, shift
from monitoring.statistics import STATISTICS, image_statistics
from tests.benchmarks.shift_windows import Found, deal_of, look
from tests.benchmarks.trained_folds import by_fold, seen_by, tested_cells
from training.baselines import BASELINES
from training.calibration import patient_weights, steadied_temperature
from training.fold_answers import FITTED
from training.out_of_fold import out_of_fold_logits

LIMITS = Limits(tolerance=0.02, margin=0.05)
PLAIN = "as they are"
STRENGTHS = (0.5, 1.0)
LOOKED_AT = [("", 0.0), *((name, strength) for name in SHIFTS for strength in STRENGTHS)]
CAMERA, SEEN = Preprocessing(crop=320, size=320), Preprocessing(crop=320, size=128)
NAMES = [f"{name.replace('_', ' ')}, {strength:g}" if name else PLAIN for name, strength in LOOKED_AT]
MOST_CELLS = 40  # of one patient
TURNS = 5
WINDOWS = 40  # of each fold and shift, for the verdict on drift


def chosen(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.groupby("group", group_keys=False).sample(frac=1, random_state=1).groupby("group").head(MOST_CELLS)


def shifted(path: Path, size: int) -> list[np.ndarray]:
    """One cell under every shift, in their order: shifted as the camera's image, then cropped."""
    image, seen = crop_cell(decode(path.read_bytes()), CAMERA), Preprocessing(crop=320, size=size)
    random = np.random.default_rng(zlib.crc32(path.name.encode()))
    changed = [shift(image, name, strength, random=random) if name else image for name, strength in LOOKED_AT]
    return [crop_cell(one, seen) for one in changed]


def measured(path: Path) -> list[dict[str, float]]:
    """The statistics of one cell under every shift."""
    return [image_statistics(crop, SEEN) for crop in shifted(path, SEEN.size)]


def measured_all(cells: pd.DataFrame, root: Path) -> list[list[dict[str, float]]]:
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(measured, [root / path for path in cells["path"]], chunksize=20))


def drift_alarms(cells: pd.DataFrame, root: Path, folds: Path) -> dict[str, float]:
    """By shift the share of the windows of tested cells that alarm."""
    facts = [
        {"group": cell.group, "label": cell.label, "path": str(root / cell.path), "shifted": True, "shift": name,
         "strength": strength, **statistics}
        for cell, found in zip(cells.itertuples(), measured_all(cells, root), strict=True)
        for (name, strength), statistics in zip(LOOKED_AT, found, strict=True)
    ]  # fmt: skip
    rows, alarms = pd.DataFrame(facts), {name: Found([], [], [], Counter()) for name in NAMES}
    for fold in sorted(cells["fold"].unique()):
        split = pd.read_parquet(folds / "folds" / str(fold) / "split.parquet").groupby("side")["group"].unique()
        besides = np.concatenate([split["validation"], split["calibration"]])
        deal = deal_of(rows, split["train"], besides, split["test"], rate=FALSE_ALARM_RATE, trained="answered")
        for name, (kind, strength) in zip(NAMES, LOOKED_AT, strict=True):
            look(deal, rows, kind, strength, WINDOWS, np.random.default_rng(int(fold)), alarms[name])
    return {name: float(np.mean(found.ours)) for name, found in alarms.items()}


@dataclass(frozen=True)
class Said:
    """Of cells, (n,) each: the calibrated probability of a blast, by what never saw their patient, and what that is
    worth to an estimate."""

    given: np.ndarray
    worth: np.ndarray

    @staticmethod
    def nothing(cells: pd.DataFrame) -> "Said":
        return Said(np.full(len(cells), np.nan), np.full(len(cells), np.nan))

    def tell(self, places: np.ndarray, blast: np.ndarray, recalibration: Recalibration) -> None:
        self.given[places], self.worth[places] = blast, recalibration(blast)


def known_by(blast: np.ndarray, cells: pd.DataFrame) -> Recalibration:
    return recalibrate(cells[["label", "group"]].assign(probability=blast))


def stand_in(cells: pd.DataFrame, root: Path) -> dict[str, Said]:
    """By shift, each cell answered by the regression that never saw its patient."""
    found = measured_all(cells, root)
    values = {
        name: pd.DataFrame([rows[number] for rows in found])[list(STATISTICS)].to_numpy(np.float64)
        for number, name in enumerate(NAMES)
    }
    truth = cells["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
    groups = cells["group"].to_numpy()
    folds = list(StratifiedGroupKFold(TURNS, shuffle=True, random_state=0).split(groups, truth, groups))
    said = {name: Said.nothing(cells) for name in values}
    plain, (_, fit) = values[PLAIN], BASELINES["sizes"]
    for turn, (_, tested) in enumerate(folds):
        tuned = folds[(turn + 1) % TURNS][1]
        fitted = np.setdiff1d(np.arange(len(cells)), np.concatenate([tested, tuned]))
        weights = patient_weights(truth[fitted], groups[fitted]) * len(fitted)
        model = fit(plain[fitted], truth[fitted], weights, 0)

        def logits(rows: np.ndarray, model=model) -> np.ndarray:
            return np.stack([np.zeros(len(rows)), model.decision_function(rows)], axis=1)

        temperature = steadied_temperature(logits(plain[tuned]), truth[tuned], groups[tuned])
        worth = known_by(probabilities(logits(plain[tuned]), temperature)[:, POSITIVE], cells.iloc[tuned])
        for name, shifted in values.items():
            said[name].tell(tested, probabilities(logits(shifted[tested]), temperature)[:, POSITIVE], worth)
    return said


def asked(cells: pd.DataFrame, root: Path, engine: Engine, size: int) -> np.ndarray:
    """Logits of cells under each shift, shape (shifts, cells, classes)."""
    logits = []
    with ProcessPoolExecutor(1) as pool:
        for crops in pool.map(shifted, [root / path for path in cells["path"]], repeat(size), chunksize=4):
            logits.append(engine.infer(np.stack(crops)).logits)
    return np.stack(logits, axis=1)


def folded(cells: pd.DataFrame, every: Cells, folds: Path, recipe: str) -> dict[str, Said]:
    """The same of the trainings of a cross-validation, each at its own temperature."""
    said, size = {name: Said.nothing(cells) for name in NAMES}, seen_by(folds).size
    for fold, part, engine in by_fold(folds, recipe, cells):
        folder = folds / "recipes" / recipe / str(fold)
        temperature = read_json(folder / "evaluate" / FITTED, made_by="blastwatch crossvalidate")["temperature"]
        split = pd.read_parquet(folds / "folds" / str(fold) / "split.parquet")
        split = split[["path", "group", "side"]].merge(every.rows[["path", "label"]], on="path")
        trained = split[split["side"] == "train"].sort_values("path")
        own = probabilities(out_of_fold_logits(folder / "train", trained), temperature)[:, POSITIVE]
        worth = known_by(own, trained)
        for name, logits in zip(NAMES, asked(part, every.root, engine, size), strict=True):
            said[name].tell(part.index.to_numpy(), probabilities(logits, temperature)[:, POSITIVE], worth)
    return said


def network(cells: pd.DataFrame, root: Path, engine: Engine, size: int) -> dict[str, Said]:
    """The same of a network that saw none of these patients."""
    by_shift = asked(cells, root, engine, size)
    truth = cells["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
    groups = cells["group"].to_numpy()
    said = {name: Said.nothing(cells) for name in NAMES}
    for tuned, tested in StratifiedGroupKFold(3, shuffle=True, random_state=0).split(groups, truth, groups):
        temperature = steadied_temperature(by_shift[0][tuned], truth[tuned], groups[tuned])
        worth = known_by(probabilities(by_shift[0][tuned], temperature)[:, POSITIVE], cells.iloc[tuned])
        for number, name in enumerate(NAMES):
            said[name].tell(tested, probabilities(by_shift[number][tested], temperature)[:, POSITIVE], worth)
    return said


def row(name: str, cells: pd.DataFrame, said: Said, drift: float | None = None) -> str:
    table = pd.DataFrame(
        {"id": cells["path"], "patient": cells["group"], "probability": said.worth, "truth": cells["label"],
         "label": np.where(said.given >= 0.5, "all", "hem")}
    )  # fmt: skip
    found = performance(table, LIMITS)
    estimated, realised = found["estimated"]["accuracy"], found["realised"]["accuracy"]
    gap, state = found["check"]["difference"], found["check"]["state"]
    parts = [f"{part['value']:.3f} ({part['low']:.3f} to {part['high']:.3f})" for part in (estimated, realised)]
    ranked = roc_auc_score(cells["label"] == CLASS_NAMES[POSITIVE], said.given)
    points = f"{100 * gap['value']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
    return (
        f"| {name} | {len(cells)} | {found['patients']} | {parts[0]} | {parts[1]} | {points} | {state} | "
        f"{'' if drift is None else f'{100 * drift:.0f} %'} | {ranked:.3f} |"
    )


def of_split(given: argparse.Namespace, every: Cells) -> tuple[pd.DataFrame, dict[str, Said]]:
    """Cells of one split, answered by a network or by what stands in its place."""
    split = pd.read_parquet(given.split / "split.parquet")
    if given.graph:
        split = split[split["side"].isin(["calibration", "test"])]
    cells = chosen(every.rows.merge(split[["path", "group"]], on="path")).reset_index(drop=True)
    if not given.graph:
        return cells, stand_in(cells, every.root)
    seen = Preprocessing(crop=320, size=given.size)
    engine = OpenVinoEngine(given.graph, seen, given.engine, threads=len(os.sched_getaffinity(0)))
    return cells, network(cells, every.root, engine, given.size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, required=True)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--folds", type=Path, help="folder of blastwatch crossvalidate")
    source.add_argument("--split", type=Path)
    parser.add_argument("--recipe", help="of the cross-validation")
    parser.add_argument("--drift-alone", action="store_true", help="of the folds: the drift, and no estimate")
    parser.add_argument("--graph", type=Path, help="ONNX file of a network that learnt from the split's other sides")
    parser.add_argument("--engine", default="openvino-f32", help="openvino-f32 or openvino-bf16")
    parser.add_argument("--size", type=int, default=224, help="px of the graph's input")
    given = parser.parse_args()
    every = read_cells(given.cells)
    if given.folds:
        cells = tested_cells(given.folds, every, MOST_CELLS)
        alarms = drift_alarms(cells, every.root, given.folds)
        if given.drift_alone:
            print(
                "\n".join(
                    ["| shift | drift |", "|---|---|", *(f"| {name} | {100 * alarms[name]:.0f} % |" for name in alarms)]
                )
            )
            return
        answers = folded(cells, every, given.folds, given.recipe)
    else:
        cells, answers = of_split(given, every)
        alarms = {}
    print("| shift | cells | patients | estimated accuracy | realised | points apart | the check | drift | AUROC |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, said in answers.items():
        print(row(name, cells, said, alarms.get(name)), flush=True)
        if name == PLAIN:
            ill = cells["label"] == "all"
            for share, kept in (("a sixth of the ill patients", ill), ("a sixth of the healthy ones", ~ill)):
                thin = cells["group"].isin(sorted(cells.loc[kept, "group"].unique())[::6])
                mix = (~kept | thin).to_numpy()
                part = Said(said.given[mix], said.worth[mix])
                print(row(f"mix: {share}", cells[mix], part), flush=True)


if __name__ == "__main__":
    main()
