"""`python -m tests.benchmarks.importing FOLDER`: the import against a bare loop that reads and decodes the same files.

FOLDER is a C-NMC download. The loop runs in one process on one core, without hashing: what Pillow alone can do. The
import decodes, hashes file and pixels, and writes the manifest.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from tests.benchmarks.near_duplicates import measure
from training.importing import list_source


def bare(root: Path, paths: list[str]) -> float:
    """Images a second of reading each file into an RGB array."""
    start = time.perf_counter()
    for path in paths:
        with Image.open(root / path) as image:
            np.asarray(image.convert("RGB"))
    return len(paths) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    listing = list_source(folder, kind="cnmc")
    paths = [candidate.path for candidate in listing.candidates]
    bare(listing.root, paths)  # fills the system's file cache for all that follow
    with tempfile.TemporaryDirectory() as work:
        os.environ["BLASTWATCH_HOME"] = f"{work}/home"
        call = ("data", "import", str(folder), "--kind", "cnmc", "--out", f"{work}/cells")
        for turn in range(3):
            loop = bare(listing.root, paths)
            seconds, peak = measure(*call, "--fresh")
            rate, cores = len(paths) / seconds, os.cpu_count() or 1
            print(
                f"{turn + 1}  bare loop {loop:6.0f} images/s on one core   import {rate:6.0f} images/s on {cores}, "
                f"peak {peak:.0f} MiB   {rate / loop:.2f} of the loop, {rate / loop / cores:.2f} per core",
                flush=True,
            )
        measure(*call)
        seconds, _ = measure(*call)
        print(f"   a second import of the same files: {seconds:.1f} s")


if __name__ == "__main__":
    main()
