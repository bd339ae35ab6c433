"""`python -m tests.benchmarks.gpu --cells FOLDER_OF_BMP [--weights FILE --architecture NAME]`: what a GPU gives.

Against the card's own ceiling, a matrix product in bfloat16 of the same run: the network eager in float32 and in
bfloat16, and the engine of CUDA graphs, each from data on the card; the engine from host memory to host memory; image
files to answers; one cell alone; and how often bfloat16 says another label than float32. Without cells they are drawn,
without weights they are untrained and seeded. Needs torch, torchvision, numpy, Pillow and safetensors.

It ends after --limit seconds whatever is left, and writes what it has after every step.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.graph_engine import SIZES, GraphEngine
from blastwatch.images import Preprocessing, crop_cell, decode, normalise
from blastwatch.inference import Outputs
from blastwatch.network import build, forward_with_embedding, load_weights
from tests.benchmarks.gpu_flow import flow
from tests.drawn import write_cell

RESNET50_FLOP = 2 * 4.09e9  # of one image of 224 px: a multiplication and an addition each
SUFFIXES = (".bmp", ".png")
ROTATED = 4  # different random inputs, so that no cache of the card holds the next one
ONE_BY_ONE = 300  # cells that are also answered alone, in the graph of one cell
SEED = 0

VARIANTS: dict[str, tuple[str, dict[str, bool]]] = {
    "graphs bf16": ("torch-bf16-graphs", {"join_relu": False, "search": False}),
    "graphs bf16, searched": ("torch-bf16-graphs", {"join_relu": False, "search": True}),
    "graphs bf16, ReLU joined": ("torch-bf16-graphs", {"join_relu": True, "search": False}),
    "graphs bf16, ReLU joined, searched": ("torch-bf16-graphs", {"join_relu": True, "search": True}),
    "graphs f16": ("torch-f16-graphs", {"join_relu": False, "search": False}),
}

STEPS = ("eager", "flips", "normalise", "latency", "files to answers", "host to host", "compiled")


class Bench:
    """What the steps share: the device, the sizes, the network, and the figures found so far."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked, self.device, self.cuda = asked, torch.device(asked.device), asked.device == "cuda"
        quick = asked.quick
        self.shape = Preprocessing(size=asked.size or (32 if quick else 224))
        self.batches = (1, 4) if quick else (1, 8, 32, 64, 256)
        self.rounds, self.seconds = (2, 0.05) if quick else (3, 0.12)
        self.began = time.monotonic()
        torch.manual_seed(SEED)
        self.network = build(asked.architecture).eval()
        if asked.weights:
            load_weights(self.network, asked.weights)
        else:
            settle_statistics(self.network, self.shape.size)
        self.found: dict[str, Any] = {"machine": self.machine(), "raw": {}, "opened_s": {}}

    def machine(self) -> dict[str, Any]:
        asked = self.asked
        return {
            "device": torch.cuda.get_device_name() if self.cuda else platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "cudnn": torch.backends.cudnn.version() if self.cuda else None,
            "cores": len(os.sched_getaffinity(0)),
            "network": f"{asked.architecture} at {self.shape.size} px",
            "weights": "given" if asked.weights else f"untrained, seed {SEED}",
        }

    def left(self) -> float:
        return float(self.asked.limit - (time.monotonic() - self.began))

    def write(self) -> None:
        if self.asked.out:
            self.asked.out.write_text(json.dumps(self.found, indent=2) + "\n")

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def rate(self, call: Callable[[int], object], items: int) -> float:
        """Items a second: the median of some windows, each of so many calls as fill its seconds."""
        for turn in range(3):
            call(turn)
        self.wait()
        started = time.perf_counter()
        call(0)
        self.wait()
        calls = max(1, min(2000, int(self.seconds / max(time.perf_counter() - started, 1e-6))))
        found = []
        for _ in range(self.rounds):
            started = time.perf_counter()
            for turn in range(calls):
                call(turn)
            self.wait()
            found.append(calls * items / (time.perf_counter() - started))
        return statistics.median(found)

    def graph_engine(self, label: str, name: str = "torch-bf16-graphs", **options: Any) -> GraphEngine:
        """A fresh engine, and the seconds that it took to open."""
        started = time.perf_counter()
        options = {"sizes": self.batches, "device": self.asked.device} | options
        engine = GraphEngine(deepcopy(self.network), self.shape, name, **options)
        self.wait()
        self.found["opened_s"][label] = time.perf_counter() - started
        return engine


def settle_statistics(network: nn.Module, size: int) -> None:
    """Let the normalisations of an untrained network see noise, so that they are not those of a network that passes
    everything on."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean
    network.train()
    with torch.no_grad():
        network(torch.randn(8, 3, size, size))
    network.eval()


def ceiling(bench: Bench) -> None:
    """FLOP a second of a square matrix product in bfloat16, of random numbers."""
    side = 512 if bench.asked.quick else 8192
    left, right = (torch.randn(side, side, device=bench.device).bfloat16() for _ in range(2))
    rate = bench.rate(lambda _turn: left @ right, 1)
    bench.found["ceiling_tflops"] = rate * 2 * side**3 / 1e12


def eager(network: nn.Module, *, dtype: torch.dtype | None, tf32: bool) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The network as torch runs it, in channels_last, weights cast."""
    moved: Any = deepcopy(network) if dtype is None else deepcopy(network).to(dtype)
    moved = moved.to(memory_format=torch.channels_last)

    def run(cells: Tensor) -> tuple[Tensor, Tensor]:
        cells = cells.to(dtype or torch.float32).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32):
            return forward_with_embedding(moved, cells)

    return run


def raw(bench: Bench, name: str, run: Callable[[Tensor], object]) -> None:
    """Images a second from inputs that lie on the card, at each batch size."""
    found = bench.found["raw"].setdefault(name, {})
    for batch in bench.batches:
        with torch.inference_mode():
            cells = [torch.randn(batch, 3, *(2 * [bench.shape.size]), device=bench.device) for _ in range(ROTATED)]
            found[str(batch)] = bench.rate(lambda turn, cells=cells: run(cells[turn % ROTATED]), batch)


def raw_eager(bench: Bench) -> None:
    network = deepcopy(bench.network).to(bench.device)
    raw(bench, "eager f32", eager(network, dtype=None, tf32=False))
    raw(bench, "eager f32, TF32 convolutions", eager(network, dtype=None, tf32=True))
    raw(bench, "eager bf16", eager(network, dtype=torch.bfloat16, tf32=False))


def raw_graphs(bench: Bench, name: str) -> GraphEngine:
    kind, options = VARIANTS[name]
    engine = bench.graph_engine(name, kind, **options)
    raw(bench, name, engine.forward)
    return engine


def host_to_host(bench: Bench, engines: dict[str, GraphEngine]) -> None:
    """`infer` and `infer_inputs`, from arrays to arrays, one and two callers."""
    found = bench.found["host to host"] = {}
    random = np.random.default_rng(SEED)
    for name, engine in engines.items():
        for batch in (each for each in bench.batches if each <= SIZES[-1]):
            crops = [random.integers(0, 256, (batch, *(2 * [bench.shape.size]), 3), np.uint8) for _ in range(ROTATED)]
            inputs = [normalise(each, bench.shape) for each in crops]
            row = found[f"{name}, batch {batch}"] = {}
            row["infer_inputs"] = bench.rate(lambda turn, a=inputs, e=engine: e.infer_inputs(a[turn % ROTATED]), batch)
            row["infer"] = bench.rate(lambda turn, a=crops, e=engine: e.infer(a[turn % ROTATED]), batch)
            with ThreadPoolExecutor(2) as pool:

                def both(turn: int, a: list[np.ndarray] = crops, e: GraphEngine = engine, p: Any = pool) -> None:
                    list(p.map(e.infer, (a[turn % ROTATED], a[(turn + 1) % ROTATED])))

                row["infer, 2 callers"] = bench.rate(both, 2 * batch)


def normalised_alike(bench: Bench, engine: GraphEngine, crops: np.ndarray) -> None:
    """Whether the card's look-up gives the bits of `blastwatch.images.normalise`."""
    there = engine.normalise(torch.from_numpy(crops[:64]).to(bench.device)).contiguous().cpu().numpy()
    bench.found["normalised to the same bits on the card"] = (
        there.tobytes() == normalise(crops[:64], bench.shape).tobytes()
    )


def flips(bench: Bench, engines: dict[str, GraphEngine], crops: np.ndarray) -> None:
    """Labels and probabilities against float32 without TF32, over the same cells.

    An untrained network calls every cell the same. For it the border is put at the median of what float32 says and the
    spread of that taken as one, so that as many cells as can be lie near the border.
    """
    run = eager(deepcopy(bench.network).to(bench.device), dtype=None, tf32=False)

    def reference(part: np.ndarray) -> Outputs:
        logits, embeddings = run(torch.from_numpy(normalise(part, bench.shape)).to(bench.device))
        return Outputs(logits=logits.cpu().numpy(), embeddings=embeddings.cpu().numpy())

    def logits(infer: Callable[[np.ndarray], Outputs], cells: np.ndarray, at_once: int) -> np.ndarray:
        parts = [infer(cells[first : first + at_once]).logits for first in range(0, len(cells), at_once)]
        return np.concatenate(parts).astype(np.float64)

    plain = logits(reference, crops, 64)
    shift, scale = np.zeros(2), bench.asked.temperature
    if not bench.asked.weights:
        margin = plain[:, POSITIVE] - plain[:, 1 - POSITIVE]
        shift[POSITIVE], scale = np.median(margin), max(float(margin.std()), 1e-9)

    def blasts(values: np.ndarray) -> np.ndarray:
        return probabilities(values - shift, scale)[:, POSITIVE]

    expected = blasts(plain)
    found = bench.found["against f32"] = {"cells": len(crops), "share called a blast": float((expected >= 0.5).mean())}
    for name, engine in engines.items():
        got = blasts(logits(engine.infer, crops, 64))
        single = blasts(logits(engine.infer, crops[:ONE_BY_ONE], 1))
        found[name] = {
            "label_flips": int(((got >= 0.5) != (expected >= 0.5)).sum()),
            "largest_difference": float(np.abs(got - expected).max()),
            f"label_flips_one_by_one_of_{len(single)}": int(((single >= 0.5) != (got[: len(single)] >= 0.5)).sum()),
            "largest_difference_one_by_one": float(np.abs(got[: len(single)] - single).max()),
        }


def files_to_answers(bench: Bench, name: str, engine: GraphEngine, paths: list[Path]) -> None:
    """Decoded on every core in one process's threads, or in processes, and answered in batches of 64."""
    found = bench.found["files to answers"] = {"engine": name}
    options = {"workers": bench.found["machine"]["cores"], "temperature": bench.asked.temperature}
    options |= {"seconds": 0.5, "batch": 8} if bench.asked.quick else {"seconds": 4.0, "batch": 64}
    for label, crops, processes in (
        ("threads, crops", True, False), ("threads, inputs", False, False), ("processes, crops", True, True),
    ):  # fmt: skip
        infer = engine.infer if crops else engine.infer_inputs
        found[label] = flow(infer, paths, bench.shape, crops=crops, processes=processes, **options)


def latency(bench: Bench, engines: dict[str, GraphEngine], paths: list[Path]) -> None:
    """Median milliseconds of one cell, from its bytes to its probability, and of the engine alone."""
    files = [path.read_bytes() for path in paths[: 5 if bench.asked.quick else 100]]
    found = bench.found["one cell, ms"] = {}
    for name, engine in engines.items():
        whole, alone = [], []
        for data in files:
            started = time.perf_counter()
            crop = crop_cell(decode(data), bench.shape)[None]
            decoded = time.perf_counter()
            outputs = engine.infer(crop)
            inferred = time.perf_counter()
            probabilities(outputs.logits, bench.asked.temperature)
            whole.append(time.perf_counter() - started)
            alone.append(inferred - decoded)
        found[name] = {"whole": 1000 * statistics.median(whole), "engine": 1000 * statistics.median(alone)}


def compiled(bench: Bench) -> None:
    """torch.compile under a graph of one size, if there is time for the compiler."""
    if bench.left() < 50 or not bench.cuda:
        bench.found["compiled"] = f"left out with {bench.left():.0f} s left"
        return
    size = 64
    engine = bench.graph_engine("compiled", sizes=(size,), compiled=True)
    bench.batches = (size,)
    raw(bench, "graphs bf16, compiled", engine.forward)


def tried(bench: Bench, what: str, step: Callable[[], Any]) -> Any:
    """Run a step, note its failure and go on: the machine is here once."""
    started = time.monotonic()
    try:
        return step()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is written down
        bench.found.setdefault("failed", {})[what] = f"{type(error).__name__}: {error}"[:1000]
        return None
    finally:
        bench.found.setdefault("took_s", {})[what] = time.monotonic() - started
        bench.write()


def report(bench: Bench) -> None:
    found = bench.found
    print(json.dumps(found["machine"]))
    top = found.get("ceiling_tflops", float("nan"))
    print(f"ceiling: {top:.1f} TFLOP/s of a bf16 matrix product\n")
    print(
        "| images/s at a batch of | " + " | ".join(map(str, bench.found["batches"])) + " | best, share of the ceiling |"
    )
    print("|---" * (2 + len(bench.found["batches"])) + "|")
    for name, row in found["raw"].items():
        if not row:
            continue  # it was cut off within this one
        shown = " | ".join(f"{row[str(size)]:.0f}" if str(size) in row else "" for size in bench.found["batches"])
        share = max(row.values()) * RESNET50_FLOP / (top * 1e12)
        known = bench.asked.architecture == "resnet50" and bench.shape.size == 224
        print(f"| {name} | {shown} | {f'{share:.1%}' if known else ''} |")
    for name in (name for name in found if name not in ("machine", "raw", "batches", "ceiling_tflops")):
        print(f"\n{name}: {json.dumps(found[name], indent=1)}")


def cells_of(asked: argparse.Namespace, scratch: Path) -> list[Path]:
    """The given image files, or drawn ones."""
    if asked.cells:
        found = sorted(path for path in asked.cells.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise SystemExit(f"Expected images ({', '.join(SUFFIXES)}) in {asked.cells} but found none.")
        return found[: asked.most]
    count = 16 if asked.quick else 256
    return [write_cell(scratch / f"{number}.bmp", number) for number in range(count)]


def crops_of(asked: argparse.Namespace, paths: list[Path], shape: Preprocessing) -> np.ndarray:
    """Crops to compare precisions on: of the pack of `blastwatch data pack`, else of the files."""
    if asked.pack:
        return np.array(np.load(asked.pack / "crops.npy", mmap_mode="r")[: asked.most])
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return np.stack(list(pool.map(lambda path: crop_cell(decode(path.read_bytes()), shape), paths)))


def run(bench: Bench, paths: list[Path]) -> None:
    """Every step that is asked for, the most wanted first."""

    def step(what: str, call: Callable[[], Any]) -> None:
        if not bench.asked.only or what in bench.asked.only:
            tried(bench, what, call)

    bench.found["batches"] = list(bench.batches)
    tried(bench, "ceiling", partial(ceiling, bench))
    step("eager", partial(raw_eager, bench))
    engines: dict[str, GraphEngine] = {}
    for name in bench.asked.variants:
        if engines and bench.left() < 0.5 * bench.asked.limit:
            bench.found.setdefault("left out", []).append(name)
            continue
        opened = tried(bench, name, partial(raw_graphs, bench, name))
        if opened is not None:
            engines[name] = opened
    if not engines:
        return
    best = max(engines, key=lambda name: ("bf16" in name, max(bench.found["raw"][name].values())))
    fastest = engines[best]
    crops = crops_of(bench.asked, paths, bench.shape)
    step("flips", partial(flips, bench, engines, crops))
    step("normalise", partial(normalised_alike, bench, fastest, crops))
    step("latency", partial(latency, bench, {best: fastest}, paths))
    step("files to answers", partial(files_to_answers, bench, best, fastest, paths))
    step("host to host", partial(host_to_host, bench, {best: fastest}))
    step("compiled", partial(compiled, bench))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=Path, help="folder of single-cell images")
    parser.add_argument("--pack", type=Path, help="folder of packed crops, to compare the precisions on")
    parser.add_argument("--most", type=int, default=2000, help="cells to read")
    parser.add_argument("--weights", type=Path, help="safetensors of --architecture")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--size", type=int, help="px of the network's input; 224, or 32 with --quick")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which it ends")
    parser.add_argument("--out", type=Path, help="JSON file of all figures")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--only", nargs="+", choices=STEPS, help="steps beside the raw figures; all of them by default")
    asked = parser.parse_args()
    bench = Bench(asked)

    def cut_off() -> None:
        bench.found["cut off after s"] = asked.limit
        bench.write()
        report(bench)
        os._exit(0)

    watch = threading.Timer(max(bench.left() - 2, 1), cut_off)
    watch.daemon = True
    watch.start()
    with tempfile.TemporaryDirectory() as scratch:
        run(bench, cells_of(asked, Path(scratch)))
    watch.cancel()
    report(bench)


if __name__ == "__main__":
    main()
