"""`python -m tests.benchmarks.near_duplicates [SIZE ...] [--planted FOLDER]`: what the audit costs, and what it finds.

The cost is that of `blastwatch data audit` against `blastwatch data import` (decode and hash) of the same images in the
same run. FOLDER is a C-NMC download; the copies planted for the measurement are written into a copy of it.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from blastwatch.manifest import read_cells
from blastwatch.processes import script
from tests.planted import plant, stopped
from training.audit import read_audit
from training.importing import import_cells
from training.synthesis import draw_style
from training.synthesis_cell import draw_cell

EACH = 100  # cells of a patient


def draw_patient(root: Path, number: int) -> None:
    """A hundred different cells as PNG; `blastwatch data synth` writes BMP, of which 100,000 take 60 GB."""
    random = np.random.default_rng([number, 1])
    label = ("all", "hem")[number % 5 > 2]
    style = draw_style(label, random)
    folder = root / f"C-NMC_training_data/fold_{number % 3}/{label}"
    folder.mkdir(parents=True, exist_ok=True)
    for cell in range(EACH):
        name = f"UID_{'H' if label == 'hem' else ''}{number + 1}_{cell // 20 + 1}_{cell % 20 + 1}_{label}.png"
        Image.fromarray(draw_cell(style, random)).save(folder / name, compress_level=1)


def measure(*arguments: str) -> tuple[float, float]:
    """Wall seconds and peak resident MiB of one command."""
    start = time.perf_counter()
    child = os.posix_spawn(script("blastwatch"), ["blastwatch", *arguments], os.environ)
    _, status, usage = os.wait4(child, 0)
    if status:
        sys.exit(f"blastwatch {' '.join(arguments)} failed")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def cost(size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with ProcessPoolExecutor() as pool:
            list(pool.map(draw_patient, [work / "source"] * (size // EACH), range(size // EACH), chunksize=4))
        cells, audit = str(work / "cells"), str(work / "audit")
        imported, import_peak = measure("data", "import", str(work / "source"), "--kind", "cnmc", "--out", cells)
        audited, audit_peak = measure("data", "audit", cells, "--out", audit)
        found = len(read_audit(work / "audit", read_cells(work / "cells")).findings)
    print(
        f"{size:>7} images  import {imported:6.1f} s, {import_peak:5.0f} MiB   "
        f"audit {audited:6.1f} s, {audit_peak:5.0f} MiB, {1000 * audited / size:5.2f} s per 1,000, "
        f"{audited / imported:4.2f} times the import   {found} findings",
        flush=True,
    )


def recall(folder: Path, count: int = 1000) -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copytree(folder, work / "source")
        clean = import_cells(work / "source", work / "clean", kind="cnmc")
        planted = plant(work / "source", clean.rows["path"].tolist(), count, seed=5)
        import_cells(work / "source", work / "cells", kind="cnmc")
        start = time.perf_counter()
        shares, leak, unplanned = stopped(read_cells(work / "cells"), planted)
        print(f"{count} leaks planted among {len(clean.rows)} cells, {time.perf_counter() - start:.1f} s; leak: {leak}")
        print(shares.map("{:.3f}".format).to_string())
        print(f"near findings that nobody planted: {unplanned}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", type=int)
    parser.add_argument("--planted", type=Path)
    asked = parser.parse_args()
    for wanted in asked.sizes:
        cost(wanted)
    if asked.planted:
        recall(asked.planted)
