"""`python -m tests.benchmarks.gpu_serving [--engine torch-f16-graphs --workers 1 8]`: the service beside a GPU.

From the bytes of a request to the bytes of its answer, against what the GPU computes from inputs that lie on it, in one
run. Between the two stand the cores of the host: reading one image and all that HTTP takes. So the loop of
`tests.benchmarks.gpu_flow`, which reads files without a service, is measured as well, and the seconds of all cores that
one cell takes in the service and in the callers.

The network is an untrained ResNet-50; its golden cells are compared all the same. Callers run on the cores of the
service, which a caller elsewhere would leave to it.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import torch

from blastwatch.engines import open_engine
from blastwatch.graph_engine import GraphEngine
from blastwatch.inference import Engine
from blastwatch.processes import free_port
from blastwatch.settings import load
from tests.benchmarks.gpu_flow import flow
from tests.benchmarks.serving import BATCH_CALL, FILES, Load, install, load_on, multipart, request
from tests.running import Running
from tests.service_packages import write_cell

RAW_BATCH, RAW_CALLS = 64, 50
START_SECONDS = 200  # many workers that load at the same time
MIB = 1 << 20


@torch.inference_mode()
def raw(engine: Engine, size: int) -> float:
    """Cells a second from inputs that lie on the GPU; in the host's memory for an engine that takes only those."""
    random = np.random.default_rng(0)
    cells = [random.standard_normal((RAW_BATCH, 3, size, size), dtype=np.float32) for _ in range(4)]
    if isinstance(engine, GraphEngine) and torch.cuda.is_available():
        held = [torch.from_numpy(each).cuda() for each in cells]

        def call(turn: int) -> object:
            return engine.forward(held[turn % 4])

    else:

        def call(turn: int) -> object:
            return engine.infer_inputs(cells[turn % 4])

    calls = RAW_CALLS if torch.cuda.is_available() else 2
    rates = []
    for _ in range(4):
        started = time.perf_counter()
        for turn in range(calls):
            call(turn)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rates.append(calls * RAW_BATCH / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def load_from(port: int, messages: list[bytes], callers: int, seconds: float, processes: int) -> Load:
    """Callers in several processes at once: one alone cannot read so many answers."""
    shares = [callers // processes + (number < callers % processes) for number in range(processes)]
    with ThreadPoolExecutor(processes) as pool:
        loads = list(
            pool.map(lambda share: load_on(port, messages, share, seconds), [share for share in shares if share])
        )
    return Load(
        rate=sum(load.rate for load in loads),
        took=[value for load in loads for value in load.took],
        failed=sum(load.failed for load in loads),
        first=next((load.first for load in loads if load.failed), ""),
    )


class Usage:
    """What the service and the GPU do meanwhile: core seconds of its processes, busy share and memory of the GPU."""

    def __init__(self, service: Running) -> None:
        self._processes = [psutil.Process(service.process.pid), *service.children()]
        self._before = self._seconds()
        self._stop = threading.Event()
        self._busy: list[int] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes if process.is_running())

    def _watch(self) -> None:
        while torch.cuda.is_available() and not self._stop.wait(0.2):
            self._busy.append(torch.cuda.utilization())

    def end(self) -> tuple[float, float]:
        """Core seconds of the service, and the mean busy share of the GPU."""
        self._stop.set()
        self._thread.join()
        return self._seconds() - self._before, float(np.mean(self._busy)) / 100 if self._busy else float("nan")


def served(asked: argparse.Namespace, home: Path, workers: int, files: list[bytes], top: float) -> None:
    """Print the rows of the table for one number of workers."""
    port = free_port()
    settings = load({"BLASTWATCH_HOME": str(home)})
    service = Running(
        settings, port, workers=workers, BLASTWATCH_ENGINE=asked.engine, BLASTWATCH_MAX_LATENCY_MS="60000",
        BLASTWATCH_MAX_BATCH_SIZE=str(RAW_BATCH),
    )  # fmt: skip
    try:
        started = time.perf_counter()
        service.wait_until_ready()
        first = time.perf_counter() - started
        service.wait_until_following(seconds=START_SECONDS)
        print(
            f"{workers} workers: the first answers after {first:.1f} s, all after {time.perf_counter() - started:.1f}"
        )
        singles = [request(port, "/v1/predict", multipart("image", [data])) for data in files]
        batch = [request(port, "/v1/predict_batch", multipart("images", files[:BATCH_CALL]))]
        load_from(port, singles, 4 * workers, 2.0, asked.processes)  # warms up
        ways = [(f"{callers} callers", singles, callers, 1) for callers in asked.callers]
        ways.append((f"batch calls, {max(2, workers)} callers", batch, max(2, workers), BATCH_CALL))
        for name, messages, callers, cells in ways:
            usage = Usage(service)
            found = load_from(port, messages, callers, asked.seconds, asked.processes)
            spent, busy = usage.end()
            rate = found.rate * cells
            if found.failed:
                name += f" ({found.failed} failed: {found.first[:200]})"
            each = 1000 * spent / max(1, len(found.took) * cells)
            middle, late = (1000 * np.quantile(found.took, share) for share in (0.5, 0.99))
            print(
                f"| {workers} | {name} | {rate:.0f} | {rate / top:.3f} | {middle:.1f} | {late:.1f} | {each:.1f} | "
                f"{busy:.0%} |",
                flush=True,
            )
        if torch.cuda.is_available():
            free, whole = torch.cuda.mem_get_info()
            print(f"memory of the GPU in use with {workers} workers: {(whole - free) // MIB} MiB", flush=True)
    finally:
        service.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="torch-f16-graphs")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--processes", type=int, default=3, help="of the callers")
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    try:
        package = install(home, asked)
        paths = [write_cell(home / f"{number}.bmp", number) for number in range(FILES)]
        engine = open_engine(package, asked.engine)
        top = raw(engine, asked.size)
        cores = len(os.sched_getaffinity(0))
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        print(f"{where}, {cores} cores, {asked.architecture} at {asked.size} px, {asked.engine}")
        reading = {
            name: flow(
                engine.infer, paths, package.info.preprocessing, crops=True, processes=name == "processes",
                workers=cores, batch=RAW_BATCH, seconds=asked.seconds, temperature=1e3,
            )
            for name in ("threads", "processes")
        }  # fmt: skip
        print(f"raw {top:.0f} cells/s; from files, without a service: {json.dumps(reading)}")
        del engine
        print("| workers | | cells/s | of raw | median ms | p99 ms | core ms a cell | GPU busy |\n" + "|---" * 8 + "|")
        for workers in asked.workers:
            served(asked, home, workers, [path.read_bytes() for path in paths], top)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
