"""`python -m tests.benchmarks.flips --weights FILE --cells DIR --pack DIR --split DIR`: what faster engines get wrong.

The network is exported and quantized as packaging does it, on cells of calibration patients, its logits are corrected
by cells of all but the test patients, and the engines of the CPU answer cells of test patients. Printed as Markdown,
against `openvino-f32`: labels that flip, in all cells and in those whose probability is beyond `SURE`; the largest
difference of a probability; of the margin, which is the logit of a blast less that of a normal cell, the mean
difference and how far its noise lies below its spread (decibels); and how many times as fast as torch eager in float32
the engine is: batches in turn in the same run, the median and the range.

With `ONEDNN_MAX_CPU_ISA=AVX2` in its environment OpenVINO computes as on a processor without VNNI and AVX-512; the
figures of `openvino-bf16` and of speed are then of no use.
"""

import argparse
import dataclasses
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.engines import open_engine
from blastwatch.images import Pixels
from blastwatch.inference import Engine, in_batches
from blastwatch.manifest import SIDES, read_cells, read_split
from blastwatch.network import ARCHITECTURES, build, load_weights
from blastwatch.package import MODEL, ONNX, ONNX_INT8, WEIGHTS, ModelInfo, Package
from tests.packages import make_package
from training.export import export_onnx, fit_logits, quantize
from training.pack import Packed, open_pack
from training.packaging import CORRECTED_ON

REFERENCE = "openvino-f32"
ENGINES = ("openvino-bf16", "openvino-int8")
SLOWEST = "torch-f32"
SURE = 0.9  # a cell is called sure where either class is more probable than this
TIMED = 16  # cells in a batch that is timed
PART = 256  # cells whose float32 input is in memory at a time


class Cells:
    """The pack's cells of some rows, as the network reads them."""

    def __init__(self, packed: Packed, rows: pd.DataFrame) -> None:
        self.rows, self._packed = rows, packed

    def crops(self, first: int = 0, count: int | None = None) -> Pixels:
        paths = self.rows["path"].tolist()[first : None if count is None else first + count]
        return self._packed.crops[self._packed.rows_of(paths)]

    def logits(self, engine: Engine) -> NDArray[np.float64]:
        starts = range(0, len(self.rows), PART)
        parts = [in_batches(engine.infer, self.crops(first, PART)).logits for first in starts]
        return np.concatenate(parts).astype(np.float64)


def pick(rows: pd.DataFrame, sides: list[str], most: int, random: np.random.Generator) -> pd.DataFrame:
    """At most so many cells of some sides, drawn without regard to their patients."""
    found = rows[rows["side"].isin(sides)]
    return found.iloc[np.sort(random.choice(len(found), min(most, len(found)), replace=False))]


def make_graphs(asked: argparse.Namespace, calibration: Cells, packed: Packed, folder: Path) -> Package:
    """A package of the network with both graphs; all else in it is made up, and it is not sealed."""
    info = ModelInfo.from_json((make_package(folder) / MODEL).read_text())
    info = dataclasses.replace(info, architecture=asked.architecture, preprocessing=packed.preprocessing)
    network = build(asked.architecture).eval()
    load_weights(network, asked.weights)
    shutil.copy(asked.weights, folder / WEIGHTS)
    export_onnx(network, packed.preprocessing.size, folder / ONNX)
    began = time.monotonic()
    quantize(folder / ONNX, calibration.crops(), packed.preprocessing, folder / ONNX_INT8)
    print(f"Quantized on {len(calibration.rows)} cells in {time.monotonic() - began:.0f} s")
    return Package(folder=folder, info=info, digest="")


def ratios(engines: dict[str, Engine], crops: Pixels, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Of each round, how many times as fast as `SLOWEST` every engine is; the rounds go through the engines in turn."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 2):  # the first two only warm up
        for name, engine in engines.items():
            began = time.perf_counter()
            engine.infer(crops)
            if number >= 2:
                taken[name].append(time.perf_counter() - began)
    return {name: np.array(taken[SLOWEST]) / np.array(times) for name, times in taken.items()}


def compared(found: NDArray[np.float64], expected: NDArray[np.float64], temperature: float) -> str:
    """The columns of one engine, from logits of shape (n, 2)."""
    ours, theirs = (probabilities(logits, temperature)[:, POSITIVE] for logits in (found, expected))
    flipped, sure = (ours >= 0.5) != (theirs >= 0.5), np.maximum(theirs, 1 - theirs) > SURE
    margins = [logits[:, POSITIVE] - logits[:, 1 - POSITIVE] for logits in (found, expected)]
    apart = margins[0] - margins[1]
    noise = 10 * np.log10(margins[1].var() / np.square(apart).mean())
    return (
        f"{flipped.sum()} ({100 * flipped.mean():.2f} %) | {(flipped & sure).sum()} of {sure.sum()} | "
        f"{np.abs(ours - theirs).max():.3f} | {apart.mean():+.3f} | {noise:.1f}"
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="weights.safetensors of `blastwatch train`")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="resnet50")
    parser.add_argument("--cells", type=Path, default=Path("data/cells"))
    parser.add_argument("--pack", type=Path, default=Path("data/pack"))
    parser.add_argument("--split", type=Path, default=Path("data/split"))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["test"], help="whose cells are compared")
    parser.add_argument("--most", type=int, default=2500, help="cells that are compared")
    parser.add_argument("--calibration", type=int, default=256, help="cells that int8 is calibrated on")
    parser.add_argument("--temperature", type=float, default=1.0, help="which cells are sure depends on it")
    parser.add_argument("--rounds", type=int, default=10, help="batches that are timed")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    packed = open_pack(asked.pack, read_cells(asked.cells))
    rows = read_split(asked.cells, asked.split).sort_values("path", ignore_index=True)
    random = np.random.default_rng(asked.seed)
    cells = Cells(packed, pick(rows, asked.sides, asked.most, random))
    calibration = Cells(packed, pick(rows, ["calibration"], asked.calibration, random))
    known = Cells(packed, pick(rows, [side for side in SIDES if side != "test"], CORRECTED_ON, random))
    with tempfile.TemporaryDirectory() as scratch:
        package = make_graphs(asked, calibration, packed, Path(scratch) / "package")
        engines = {name: open_engine(package, name) for name in (SLOWEST, REFERENCE, *ENGINES)}
        expected, aim = cells.logits(engines[REFERENCE]), known.logits(engines[REFERENCE])
        print(f"{len(cells.rows)} cells of {cells.rows['group'].nunique()} groups of patients\n")
        print("| engine | times torch eager | flips | of sure cells | apart by at most | margin: mean | dB below |")
        print("|---" * 7 + "|")
        speeds = ratios(engines, cells.crops(count=TIMED), asked.rounds)
        for name in (REFERENCE, *ENGINES):
            speed = speeds[name]
            times = f"{np.median(speed):.1f} ({speed.min():.1f} to {speed.max():.1f})"
            found = "| " * 4  # what all are compared with
            if name != REFERENCE:
                scale, shift = fit_logits(known.logits(engines[name]), aim)
                found = compared(scale * cells.logits(engines[name]) + shift, expected, asked.temperature)
            print(f"| `{name}` | {times} | {found} |", flush=True)


if __name__ == "__main__":
    main()
