"""`python -m tests.benchmarks.serving [--engine openvino-int8 --callers 1 8 32]`: what HTTP costs.

The reference is a bare loop in one process: it decodes and crops the same files with as many threads as there are cores
and lets the same engine infer batches of 32 on every core. The service does that and all the rest: HTTP, multipart
bodies of 607 KB, image statistics, the out-of-distribution score, the answer, and the capture of every prediction in
SQLite. Both are measured in turns, so that whatever else the machine does hits both, with the callers on the same
cores.

The network is an untrained ResNet-50: what its weights are changes no cost. Quantized ranges come from drawn cells.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import shutil
import socket
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mlflow import MlflowClient

from blastwatch.engines import open_engine
from blastwatch.images import Pixels, crop_cell, decode
from blastwatch.inference import Engine
from blastwatch.package import DIGESTS, ONNX, ONNX_INT8, Package, Precision, open_package, seal
from blastwatch.processes import free_port
from blastwatch.registry import Registry
from blastwatch.settings import load
from tests.benchmarks.unwatched import Unwatched
from tests.running import Running
from tests.service_packages import draw_cell, give_alias, make_servable, write_cell
from training.export import quantize

FILES, BATCH, BATCH_CALL = 64, 32, 64
_starting = threading.Lock()
BOUNDARY = b"------------------------d74496d66958873e"  # as long as those of curl and httpx


def multipart(field: str, bodies: list[bytes]) -> bytes:
    parts = []
    for data in bodies:
        head = f'Content-Disposition: form-data; name="{field}"; filename="cell.bmp"\r\n\r\n'.encode()
        parts.append(b"--" + BOUNDARY + b"\r\n" + head + data + b"\r\n")
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def post(port: int, path: str, body: bytes, media_type: str) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: {media_type}\r\n\r\n"
    )
    return head.encode() + body


def request(port: int, path: str, body: bytes) -> bytes:
    return post(port, path, body, f"multipart/form-data; boundary={BOUNDARY.decode()}")


def exchange(connection: socket.socket, message: bytes) -> tuple[int, bytes]:
    """Send one request and read one answer; the least that a caller can do, so that it takes little of the cores."""
    connection.sendall(message)
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(65536)
        if not part:
            raise ConnectionError(f"the connection ended before an answer: {received[:200]!r}")
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    wanted = int(fields.get(b"content-length", -1))  # -1: chunked
    while len(body) < wanted if wanted >= 0 else not body.endswith(b"0\r\n\r\n"):
        part = connection.recv(65536)
        if not part:
            raise ConnectionError(f"the connection ended within an answer: {head[:200]!r}")
        body += part
    return int(head.split()[1]), body


@dataclasses.dataclass
class Load:
    """Answers a second, the seconds of each, and how many calls failed, the first of them in words."""

    rate: float
    took: list[float]
    failed: int
    first: str


def ask(port: int, messages: list[bytes], callers: int, seconds: float, out: "multiprocessing.Queue") -> None:
    """Several callers without pause, each on a connection of its own; puts the seconds of every answer, and every
    failure in words."""
    took: list[float] = []
    failures: list[str] = []
    end = time.monotonic() + seconds

    def one(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            turn = number
            while time.monotonic() < end:
                turn += 1
                started = time.perf_counter()
                try:
                    status, body = exchange(connection, messages[turn % len(messages)])
                except OSError as error:  # this caller gives up
                    failures.append(f"{type(error).__name__}: {error}")
                    return
                if status != 200:
                    failures.append(f"HTTP {status}: {body[:500]!r}")
                else:
                    took.append(time.perf_counter() - started)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.put((took, failures))


def load_on(port: int, messages: list[bytes], callers: int, seconds: float) -> Load:
    """Ask a server from a process of its own."""
    context = multiprocessing.get_context("fork")
    out: multiprocessing.Queue = context.Queue()
    started = time.monotonic()
    process = context.Process(target=ask, args=(port, messages, callers, seconds, out))
    with _starting:  # two forks at a time are refused by a library that holds files
        process.start()
    took, failures = out.get()
    process.join()
    rate = len(took) / (time.monotonic() - started)
    return Load(rate=rate, took=took, failed=len(failures), first=failures[0] if failures else "")


def served(port: int, messages: list[bytes], callers: int, seconds: float) -> tuple[float, list[float]]:
    """Answers a second, and the seconds of each; none may fail."""
    load = load_on(port, messages, callers, seconds)
    if load.failed:
        raise SystemExit(load.first)
    return load.rate, load.took


def bare(engine: Engine, package: Package, files: list[bytes], seconds: float) -> float:
    """Cells a second of the loop without a service."""
    shape = package.info.preprocessing

    def read(data: bytes) -> Pixels:
        return crop_cell(decode(data), shape)

    done, started = 0, time.monotonic()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        while time.monotonic() - started < seconds:
            chosen = [files[(done + number) % len(files)] for number in range(BATCH)]
            engine.infer(np.stack(list(pool.map(read, chosen))))
            done += BATCH
    return done / (time.monotonic() - started)


def alone(engine: Engine, package: Package, files: list[bytes]) -> float:
    """Median seconds of decoding and inferring one cell."""
    shape, took = package.info.preprocessing, []
    for data in files:
        started = time.perf_counter()
        engine.infer(crop_cell(decode(data), shape)[None])
        took.append(time.perf_counter() - started)
    return statistics.median(took)


def install(home: Path, asked: argparse.Namespace, *others: str) -> Package:
    """A champion whose int8 graph is truly quantized, where that is the engine, or one of the others that are asked."""
    engines = (asked.engine, *others)
    settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "benchmark"})
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    run = client.create_run(client.create_experiment("serving", settings.artifacts.as_uri()))
    folder = home / "package"
    make_servable(folder, run_id=run.info.run_id, architecture=asked.architecture, size=asked.size)
    package = open_package(folder)
    shape = package.info.preprocessing
    if "openvino-int8" in engines:
        cells = np.stack([crop_cell(draw_cell(number), shape) for number in range(32)])
        quantize(folder / ONNX, cells, shape, folder / ONNX_INT8)
    compared = Precision(cells=8, flip_rate=0.0, largest_difference=0.05)
    # An untrained network is sure of everything; a temperature makes the golden cells' answers comparable.
    info = dataclasses.replace(
        package.info, temperature=1e3, precision=dict.fromkeys(engines, compared) | package.info.precision
    )
    (folder / "model.json").write_text(info.to_json())
    (folder / DIGESTS).unlink()
    seal(folder)
    registry = Registry(settings)
    give_alias(registry, registry.register(folder))
    return open_package(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", default="openvino-int8")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unwatched", action="store_true", help="without image statistics and capture")
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    try:
        package = install(home, asked)
        files = [write_cell(home / f"{number}.bmp", number).read_bytes() for number in range(FILES)]
        engine, port = open_engine(package, asked.engine), free_port()
        settings = load({"BLASTWATCH_HOME": str(home)})
        wanted = {"BLASTWATCH_ENGINE": asked.engine, "BLASTWATCH_MAX_LATENCY_MS": "60000"}
        if asked.unwatched:
            service: Running = Unwatched(settings, port, BLASTWATCH_FOLLOW_SECONDS="0", **wanted)
        else:
            service = Running(settings, port, **wanted)
        try:
            service.wait_until_ready()
            if not asked.unwatched:
                service.wait_until_following()
            report(asked, package, engine, files, port)
        finally:
            service.stop()
    finally:
        shutil.rmtree(home)


def report(asked: argparse.Namespace, package: Package, engine: Engine, files: list[bytes], port: int) -> None:
    singles = [request(port, "/v1/predict", multipart("image", [data])) for data in files]
    batch = [request(port, "/v1/predict_batch", multipart("images", files[:BATCH_CALL]))]
    ways = [(f"{callers} callers", singles, callers, 1) for callers in asked.callers]
    ways.append((f"batch calls of {BATCH_CALL}, 2 callers", batch, 2, BATCH_CALL))
    served(port, singles, 2, 2.0)  # warms up
    bare(engine, package, files, 2.0)
    rates: dict[str, list[float]] = {name: [] for name, *_ in ways}
    ratios: dict[str, list[float]] = {name: [] for name, *_ in ways}
    took: dict[str, list[float]] = {name: [] for name, *_ in ways}
    loops, directs, added = [], [], []
    for _ in range(asked.rounds):
        for name, messages, callers, each in ways:
            loop = bare(engine, package, files, asked.seconds / 2)
            before = alone(engine, package, files) if callers == each == 1 else None
            rate, times = served(port, messages, callers, asked.seconds)
            if before is not None:  # a machine that grows slower meanwhile would be counted as latency
                directs.append((before + alone(engine, package, files)) / 2)
                added.append(float(np.median(times)) - directs[-1])
            loops.append(loop)
            rates[name].append(rate * each)
            ratios[name].append(rate * each / loop)
            took[name] += times
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores, {asked.architecture} at {asked.size} px, {asked.engine}")
    print(f"bare loop: {statistics.median(loops):.1f} cells/s\n")
    print("| | cells/s | of the bare loop | lowest and highest round | median ms | p99 ms |\n" + "|---" * 6 + "|")
    for name, *_ in ways:
        found = ratios[name]
        print(
            f"| {name} | {statistics.median(rates[name]):.1f} | {statistics.median(found):.3f} | {min(found):.3f} to "
            f"{max(found):.3f} | {1000 * np.median(took[name]):.1f} | {1000 * np.quantile(took[name], 0.99):.1f} |"
        )
    if added:
        middle, low, high = (1000 * pick(added) for pick in (statistics.median, min, max))
        print(f"\none caller: {middle:+.1f} ms ({low:+.1f} to {high:+.1f}) over decoding and inferring a cell in this")
        print(f"process ({1000 * statistics.median(directs):.1f} ms, timed before and after each round)")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        text = b""
        while part := connection.recv(65536):
            text += part
    captured = [line for line in text.decode().splitlines() if line.startswith("blastwatch_capture")]
    print("capture: " + json.dumps(captured))


if __name__ == "__main__":
    main()
