"""`python -m tests.benchmarks.crops [--engine openvino-int8 --architecture resnet50 --size 224]`: what the engine's
graph takes to make float32 inputs of crops.

The engine with uint8 crops against the same engine with what `blastwatch.images.normalise` made of them before, in
turns: core time a cell, the median of all rounds, and the ratio within a round. Beside it the time of `normalise`, one
thread of numpy, that the lookup within the graph saves.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from blastwatch.engines import open_engine
from blastwatch.images import crop_cell, normalise
from tests.benchmarks.serving import install
from tests.service_packages import draw_cell

CELLS = 16  # in a batch


def core_ms(call: Callable[[], object]) -> float:
    """Milliseconds of core time a cell."""
    began = time.process_time()
    call()
    return 1000 * (time.process_time() - began) / CELLS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="openvino-int8")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        package = install(Path(home), asked)
        engine, shape = open_engine(package, asked.engine), package.info.preprocessing
        crops = np.stack([crop_cell(draw_cell(number), shape) for number in range(CELLS)])
        inputs = normalise(crops, shape)
        ways: dict[str, Callable[[], object]] = {
            "with crops": lambda: engine.infer(crops),
            "with inputs": lambda: engine.infer_inputs(inputs),
            "normalise alone": lambda: normalise(crops, shape),
        }
        for call in ways.values():  # warms up
            call()
        taken = {name: [] for name in ways}
        for _ in range(asked.rounds):
            for name, call in ways.items():
                taken[name].append(core_ms(call))
    print(f"{asked.architecture} at {asked.size} px, {asked.engine}, batches of {CELLS}\n")
    for name, times in taken.items():
        print(f"{name}: {statistics.median(times):.2f} ms of core time a cell ({min(times):.2f} at best)")
    ratios = [ours / theirs for ours, theirs in zip(taken["with crops"], taken["with inputs"], strict=True)]
    print(f"crops over inputs: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
