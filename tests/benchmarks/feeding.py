"""`python -m tests.benchmarks.feeding`: training from packed cells against the same steps on a batch that is there.

The reference takes the same steps of the same network on one normalised batch that stays on the device: no reading,
no augmentation. Both are run in turn, block by block, so that a machine that slows down slows both. Further: bf16 with
channels_last against float32 without, freed memory that is kept against memory that is given back, and the memory of
training from packs of different sizes.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from blastwatch.images import Preprocessing
from training.loop import Trainer
from training.memory import keep_freed_memory
from training.pack import Packed
from training.parameters import TrainParameters
from training.precision import choose_precision
from training.sampling import Side
from training.weights import first_network

PATIENTS = 40


def random_pack(folder: Path, cells: int, size: int) -> Packed:
    """A memory-mapped pack of noise; what the pixels show costs the same."""
    path = folder / f"{cells}.npy"
    crops = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(cells, size, size, 3))
    random = np.random.default_rng(0)
    for start in range(0, cells, 256):
        part = crops[start : start + 256]
        part[:] = random.integers(0, 256, part.shape, dtype=np.uint8)
    crops.flush()
    names = tuple(f"{number}.bmp" for number in range(cells))
    return Packed(np.load(path, mmap_mode="r"), names, Preprocessing(size=size), "")


def side(cells: int) -> Side:
    rows = np.arange(cells)
    subjects = np.array([f"S{number % PATIENTS}" for number in rows], dtype=object)
    return Side(rows, (rows % PATIENTS) % 2, subjects, np.ones(cells, np.float32), subjects)


def trainer(packed: Packed, parameters: TrainParameters) -> Trainer:
    network = first_network(parameters.architecture, "scratch", "", seed=1)
    made = Trainer(network, parameters, packed, side(len(packed.paths)))
    made._begin(0)
    return made


def feeds(made: Trainer, resident: bool) -> Callable[[], None]:
    """Gives a call that takes the next step."""
    size = made.packed.preprocessing.size
    batches = made._batches(0, 0)
    _, crops, chosen = next(batches)
    if resident:
        inputs = made.feeder.inputs(crops, made._draw(0)[0], size)
        made.feeder.inputs = lambda *_: inputs
        return lambda: made.train_step(0, crops, chosen, size=size)

    def step() -> None:
        number, crops, chosen = next(batches)
        made.train_step(number, crops, chosen, size=size)

    return step


def in_turn(calls: list[Callable[[], None]], *, rounds: int, steps: int, batch: int) -> list[list[float]]:
    """Images a second of each call, round by round; the first round warms up and is dropped."""
    found: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 1):
        for call, rates in zip(calls, found, strict=True):
            start = time.perf_counter()
            for _ in range(steps):
                call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                rates.append(batch * steps / (time.perf_counter() - start))
    return found


def show_feeding(folder: Path, parameters: TrainParameters, arguments: argparse.Namespace) -> None:
    cells = (arguments.rounds + 2) * arguments.steps * parameters.batch_size
    packed = random_pack(folder, cells, arguments.size)
    calls = [feeds(trainer(packed, parameters), resident) for resident in (False, True)]
    ours, theirs = in_turn(calls, rounds=arguments.rounds, steps=arguments.steps, batch=parameters.batch_size)
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    ratio = f"{statistics.median(ratios):.3f} times ({ratios[0]:.3f} to {ratios[-1]:.3f})"
    print(
        f"from packed cells {statistics.median(ours):7.1f} images/s   from a resident batch "
        f"{statistics.median(theirs):7.1f}   {ratio}"
    )


def show_precision(folder: Path, parameters: TrainParameters, arguments: argparse.Namespace) -> None:
    packed = random_pack(folder, parameters.batch_size * 2, arguments.size)
    fast = replace(parameters, precision="auto", channels_last=True)
    plain = replace(parameters, precision="fp32", channels_last=False)
    calls = [feeds(trainer(packed, one), True) for one in (fast, plain)]
    kind = choose_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")).kind
    ours, theirs = in_turn(calls, rounds=3, steps=arguments.steps, batch=parameters.batch_size)
    factor = statistics.median(ours) / statistics.median(theirs)
    print(
        f"{kind} channels_last {statistics.median(ours):10.1f} images/s   fp32, channels first "
        f"{statistics.median(theirs):9.1f}   {factor:.2f} times"
    )


def show_freed_memory(parameters: TrainParameters, arguments: argparse.Namespace) -> None:
    """Training with freed memory kept (`training.memory`) and given back, each in a process of its own in turn."""
    context = multiprocessing.get_context("spawn")
    rates: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(2 * arguments.processes):
        told: multiprocessing.Queue[float] = context.Queue()
        process = context.Process(target=rate_of, args=(parameters, arguments, turn % 2 == 0, told))
        process.start()
        rates[turn % 2 == 0].append(told.get())
        process.join()
    kept, given = (statistics.median(rates[keep]) for keep in (True, False))
    print(f"freed memory kept {kept:14.1f} images/s   given back {given:18.1f}   {kept / given:.2f} times")


def rate_of(
    parameters: TrainParameters, arguments: argparse.Namespace, keep: bool, told: "multiprocessing.Queue[float]"
) -> None:
    """Put images a second of a training on one resident batch."""
    if keep:
        keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        packed = random_pack(Path(scratch), parameters.batch_size * 2, arguments.size)
        call = feeds(trainer(packed, parameters), True)
        (rates,) = in_turn([call], rounds=2, steps=arguments.steps, batch=parameters.batch_size)
    told.put(statistics.median(rates))


def show_memory(parameters: TrainParameters) -> None:
    """Memory of trainings on few and on many cells, each in a process of its own."""
    small = replace(parameters, architecture="resnet18", batch_size=32)
    for cells in (2_000, 20_000):
        process = multiprocessing.get_context("spawn").Process(target=train_on, args=(cells, small))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(process.exitcode)


def train_on(cells: int, parameters: TrainParameters) -> None:
    """Memory that belongs to no file: pages of the mapped pack are the system's and are given back."""
    with tempfile.TemporaryDirectory() as scratch:
        step = feeds(trainer(random_pack(Path(scratch), cells, 64), parameters), False)
        held = []
        for _ in range(40):  # as many as an epoch of the smaller pack has
            step()
            held.append(anonymous_mib())
        print(
            f"memory with {cells:6} cells: {held[5]:7.0f} MiB after 6 steps, {held[-1]:7.0f} MiB after 40", flush=True
        )


def anonymous_mib() -> float:
    rows = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(row for row in rows if row.startswith("Anonymous:")).split()[1]) / 1024  # kB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="of a block")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="of each kind, for the memory that is freed")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    parameters = TrainParameters(
        architecture=arguments.architecture, batch_size=arguments.batch, augment=1.5, erase=0.25,
        balance_by="sampling", compile=arguments.compile,
    )  # fmt: skip
    keep_freed_memory()  # as every training does
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{len(os.sched_getaffinity(0))} cores"
    print(
        f"{platform.machine()}, {where}; {arguments.architecture} at {arguments.size} px, batches of {arguments.batch}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        show_feeding(Path(scratch), parameters, arguments)
        show_precision(Path(scratch), parameters, arguments)
    if not torch.cuda.is_available():
        show_freed_memory(parameters, arguments)
    show_memory(parameters)


if __name__ == "__main__":
    main()
