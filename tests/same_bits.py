"""One image through every way to the network, told apart by an engine whose answer is a digest of its input.

The engine lets OpenVINO look up the float32 input as it does for a network, takes 24 bits of its SHA-256 and makes one
logit of them. So an answer of the service,
a row of `blastwatch score` and a logit of the evaluation each say which bits the network was given, whatever batch
they came in. What is expected is computed here, without `blastwatch.images`.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from blastwatch.absent import REPORTS_USE, leave_out
from blastwatch.decision import POSITIVE, probabilities
from blastwatch.images import Preprocessing
from blastwatch.inference import Outputs
from blastwatch.manifest import read_cells
from blastwatch.openvino_engine import reading_crops
from monitoring.statistics import STATISTICS, image_statistics
from monitoring.store import open_store
from serving.keys import KeyFolder
from serving.live import LiveModel
from serving.scoring import score
from tests.in_thread import front
from tests.odd_images import odd_image
from training.importing import import_cells
from training.loop import predict_logits
from training.pack import open_pack, write_pack

EMBEDDING = 512


def fingerprint(cell: np.ndarray) -> np.float32:
    """A number below 4 in magnitude, exact in float32, of one float32 input (3, size, size)."""
    assert cell.dtype == np.float32
    digest = hashlib.sha256(np.ascontiguousarray(cell).tobytes()).digest()
    return np.float32(int.from_bytes(digest[:3]) / 2**21 - 4)


def logits_of(cells: np.ndarray) -> np.ndarray:
    """What the engine answers to inputs (n, 3, size, size): float32 (n, 2)."""
    return with_blast([fingerprint(cell) for cell in cells])


class DigestEngine:
    """Stands where OpenVINO stands."""

    name, abreast, on_cores = "openvino-f32", 1, True

    def __init__(self, shape: Preprocessing) -> None:
        self._inputs = looked_up(shape)

    def rest(self) -> None:
        pass

    def infer(self, crops: np.ndarray) -> Outputs:
        logits = logits_of(self._inputs(crops))
        return Outputs(logits=logits, embeddings=np.zeros((len(crops), EMBEDDING), np.float32))


def looked_up(shape: Preprocessing) -> Callable[[np.ndarray], np.ndarray]:
    """What a network of OpenVINO reads of crops (n, size, size, 3): float32 (n, 3, size, size)."""
    leave_out(REPORTS_USE)
    import openvino
    from openvino import opset13

    inputs = opset13.parameter([-1, 3, shape.size, shape.size], np.float32)
    graph = openvino.Model([opset13.multiply(inputs, opset13.constant(np.float32(1)))], [inputs])
    compiled = openvino.Core().compile_model(
        reading_crops(graph, shape), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )  # fmt: skip
    return lambda crops: np.array(compiled([np.ascontiguousarray(crops)])[0])


class DigestNetwork(torch.nn.Module):
    """Stands where the network of the evaluation stands."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(1))

    def forward(self, cells):
        return torch.from_numpy(logits_of(cells.numpy()))


def independent_input(data: bytes, shape: Preprocessing) -> np.ndarray:
    """The input as the documentation words it, in numpy but for the decoder and the resampling."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA").convert("RGB")
    values = np.asarray(image)
    square = np.zeros((shape.crop, shape.crop, 3), np.uint8)
    places = []
    for side in values.shape[:2]:
        first = (side - shape.crop) // 2  # of the image, where it is larger than the crop
        places.append((slice(max(first, 0), max(first, 0) + shape.crop), max(-first, 0)))
    (rows, top), (columns, left) = places
    cut = values[rows, columns]
    square[top : top + cut.shape[0], left : left + cut.shape[1]] = cut
    small = np.asarray(Image.fromarray(square).resize((shape.size, shape.size), Image.Resampling.BICUBIC))
    scaled = (small.astype(np.float64) / 255 - np.array(shape.mean)) / np.array(shape.std)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1).astype(np.float32))


@dataclass
class Ways:
    """What each way said of each file, by path.

    said: by way, the probability that tells the input's bits; the way `expected` is computed independently. refused: by
    way, the reason. statistics: by way, the image statistics.
    """

    said: dict[str, dict[str, float]]
    refused: dict[str, dict[str, str]]
    statistics: dict[str, dict[str, dict[str, float]]]

    def faults(self) -> list[str]:
        """Every file of which two ways do not say the same."""
        found = []
        for kind in (self.said, self.refused, self.statistics):
            (first, known), *others = kind.items()
            for way, rows in others:
                apart = [path for path in sorted(known.keys() | rows.keys()) if known.get(path) != rows.get(path)]
                found += [f"{path}: {first} {known.get(path)}, {way} {rows.get(path)}" for path in apart]
        return found


def write_odd_images(folder: Path, numbers: range, *, seed: int = 0) -> dict[str, str]:
    """Write the files of some numbers as an import wants them; what is odd about each, by path."""
    names = {}
    for number in numbers:
        what, suffix, data = odd_image(number, seed=seed)
        path = Path("all" if number % 2 else "hem") / f"patient{number % 7}" / f"{number}{suffix}"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        names[path.as_posix()] = what
    return names


def walk(source: Path, work: Path, served, settings, *, batch: int = 32) -> Ways:
    """Take a folder of files through import, pack and evaluation, through `blastwatch score`, and through the service,
    whose captured statistics are read from the database."""
    package = served.package
    shape, temperature = package.info.preprocessing, package.info.temperature
    imported = import_cells(source, work / "cells", kind="folder")
    cells = read_cells(work / "cells")
    write_pack(cells, shape, work / "pack")
    packed = open_pack(work / "pack", cells)
    logits = predict_logits(DigestNetwork(), packed, np.arange(len(packed.paths)))
    table, unscored = score(source, LiveModel(served=served, engine=DigestEngine(shape)), settings)
    expected = [fingerprint(independent_input((source / path).read_bytes(), shape)) for path in packed.paths]
    answers, refused = ask_service(source, work / "home", served, batch)
    return Ways(
        said={
            "expected": dict(zip(packed.paths, blasts(with_blast(expected), temperature), strict=True)),
            "training": dict(zip(packed.paths, blasts(logits, temperature), strict=True)),
            "score": dict(zip(table["path"], table["probability"], strict=True)),
            "service": {path: answer["probability"] for path, answer in answers.items()},
        },
        refused={
            "training": {refusal.path: refusal.reason for refusal in imported.refused},
            "score": {refusal.path: refusal.reason for refusal in unscored},
            "service": refused,
        },
        statistics={
            "training": {p: image_statistics(crop, shape) for p, crop in zip(packed.paths, packed.crops, strict=True)},
            "service": {path: answer["quality"]["statistics"] for path, answer in answers.items()},
            "capture": {path: answer["captured"] for path, answer in answers.items()},
        },
    )


def ask_service(source: Path, home: Path, served, batch: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Send every file, in batches; the answers with what was captured of each, and the reasons of refusals, by path."""
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    answers, refused = {}, {}
    key = KeyFolder(home / "api-keys").add("lab")
    with front(
        served, home, engine=DigestEngine(served.package.info.preprocessing), BLASTWATCH_CAPTURE_QUEUE="20000"
    ) as service:
        for first in range(0, len(paths), batch):
            some = paths[first : first + batch]
            sent = [("images", path.read_bytes()) for path in some]
            reply = service.ask("/v1/predict_batch", key, files=sent)
            assert reply.status_code == 200, reply.text
            for path, result in zip(some, reply.json()["results"], strict=True):
                name = path.relative_to(source).as_posix()
                if "status" in result:
                    refused[name] = result["type"].removeprefix("/problems/image-")
                else:
                    answers[name] = result
        database = service.settings.predictions_url
    counts = service.service.capture.counts()
    assert (counts.dropped, counts.stored) == (0, len(answers)), counts
    with open_store(database) as store:
        rows = store.read().set_index("id")[list(STATISTICS)].to_dict("index")
    return {name: answer | {"captured": rows[answer["id"]]} for name, answer in answers.items()}, refused


def with_blast(values: Sequence[np.float32]) -> np.ndarray:
    """Logits (n, 2) with these for the blast and 0 for the other class."""
    logits = np.zeros((len(values), 2), np.float32)
    logits[:, POSITIVE] = values
    return logits


def blasts(logits: np.ndarray, temperature: float) -> list[float]:
    return probabilities(logits, temperature)[:, POSITIVE].tolist()
