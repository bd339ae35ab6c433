"""`python -m tests.benchmarks.strangers --package DIR --cells DIR --split DIR [--fields DIR]`: what becomes of images
that are no cells of a known kind, and how many cells of patients never seen are taken for such.

Every image goes the service's way: its file is decoded, measured, cropped and answered by the engine. Strangers are the
fields of a folder, photographs that scikit-image carries (a cat among them), drawn noise, and the test cells in other
stains, out of focus, inverted, or as a person would photograph them on white. Printed as Markdown: the share that is
referred by the measurements of the image, by the embedding, and by either.
"""

import argparse
import io
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from blastwatch.engines import open_engine
from blastwatch.manifest import read_json, read_split
from blastwatch.package import open_package
from monitoring.stain import restain
from serving.predictor import Judge, Prepared, prepare

PHOTOGRAPHS = (
    "chelsea.png", "astronaut.png", "coffee.png", "retina.jpg", "ihc.png", "rocket.jpg", "hubble_deep_field.jpg",
)  # fmt: skip
BLUR = ImageFilter.GaussianBlur(6)
STRENGTHS = (1.0, 2.0)  # of the other stain


def written(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "BMP")
    return buffer.getvalue()


def tiles(files: Iterable[Path], side: int = 450) -> Iterable[bytes]:
    """The middle of each picture, as large as a cell's frame."""
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = side / min(image.size)
        if scale > 1:
            image = image.resize((round(image.width * scale) + 1, round(image.height * scale) + 1))
        left, top = (image.width - side) // 2, (image.height - side) // 2
        yield written(image.crop((left, top, left + side, top + side)))


def noise(count: int) -> Iterable[bytes]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield written(Image.fromarray(random.integers(0, 256, (450, 450, 3), dtype=np.uint8)))


def changed(files: Iterable[Path], change: Callable[[Image.Image], Image.Image]) -> Iterable[bytes]:
    for file in files:
        yield written(change(Image.open(file).convert("RGB")))


def stained(strength: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: Image.fromarray(restain(np.asarray(image), strength=strength))


def smaller(image: Image.Image) -> Image.Image:
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
    out = Image.new("RGB", image.size)
    out.paste(half, (image.width // 4, image.height // 4))
    return out


def on_white(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[pixels.max(axis=2) == 0] = 245
    return Image.fromarray(pixels)


def inverted(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image)
    return Image.fromarray(np.where(pixels.max(axis=2, keepdims=True) > 0, 255 - pixels, 0).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--package", type=Path, default=Path("results/package"))
    parser.add_argument("--cells", type=Path, default=Path("data/cells"))
    parser.add_argument("--split", type=Path, default=Path("data/split"))
    parser.add_argument("--fields", type=Path, help="a folder of whole fields")
    parser.add_argument("--engine", default="openvino-f32")
    parser.add_argument("--most", type=int, default=500, help="test cells, taken in turn from every patient")
    given = parser.parse_args()
    package = open_package(given.package)
    judge, engine = Judge(package), open_engine(package, given.engine)
    assert judge.ood is not None

    def answered(images: Iterable[bytes]) -> list[tuple[Prepared, float, str]]:
        found = []
        for data in images:
            prepared = prepare(data, package)
            outputs = engine.infer(prepared.crop[None])
            said = judge(prepared, outputs.logits[0], outputs.embeddings[0])
            found.append((prepared, float(said.ood_score or 0), said.decision))
        return found

    rows = read_split(given.cells, given.split)
    tested = rows[rows["side"] == "test"].sort_values("path")
    turn = tested.groupby("group").cumcount()
    tested = tested.assign(turn=turn).sort_values(["turn", "group"]).head(given.most)
    root = (given.cells / read_json(given.cells / "import.json", made_by="blastwatch data import")["root"]).resolve()
    files = [root / path for path in tested["path"]]
    few = files[: given.most // 5]
    import skimage

    pictures = Path(skimage.__file__).parent / "data"
    kinds: dict[str, Iterable[bytes]] = {"cells of test patients": (file.read_bytes() for file in files)}
    if given.fields:
        fields = sorted(path for path in given.fields.rglob("*") if path.suffix in (".jpg", ".png", ".bmp"))
        kinds["whole fields"] = tiles(fields)
    kinds["photographs (a cat, a face, a cup, ...)"] = tiles(pictures / name for name in PHOTOGRAPHS)
    kinds["noise"] = noise(20)
    kinds |= {f"test cells, another stain, strength {s:g}": changed(few, stained(s)) for s in STRENGTHS}
    kinds["test cells, blurred by 6 px"] = changed(few, lambda image: image.filter(BLUR))
    kinds["test cells, colours inverted"] = changed(few, inverted)
    kinds["test cells, half as large"] = changed(few, smaller)
    kinds["test cells on white"] = changed(few, on_white)

    print(f"Limit of the out-of-distribution score: {judge.ood.limit:.2f}; engine {given.engine}\n")
    print("| images | number | by measurements | by embedding | by either | referred in all |\n" + "|---" * 6 + "|")
    for kind, images in kinds.items():
        found = answered(images)
        measured = np.array([bool(item.concerns) for item, _, _ in found])
        unlike = np.array([score > judge.ood.limit for _, score, _ in found])
        referred = np.array([decision == "refer" for *_, decision in found])
        shares = (measured, unlike, measured | unlike, referred)
        print(f"| {kind} | {len(found)} | " + " | ".join(f"{100 * share.mean():.1f} %" for share in shares) + " |")
        if kind == "cells of test patients":
            by_patient = pd.Series(measured | unlike).groupby(tested["group"].astype(str).to_numpy()).mean()
    print(f"\nTest patients' cells taken for strangers, by patient: mean {100 * by_patient.mean():.1f} %, ", end="")
    print(f"most {100 * by_patient.max():.1f} % of {len(by_patient)} patients")


if __name__ == "__main__":
    main()
