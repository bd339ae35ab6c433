"""`python -m tests.benchmarks.cameras DIR --cells DIR [--most 12]`: what the trainings of a cross-validation say under
other cameras, each of cells of patients that it never saw, as a Markdown table.

The first rows are the causes that drift is told by (`monitoring.shifts`), which `train.nuisances` looks at too; the
others are changes that it does not look at, the first of them those that an evaluation asks about too
(`training.unsimulated`). All are applied to the images as the camera took them. A cell is answered by the training of
its fold; accuracy at one half, and AUROC within the folds, averaged.
"""

import argparse
import io
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score

from blastwatch.decision import CLASS_NAMES, POSITIVE
from blastwatch.images import Pixels, Preprocessing, crop_cell, decode
from blastwatch.manifest import read_cells
from monitoring.shifts import SHIFTS, shift
from tests.benchmarks.trained_folds import by_fold, seen_by, tested_cells
from training.unsimulated import UNSIMULATED, Change, by_light, grey, on_cell

CAMERA = Preprocessing(crop=320, size=320)
STRENGTHS = (0.5, 1.0)


def by_picture(change: Callable[[Image.Image], Image.Image]) -> Change:
    """Of a picture without black around the cell, at whose edge a filter would stumble."""

    def run(image: Pixels) -> Pixels:
        cell = image.max(axis=2) > 0
        filled = np.where(cell[..., None], image, image[cell].mean(axis=0)).astype(np.uint8)
        return on_cell(image, np.asarray(change(Image.fromarray(filled)), np.float32))

    return run


def webp(picture: Image.Image) -> Image.Image:
    written = io.BytesIO()
    picture.save(written, "WEBP", quality=50)
    return Image.open(written).convert("RGB")


def smaller(image: Pixels) -> Pixels:
    """Four fifths as many pixels along a length."""
    side = round(0.8 * image.shape[0])
    found, start = np.zeros_like(image), (image.shape[0] - side) // 2
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    found[start : start + side, start : start + side] = np.asarray(small)
    return found


OTHERS: dict[str, Change] = {
    **UNSIMULATED,
    "white balance to blue": by_light(lambda light: light * np.array([0.8, 1, 1.25], np.float32)),
    "less green": by_light(lambda light: light * np.array([1, 0.8, 1], np.float32)),
    "gamma of 1.4": by_light(lambda light: 255 * (light / 255) ** 1.4),
    "half again as colourful": by_light(lambda light: grey(light) + 1.5 * (light - grey(light))),
    "sharpened": by_picture(lambda picture: picture.filter(ImageFilter.UnsharpMask(2, 150, 0))),
    "median of 5 px": by_picture(lambda picture: picture.filter(ImageFilter.MedianFilter(5))),
    "WebP of 50": by_picture(webp),
    "shot noise": by_light(lambda light: 4.0 * np.random.default_rng(0).poisson(light / 4)),
    "fewer pixels": smaller,
}
SIMULATED = [(name, strength) for name in SHIFTS for strength in STRENGTHS]
NAMES = ["as they are", *(f"{name.replace('_', ' ')}, {strength:g}" for name, strength in SIMULATED), *OTHERS]


def shown(path: Path, seen: Preprocessing) -> Pixels:
    """One cell in the order of `NAMES`, uint8 (names, size, size, 3)."""
    image = crop_cell(decode(path.read_bytes()), CAMERA)
    random = np.random.default_rng(zlib.crc32(path.name.encode()))
    changed = [image, *(shift(image, name, strength, random=random) for name, strength in SIMULATED)]
    return np.stack([crop_cell(one, seen) for one in [*changed, *(change(image) for change in OTHERS.values())]])


def answers(out: Path, recipe: str, cells: pd.DataFrame, root: Path) -> np.ndarray:
    """Log odds of a blast, shape (cells, names), of each cell by the training of its fold."""
    found, seen = np.full((len(cells), len(NAMES)), np.nan), seen_by(out)
    for _, part, engine in by_fold(out, recipe, cells):
        with ProcessPoolExecutor(1) as pool:
            crops = pool.map(shown, [root / path for path in part["path"]], repeat(seen), chunksize=4)
            logits = np.stack([engine.infer(one).logits for one in crops])
        found[part.index] = logits[:, :, POSITIVE] - logits[:, :, 1 - POSITIVE]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("crossvalidation", type=Path, help="folder of blastwatch crossvalidate")
    parser.add_argument("--cells", type=Path, required=True)
    parser.add_argument("--most", type=int, default=12, help="cells of a patient")
    given = parser.parse_args()
    every = read_cells(given.cells)
    cells = tested_cells(given.crossvalidation, every, given.most)
    ill = (cells["label"] == CLASS_NAMES[POSITIVE]).to_numpy()
    recipes = sorted(facts.parts[-4] for facts in given.crossvalidation.glob("recipes/*/0/train/train.json"))
    odds = {recipe: answers(given.crossvalidation, recipe, cells, every.root) for recipe in recipes}
    print(f"{len(cells)} cells of {cells['group'].nunique()} patients: accuracy (AUROC)\n")
    print(f"| shift | {' | '.join(recipes)} |\n|---{'|---' * len(recipes)}|")
    for number, name in enumerate(NAMES):
        told = []
        for recipe in recipes:
            said = odds[recipe][:, number]
            areas = [roc_auc_score(ill[rows], said[rows]) for rows in cells.groupby("fold").indices.values()]
            told.append(f"{((said >= 0) == ill).mean():.3f} ({np.mean(areas):.3f})")
        print(f"| {name} | {' | '.join(told)} |")


if __name__ == "__main__":
    main()
