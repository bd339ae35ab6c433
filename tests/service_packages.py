"""Packages that can be served, and a registry with a champion, for the tests of the service."""

import dataclasses
import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from blastwatch.entry import Entry
from blastwatch.golden import write_golden
from blastwatch.images import Preprocessing, crop_cell, normalise
from blastwatch.network import build, head_of, save_weights
from blastwatch.package import (
    DIGESTS,
    MODEL,
    ONNX,
    ONNX_INT8,
    WEIGHTS,
    ModelInfo,
    Precision,
    seal,
)
from blastwatch.registry import CHAMPION, Registry
from blastwatch.settings import Settings
from blastwatch.signing import PROMOTER
from monitoring.statistics import TABLE, image_statistics
from tests.drawn import draw_cell, write_cell  # noqa: F401 - others take both from here
from tests.packages import make_package, write_projection


def make_servable(
    folder: Path, *, run_id: str = "run", architecture: str = "resnet18", size: int = 32, seed: int = 0
) -> Path:
    """Seal a package around an untrained network that its engines can run; `hem` is its wide limits' kind of image."""
    make_package(folder, run_id=run_id, seed=seed)
    made = make_network(architecture, size, seed)
    (folder / WEIGHTS).write_bytes(made.weights)
    (folder / ONNX).write_bytes(made.graph)
    (folder / ONNX_INT8).write_bytes(made.graph)
    axes = np.random.default_rng(seed).normal(size=(32, made.width)).astype(np.float32)
    write_projection(folder, axes)
    known = image_statistics(crop_cell(draw_cell(0), made.shape), made.shape)
    judged = [row.name for row in TABLE if row.low_reason]
    limits = {name: (known[name] * 0.5 - 0.5, known[name] * 1.5 + 0.5) for name in judged}
    info = ModelInfo.from_json((folder / MODEL).read_text())
    precision = {
        name: Precision(cells=8, flip_rate=0.0, largest_difference=0.05)
        for name in ("openvino-bf16", "openvino-int8", "torch-bf16")
    }
    info = dataclasses.replace(
        info, architecture=architecture, preprocessing=made.shape, quality_limits=limits, precision=precision
    )
    (folder / MODEL).write_text(info.to_json())
    write_golden(folder, made.crops, made.logits)
    (folder / DIGESTS).unlink()
    seal(folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Network:
    """What a package holds of an untrained network: its files, and golden crops with its answers."""

    weights: bytes
    graph: bytes
    width: int
    shape: Preprocessing
    crops: NDArray[np.uint8]
    logits: NDArray[np.float32]


@functools.lru_cache(maxsize=3)
def make_network(architecture: str, size: int, seed: int) -> Network:
    """Drawing, exporting and compiling one takes a second, and most tests want the same."""
    import torch

    torch.manual_seed(seed)
    network = build(architecture).eval()
    graph = export(network, size)
    shape = Preprocessing(crop=320, size=size)
    crops = np.stack([crop_cell(draw_cell(number, radius=60.0 + 12 * number), shape) for number in range(4)])
    with TemporaryDirectory() as place:
        folder = Path(place)
        save_weights(network, folder / WEIGHTS)
        weights = (folder / WEIGHTS).read_bytes()
    with torch.inference_mode():
        logits = network(torch.from_numpy(normalise(crops, shape))).numpy()
    return Network(weights, graph, network.get_submodule(head_of(network)).in_features, shape, crops, logits)


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


def champion_and_another(settings: Settings, folder: Path) -> Registry:
    """The registry of a champion, version 1, and a candidate that was never promoted, version 2; neither can serve."""
    from mlflow import MlflowClient

    client, registry = MlflowClient(settings.tracking_uri, settings.tracking_uri), Registry(settings)
    experiment = client.create_experiment("test", artifact_location=settings.artifacts.as_uri())
    for number in (1, 2):
        run = client.create_run(experiment).info.run_id
        entry = registry.register(make_package(folder / f"p{number}", run_id=run, seed=number))
        if number == 1:
            give_alias(registry, entry)
    return registry


def give_alias(registry: Registry, entry: Entry, alias: str = CHAMPION) -> Entry:
    """Signed and written down as a promotion is, for tests that are about something else than the gates."""
    with registry.writing(PROMOTER) as writer:
        writer.move("promote" if alias == CHAMPION else "challenge", alias, entry, why="a test")
    return registry.entry(entry.version)
