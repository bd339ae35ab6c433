"""`python -m tests.benchmarks.peers`: the same network behind other servers and behind ours, in one run.

MLflow's own server, a plain BentoML service, and, where folders with their packages are given, LitServe and Ray Serve,
each as its documentation advises, with batches of 32 where it has batches. All of them open the same package with the
same engine and answer 450x450 BMP files from callers without pause. In each round every server is started, warmed,
asked by 1, 8 and 32 callers, and ended, so that none is in another's way. Ours does more for each cell: statistics,
out-of-distribution score, capture.

    uv pip install --target DIR --constraint requirements/dev.txt litserve      (or 'ray[serve]')
    python -m tests.benchmarks.peers --litserve DIR --ray DIR --json FILE
"""

import argparse
import base64
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from blastwatch.package import Package
from blastwatch.processes import free_port
from blastwatch.settings import Settings, load
from tests.benchmarks.peer_model import ENGINE, PACKAGE
from tests.benchmarks.serving import FILES, install, load_on, multipart, post, request
from tests.running import Running, environment
from tests.service_packages import write_cell

START_SECONDS = 180
ROOT = Path(__file__).parents[2]


@dataclass
class Peer:
    """A server: the words that start it on a port, and the request for one file."""

    name: str
    words: Callable[[int], list[str]]
    message: Callable[[int, bytes], bytes]
    packages: Path | None = None
    variables: dict[str, str] = field(default_factory=dict)


def peers(asked: argparse.Namespace, model: Path) -> list[Peer]:
    def image(path: str, name: str) -> Callable[[int, bytes], bytes]:
        return lambda port, data: request(port, path, multipart(name, [data]))

    def row(port: int, data: bytes) -> bytes:
        table = {"dataframe_split": {"columns": ["image"], "data": [[base64.b64encode(data).decode()]]}}
        return post(port, "/invocations", json.dumps(table).encode(), "application/json")

    def module(name: str) -> Callable[[int], list[str]]:
        return lambda port: [sys.executable, "-m", f"tests.benchmarks.{name}", str(port)]

    def mlflow(port: int) -> list[str]:
        words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "--env-manager", "local"]
        return [*words, "-p", str(port), "-w", "1", "-t", "120"]

    def bento(port: int) -> list[str]:
        words = [sys.executable, "-m", "bentoml", "serve", "tests.benchmarks.peer_bento:Plain"]
        return [*words, "--host", "127.0.0.1", "--port", str(port)]

    found = [Peer("mlflow models serve", mlflow, row), Peer("BentoML, plain", bento, image("/predict", "images"))]
    if asked.litserve:
        found.append(Peer("LitServe", module("peer_litserve"), image("/predict", "image"), asked.litserve))
    if asked.ray:
        quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # loopback, and no message to its makers
        found.append(Peer("Ray Serve", module("peer_ray"), image("/predict", "image"), asked.ray, quiet))
    return [peer for peer in found if not asked.only or peer.name in asked.only]


@contextlib.contextmanager
def running(peer: Peer, package: Package, asked: argparse.Namespace, log: Path):
    """Start a server, give its port once it answers a cell, and end it with all its children."""
    port = free_port()
    places = [str(peer.packages)] if peer.packages else []
    paths = os.pathsep.join([*places, str(ROOT), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    variables = environment(
        PYTHONPATH=paths, **{PACKAGE: str(package.folder.absolute()), ENGINE: asked.engine},
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]), **peer.variables,
    )  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(
            peer.words(port), cwd=log.parent, env=variables, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        yield port, process
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in family[1:]:
            if child.is_running():
                child.kill()


def wait_for(port: int, message: bytes, process: subprocess.Popen, log: Path) -> None:
    end, said = time.monotonic() + START_SECONDS, ""
    while time.monotonic() < end:
        if process.poll() is not None:
            raise RuntimeError(f"ended at its start: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            last = load_on(port, [message], 1, 0.01)
            if last.took:
                return
            said = last.first
        time.sleep(0.5)
    raise RuntimeError(f"does not answer: {said} {log.read_text()[-2000:]}")


def memory(pid: int) -> float:
    """MiB of a process and all that it started; pages that they share count once."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_full_info().pss for process in family) / 2**20


def measure(
    port: int, messages: list[bytes], asked: argparse.Namespace, pid: int
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Cells a second, milliseconds, failed calls, and memory afterwards, by number of callers."""
    load_on(port, messages, 8, 3.0)  # warms up
    found = {}
    for callers in asked.callers:
        loaded = load_on(port, messages, callers, asked.seconds)
        took = loaded.took or [float("nan")]
        found[str(callers)] = {
            "rate": loaded.rate, "median_ms": 1000 * float(np.median(took)),
            "p99_ms": 1000 * float(np.quantile(took, 0.99)), "failed": loaded.failed, "mib": memory(pid),
        }  # fmt: skip
    return found


def ours(settings: Settings, asked: argparse.Namespace, files: list[bytes]) -> dict[str, dict[str, float]]:
    service = Running(settings, free_port(), BLASTWATCH_ENGINE=asked.our_engine, BLASTWATCH_MAX_LATENCY_MS="60000")
    try:
        service.wait_until_ready().wait_until_following()  # which the peers do not, so nothing of it is theirs
        messages = [request(service.port, "/v1/predict", multipart("image", [data])) for data in files]
        return measure(service.port, messages, asked, service.process.pid)
    finally:
        service.stop()


def save_mlflow_model(folder: Path) -> Path:
    import mlflow

    mlflow.pyfunc.save_model(folder, python_model=str(Path(__file__).with_name("peer_mlflow.py")), pip_requirements=[])
    return folder


def report(asked: argparse.Namespace, found: dict[str, list[dict[str, dict[str, float]]]]) -> None:
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, {asked.architecture} at {asked.size} px, {asked.engine}; ours {asked.our_engine}\n")
    print("| server | callers | cells/s | of ours | lowest and highest round | median ms | p99 ms | failed | MiB |")
    print("|---" * 9 + "|")
    for name, rounds in found.items():
        for callers in map(str, asked.callers):
            rows = [one[callers] for one in rounds]
            shares = [row["rate"] / own[callers]["rate"] for row, own in zip(rows, found["ours"], strict=False)]
            rate, median, slow, mib = (
                statistics.median(row[k] for row in rows) for k in ("rate", "median_ms", "p99_ms", "mib")
            )
            failed = sum(row["failed"] for row in rows)
            print(
                f"| {name} | {callers} | {rate:.1f} | {statistics.median(shares):.2f} | {min(shares):.2f} to "
                f"{max(shares):.2f} | {median:.0f} | {slow:.0f} | {failed:.0f} | {mib:.0f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="torch-f32", help="of every server")
    parser.add_argument("--our-engine", help="of ours, where the others have what their documentation advises")
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--litserve", type=Path, help="folder with LitServe and what it needs")
    parser.add_argument("--ray", type=Path, help="folder with Ray Serve and what it needs")
    parser.add_argument("--only", nargs="+", help="names of the peers to ask")
    parser.add_argument("--json", type=Path, help="file for every figure, written after each server")
    asked = parser.parse_args()
    asked.our_engine = asked.our_engine or asked.engine
    home = Path(tempfile.mkdtemp())
    found: dict[str, list] = {"ours": []}
    try:
        package = install(home, asked, asked.our_engine)
        settings = load({"BLASTWATCH_HOME": str(home)})
        files = [write_cell(home / f"{number}.bmp", number).read_bytes() for number in range(FILES)]
        chosen = peers(asked, save_mlflow_model(home / "mlflow-model"))
        for _ in range(asked.rounds):
            found["ours"].append(ours(settings, asked, files))
            for peer in list(chosen):
                log = home / f"{peer.name}.log"
                try:
                    with running(peer, package, asked, log) as (port, process):
                        messages = [peer.message(port, data) for data in files]
                        wait_for(port, messages[0], process, log)
                        found.setdefault(peer.name, []).append(measure(port, messages, asked, process.pid))
                except RuntimeError as error:
                    print(f"{peer.name} left out: {error}", flush=True)
                    chosen.remove(peer)
                if asked.json:
                    asked.json.write_text(json.dumps(found, indent=1) + "\n")
    finally:
        shutil.rmtree(home)
    report(asked, found)


if __name__ == "__main__":
    main()
