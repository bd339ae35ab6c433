"""`python -m tests.benchmarks.shifted_estimates --cells DIR --split DIR --pack DIR`: estimated against realised
accuracy on real cells of patients that the model never saw, as they are and after shifts, as a Markdown table.

A logistic regression on the image statistics stands in the network's place, fitted and calibrated as a network is:
three fifths of the patients, each weighing the same within its class, a temperature on one fifth, tested on the last,
in five turns. The shifts are applied to the packed crops of the tested cells alone.
"""

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from sklearn.model_selection import StratifiedGroupKFold

from blastwatch.decision import CLASS_NAMES, POSITIVE, probabilities
from blastwatch.manifest import read_cells
from monitoring.performance import Limits, performance
from monitoring.stain import restain
from monitoring.statistics import STATISTICS, image_statistics
from training.baselines import BASELINES
from training.calibration import fit_temperature, patient_weights
from training.pack import Packed, open_pack

LIMITS = Limits(tolerance=0.02, margin=0.05)
MOST_CELLS = 40  # of one patient
TURNS = 5


def on_cell(image: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """The change on the cell alone; the background stays black."""
    inside = image.max(axis=2, keepdims=True) > 0
    return np.where(inside, np.clip(np.rint(changed), 1, 255), 0).astype(np.uint8)


def blurred(image: np.ndarray) -> np.ndarray:
    return on_cell(image, np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5))))


def jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=50)
    return np.asarray(Image.open(buffer).convert("RGB"))


def larger(image: np.ndarray) -> np.ndarray:
    """A pixel of four fifths of the size: the cell takes more of them."""
    side = image.shape[0]
    cut = round(0.1 * side)
    square = Image.fromarray(image).crop((cut, cut, side - cut, side - cut))
    return np.asarray(square.resize((side, side), Image.Resampling.BICUBIC))


def noisy(image: np.ndarray) -> np.ndarray:
    return on_cell(image, image + np.random.default_rng(int(image.sum())).normal(0, 12, image.shape))


SHIFTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda image: image,
    "stain of another laboratory": lambda image: restain(image, strength=1.0),
    "white balance, red 0.9 and blue 1.1": lambda image: on_cell(image, image * np.array([0.9, 1.0, 1.1])),
    "light 0.8": lambda image: on_cell(image, image * 0.8),
    "defocus, 1.5 px of the crop": blurred,
    "JPEG 50": jpeg,
    "pixel size 0.8": larger,
    "noise of 12 grey levels": noisy,
}


def chosen(cells: pd.DataFrame) -> pd.DataFrame:
    return cells.groupby("group", group_keys=False).sample(frac=1, random_state=1).groupby("group").head(MOST_CELLS)


def measured(paths: pd.Series, packed: Packed, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    rows = packed.rows_of(list(paths))
    found = [image_statistics(change(np.asarray(packed.crops[row])), packed.preprocessing) for row in rows]
    return pd.DataFrame(found)[list(STATISTICS)].to_numpy(np.float64)


def answers_of(cells: pd.DataFrame, values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Calibrated probability of a blast by shift, each cell answered by the model that never saw its patient."""
    truth = cells["label"].map(CLASS_NAMES.index).to_numpy(np.int64)
    groups = cells["group"].to_numpy()
    folds = list(StratifiedGroupKFold(TURNS, shuffle=True, random_state=0).split(groups, truth, groups))
    found = {name: np.full(len(cells), np.nan) for name in values}
    plain, (_, fit) = values["as they are"], BASELINES["sizes"]
    for turn, (_, tested) in enumerate(folds):
        tuned = folds[(turn + 1) % TURNS][1]
        fitted = np.setdiff1d(np.arange(len(cells)), np.concatenate([tested, tuned]))
        weights = patient_weights(truth[fitted], groups[fitted]) * len(fitted)
        model = fit(plain[fitted], truth[fitted], weights, 0)

        def logits(rows: np.ndarray, model=model) -> np.ndarray:
            return np.stack([np.zeros(len(rows)), model.decision_function(rows)], axis=1)

        temperature = fit_temperature(logits(plain[tuned]), truth[tuned], patient_weights(truth[tuned], groups[tuned]))
        for name, shifted in values.items():
            found[name][tested] = probabilities(logits(shifted[tested]), temperature)[:, POSITIVE]
    return found


def row(name: str, cells: pd.DataFrame, blast: np.ndarray) -> str:
    table = pd.DataFrame(
        {"id": cells["path"], "patient": cells["group"], "probability": blast, "truth": cells["label"],
         "label": np.where(blast >= 0.5, "all", "hem")}
    )  # fmt: skip
    found = performance(table, LIMITS)
    estimated, realised = found["estimated"]["accuracy"], found["realised"]["accuracy"]
    gap, state = found["check"]["difference"], found["check"]["state"]
    parts = [f"{part['value']:.3f} ({part['low']:.3f} to {part['high']:.3f})" for part in (estimated, realised)]
    points = f"{100 * gap['value']:+.1f} ({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
    return f"| {name} | {len(cells)} | {found['patients']} | {parts[0]} | {parts[1]} | {points} | {state} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cells", "split", "pack"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    paths = parser.parse_args()
    every = read_cells(paths.cells)
    split = pd.read_parquet(paths.split / "split.parquet")
    cells = chosen(every.rows.merge(split[["path", "group"]], on="path")).reset_index(drop=True)
    packed = open_pack(paths.pack, every)
    values = {name: measured(cells["path"], packed, change) for name, change in SHIFTS.items()}
    print("| shift | cells | patients | estimated accuracy | realised | realised less estimated, points | the check |")
    print("|---|---|---|---|---|---|---|")
    for name, blast in answers_of(cells, values).items():
        print(row(name, cells, blast), flush=True)
        if name == "as they are":
            ill = cells["label"] == "all"
            for share, kept in (("a sixth of the ill patients", ill), ("a sixth of the healthy ones", ~ill)):
                thin = cells["group"].isin(sorted(cells.loc[kept, "group"].unique())[::6])
                mix = (~kept | thin).to_numpy()
                print(row(f"mix: {share}", cells[mix], blast[mix]), flush=True)


if __name__ == "__main__":
    main()
