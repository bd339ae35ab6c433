"""Packages that can be served, and a registry with a champion, for the tests of the service."""

import dataclasses
from pathlib import Path

import numpy as np

from blastwatch.engines import infer_all, open_engine
from blastwatch.golden import write_golden
from blastwatch.images import Preprocessing, crop_cell, normalise
from blastwatch.network import build, load_weights, save_weights
from blastwatch.package import (
    DIGESTS,
    MODEL,
    ONNX,
    ONNX_INT8,
    WEIGHTS,
    ModelInfo,
    Package,
    Precision,
    seal,
)
from blastwatch.registry import CHAMPION, Entry, Registry
from blastwatch.settings import Settings
from blastwatch.signing import PROMOTER
from monitoring.statistics import STATISTICS, image_statistics
from tests.drawn import draw_cell, write_cell  # noqa: F401 - others take both from here
from tests.packages import make_package, write_projection


def make_servable(
    folder: Path, *, run_id: str = "run", architecture: str = "resnet18", size: int = 32, seed: int = 0
) -> Path:
    """Seal a package around an untrained network that its engines can run; `hem` is its wide limits' kind of image."""
    import torch

    make_package(folder, run_id=run_id, seed=seed)
    torch.manual_seed(seed)
    network = build(architecture).eval()
    save_weights(network, folder / WEIGHTS)
    load_weights(network, folder / WEIGHTS)
    (folder / ONNX).write_bytes(export(network, size))
    (folder / ONNX_INT8).write_bytes((folder / ONNX).read_bytes())
    width = network.fc.in_features
    axes = np.random.default_rng(seed).normal(size=(32, width)).astype(np.float32)
    write_projection(folder, axes)
    shape = Preprocessing(crop=320, size=size)
    known = image_statistics(crop_cell(draw_cell(0), shape), shape)
    limits = {name: (known[name] * 0.5 - 0.5, known[name] * 1.5 + 0.5) for name in STATISTICS}
    info = ModelInfo.from_json((folder / MODEL).read_text())
    precision = {
        name: Precision(cells=8, flip_rate=0.0, largest_difference=0.05)
        for name in ("openvino-bf16", "openvino-int8", "torch-bf16")
    }
    info = dataclasses.replace(
        info, architecture=architecture, preprocessing=shape, quality_limits=limits, precision=precision
    )
    (folder / MODEL).write_text(info.to_json())
    crops = np.stack([crop_cell(draw_cell(number, radius=60.0 + 12 * number), shape) for number in range(4)])
    engine = open_engine(Package(folder=folder, info=info, digest=""), "openvino-f32")
    write_golden(folder, crops, infer_all(engine, normalise(crops, shape)).logits)
    (folder / DIGESTS).unlink()
    seal(folder)
    return folder


def export(network, size: int) -> bytes:
    """The graph of a package: `cells` -> `logits`, `embedding`, any number of cells."""
    import io
    import warnings

    import torch

    from blastwatch.network import forward_with_embedding

    names = ("cells", "logits", "embedding")

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, cells):
            return forward_with_embedding(self.network, cells)

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Both().eval(), (torch.zeros(2, 3, size, size),), buffer, dynamo=False, input_names=["cells"],
            output_names=["logits", "embedding"], dynamic_axes={name: {0: "n"} for name in names},
        )  # fmt: skip
    return buffer.getvalue()


def crown(settings: Settings, folder: Path, *, alias: str = CHAMPION, **options) -> Entry:
    """Make a servable package under a run of the settings' store, register it and give it an alias, without gates."""
    from mlflow import MlflowClient

    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    known = client.get_experiment_by_name("service")
    experiment = known.experiment_id if known else client.create_experiment("service", settings.artifacts.as_uri())
    run = client.create_run(experiment)
    registry = Registry(settings)
    entry = registry.register(make_servable(folder, run_id=run.info.run_id, **options))
    return give_alias(registry, entry, alias)


def give_alias(registry: Registry, entry: Entry, alias: str = CHAMPION) -> Entry:
    """Signed and written down as a promotion is, for tests that are about something else than the gates."""
    with registry.writing(PROMOTER) as writer:
        writer.move("promote" if alias == CHAMPION else "challenge", alias, entry, why="a test")
    return registry.entry(entry.version)
