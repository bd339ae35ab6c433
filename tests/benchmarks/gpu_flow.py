"""From image files to answers in one process beside a GPU: decoded on every core, answered in batches."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context, shared_memory
from pathlib import Path
from queue import SimpleQueue

import numpy as np

from blastwatch.decision import POSITIVE, probabilities
from blastwatch.images import Preprocessing, crop_cell, decode, normalise
from blastwatch.inference import Outputs

CHUNK = 8  # cells in one task of a decoder
AHEAD = 6  # batches that are decoded, or wait, at the same time
ANSWERING = 2  # threads that call the engine

_held: list[np.ndarray] = []  # in a decoder: the array that it writes to
_memory: list[shared_memory.SharedMemory] = []  # keeps the array's memory mapped


def attach(name: str, shape: tuple[int, ...], kind: str) -> None:
    """Map the array of `flow` into this process."""
    memory = shared_memory.SharedMemory(name)
    _memory[:] = [memory]
    _held[:] = [np.ndarray(shape, kind, buffer=memory.buf)]


def read_into(slot: int, first: int, paths: Sequence[Path], shape: Preprocessing) -> None:
    """Decode and crop some files into a batch of the array; normalise too, where it is of float32."""
    rows = _held[0][slot]
    for row, path in enumerate(paths, start=first):
        crop = crop_cell(decode(path.read_bytes()), shape)
        rows[row] = crop if rows.dtype == np.uint8 else normalise(crop[None], shape)[0]


def flow(
    infer: Callable[[np.ndarray], Outputs],
    paths: Sequence[Path],
    shape: Preprocessing,
    *,
    crops: bool,
    processes: bool,
    workers: int,
    batch: int,
    seconds: float,
    temperature: float,
) -> float:
    """Cells a second, from files in the page cache to calibrated probabilities.

    Args:
        infer: of the engine; takes crops (uint8) or inputs (float32).
        crops: which of the two it takes.
        processes: decode in processes with shared memory, not in threads.
        batch: cells in a batch of the engine, a multiple of `CHUNK`.
    """
    one = (shape.size, shape.size, 3) if crops else (3, shape.size, shape.size)
    kind = "uint8" if crops else "float32"
    whole = (AHEAD, batch, *one)
    memory = shared_memory.SharedMemory(create=True, size=int(np.prod(whole)) * np.dtype(kind).itemsize)
    setup = (memory.name, whole, kind)
    attach(*setup)
    if processes:
        pool: Executor = ProcessPoolExecutor(workers, get_context("spawn"), initializer=attach, initargs=setup)
    else:
        pool = ThreadPoolExecutor(workers)
    try:
        with pool:
            return _pump(pool, infer, paths, shape, batch=batch, seconds=seconds, temperature=temperature)
    finally:
        _held.clear()
        for each in (*_memory, memory):
            each.close()
        _memory.clear()
        memory.unlink()


def _pump(
    pool: Executor,
    infer: Callable[[np.ndarray], Outputs],
    paths: Sequence[Path],
    shape: Preprocessing,
    *,
    batch: int,
    seconds: float,
    temperature: float,
) -> float:
    free: SimpleQueue[int] = SimpleQueue()
    for slot in range(AHEAD):
        free.put(slot)
    finished: list[float] = []
    lock = threading.Lock()

    def answer(slot: int, reading: list[Future[None]]) -> None:
        for part in reading:
            part.result()
        blasts = probabilities(infer(_held[0][slot]).logits, temperature)[:, POSITIVE]
        assert len(blasts) == len(_held[0][slot])
        with lock:
            finished.append(time.perf_counter())
        free.put(slot)

    turn, begun = 0, False
    end = time.perf_counter() + 60  # until the pool has started, in any case
    answers = []
    with ThreadPoolExecutor(ANSWERING) as engine:
        while time.perf_counter() < end:
            if not begun and len(finished) > AHEAD:
                end, begun = time.perf_counter() + seconds, True
            slot, reading = free.get(), []
            for first in range(0, batch, CHUNK):
                chosen = [paths[(turn + number) % len(paths)] for number in range(CHUNK)]
                reading.append(pool.submit(read_into, slot, first, chosen, shape))
                turn += CHUNK
            answers.append(engine.submit(answer, slot, reading))
            failed = next((each for each in answers if each.done() and each.exception()), None)
            if failed:
                failed.result()
            answers = [each for each in answers if not each.done()]
    steady = sorted(finished)[AHEAD:]
    return batch * (len(steady) - 1) / (steady[-1] - steady[0])
