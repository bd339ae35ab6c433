"""`python -m tests.benchmarks.same_bits --images 10000`: odd image files through every way to the network.

Training (import, pack, evaluation), `blastwatch score` and the service give each file to an engine that answers with a
digest of its input; monitoring's statistics are read back from the pack, the answers and the database. It prints how
many files all ways say the same of, in bits, and what the ways refused; the exit code is 1 where two differ.

What training itself feeds is augmented, so it has no bits in common with the rest: of it the largest difference is
printed that remains when nothing is drawn.
"""

import argparse
import collections
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from blastwatch.entry import Entry
from blastwatch.images import normalise
from blastwatch.manifest import read_cells
from blastwatch.package import open_package
from blastwatch.settings import load
from serving.live import Served
from tests.same_bits import walk, write_odd_images
from tests.service_packages import make_servable
from training.augmentation import Draws
from training.feeding import Feeder
from training.pack import open_pack

PART = 1000  # files that lie on the disk at a time
FED = 64  # cells through the feeder in each part


def nothing_drawn(count: int) -> Draws:
    return Draws(
        affine=torch.eye(2, 3).repeat(count, 1, 1),
        density=torch.eye(3).repeat(count, 1, 1),
        added=torch.zeros(count, 3),
        light=torch.zeros(count, 2),
        sigma=torch.zeros(count),
        erased=torch.zeros(count, 3),
    )


def fed_apart(work: Path) -> float:
    """Largest difference of what training feeds, undrawn, from what is evaluated."""
    packed = open_pack(work / "pack", read_cells(work / "cells"))
    feeder = Feeder(packed, torch.device("cpu"), channels_last=True)
    rows = np.arange(min(FED, len(packed.paths)))[None]
    ((_, crops),) = feeder.batches(rows)
    fed = feeder.inputs(crops, nothing_drawn(len(crops)), packed.preprocessing.size)
    return float(np.abs(fed.numpy() - normalise(crops, packed.preprocessing)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=10000)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    apart, began = 0.0, time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        package = open_package(make_servable(Path(scratch) / "package", size=asked.size))
        entry = Entry(
            version="1", digest=package.digest, run_id="run", created="2026-01-01T00:00:00+00:00", synthetic=True,
            registered_by="benchmark", aliases=["champion"], metrics={},
        )  # fmt: skip
        served, settings = Served(entry=entry, package=package, alias="champion"), load({"BLASTWATCH_HOME": scratch})
        for first in range(0, asked.images, PART):
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                work, numbers = Path(folder), range(first, min(first + PART, asked.images))
                write_odd_images(work / "source", numbers, seed=asked.seed)
                ways = walk(work / "source", work, served, settings)
                faults += ways.faults()
                apart = max(apart, fed_apart(work))
                counts["the same bits in every way"] += len(ways.said["expected"])
                counts.update(f"refused as {reason} in every way" for reason in ways.refused["service"].values())
    print(f"{asked.images} files at {asked.size} px in {time.monotonic() - began:.0f} s")
    for what, count in counts.most_common():
        print(f"{count:7d} {what}")
    print(f"{len(faults):7d} of which two ways differ")
    for fault in faults[:20]:
        print(f"        {fault}")
    print(f"{apart:.2g} largest difference of training's own feeder when nothing is drawn")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
