"""`make bench`: every figure is a ratio against a reference in the same run."""

import functools
import io
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from blastwatch.engines import open_engine
from blastwatch.images import Preprocessing, crop_cell, decode, normalise
from blastwatch.package import open_package
from monitoring.statistics import image_statistics
from tests.benchmarks.turns import in_turns
from tests.service_packages import draw_cell, make_servable

ROUNDS = 5


def show(reference: str, works: dict[str, Callable[[], object]], items: int, unit: str) -> None:
    """Items a second of each work, and how many times those of the reference, one of them, in the same round."""
    rounds = [dict(zip(works, seconds, strict=True)) for seconds in in_turns(list(works.values()), ROUNDS)]
    rates = {name: items / statistics.median(one[name] for one in rounds) for name in works}
    for name in works:
        ratio = statistics.median(one[reference] / one[name] for one in rounds)
        print(f"{name:<34} {rates[name]:9.1f} {unit}   {ratio:6.2f} times {reference} ({rates[reference]:.1f})")


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

    works = {"a bare Pillow decode": bare, "decode, crop, normalise": ours, "image statistics": measured}
    show("a bare Pillow decode", works, count, "cells/s")


def bench_engines() -> None:
    """ResNet-50 at 224 px, batches of 16, against torch eager in float32."""
    with tempfile.TemporaryDirectory() as scratch:
        package = open_package(make_servable(Path(scratch) / "package", architecture="resnet50", size=224))
        cells = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), np.uint8)
        names = ("torch-f32", "torch-bf16", "openvino-f32", "openvino-bf16")
        works = {name: functools.partial(open_engine(package, name).infer, cells) for name in names}
        show("torch-f32", works, len(cells), "cells/s")


if __name__ == "__main__":
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, median of {ROUNDS} rounds")
    bench_preprocessing()
    bench_engines()
