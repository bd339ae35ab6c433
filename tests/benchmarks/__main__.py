"""`make bench`: every figure is a ratio against a reference in the same run."""

import io
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from blastwatch.engines import open_engine
from blastwatch.images import Preprocessing, crop_cell, decode, normalise
from blastwatch.package import open_package
from monitoring.statistics import image_statistics
from tests.service_packages import draw_cell, make_servable

ROUNDS = 5


def rate(work, items: int) -> float:
    """Items a second, the median of `ROUNDS` runs after one that warms up."""
    work()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return items / statistics.median(times)


def show(name: str, reference: str, ours: float, theirs: float, unit: str) -> None:
    print(f"{name:<34} {ours:9.1f} {unit}   {ours / theirs:6.2f} times {reference} ({theirs:.1f})")


def bench_preprocessing() -> None:
    """From a 450x450 BMP to the network's input, against a bare Pillow decode."""
    buffer = io.BytesIO()
    Image.fromarray(draw_cell()).save(buffer, format="BMP")
    data, shape, count = buffer.getvalue(), Preprocessing(), 50

    def bare():
        for _ in range(count):
            Image.open(io.BytesIO(data)).convert("RGB").load()

    def ours():
        for _ in range(count):
            normalise(crop_cell(decode(data), shape)[None], shape)

    def measured():
        crop = crop_cell(decode(data), shape)
        for _ in range(count):
            image_statistics(crop, shape)

    theirs = rate(bare, count)
    show("decode, crop, normalise", "a bare Pillow decode", rate(ours, count), theirs, "cells/s")
    show("image statistics", "a bare Pillow decode", rate(measured, count), theirs, "cells/s")


def bench_engines() -> None:
    """ResNet-50 at 224 px, batches of 16, against torch eager in float32."""
    with tempfile.TemporaryDirectory() as scratch:
        package = open_package(make_servable(Path(scratch) / "package", architecture="resnet50", size=224))
        cells = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), np.uint8)
        theirs = None
        for name in ("torch-f32", "torch-bf16", "openvino-f32", "openvino-bf16"):
            engine = open_engine(package, name)
            found = rate(lambda engine=engine: engine.infer(cells), len(cells))
            theirs = theirs or found
            show(f"engine {name}", "torch-f32", found, theirs, "cells/s")


if __name__ == "__main__":
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, median of {ROUNDS} rounds")
    bench_preprocessing()
    bench_engines()
