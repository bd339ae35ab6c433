"""`python -m tests.benchmarks.following [--moves 100] [--workers 1] [--architecture resnet50 --size 224]`: alias moves
between two versions under a service that callers keep busy.

Every answer is recomputed for the version that it names. The callers are a process of their own; on few cores they take
their share of them, as real ones on the same machine would.
"""

import argparse
import dataclasses
import http.client
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from blastwatch.engines import open_engine
from blastwatch.package import DIGESTS, MODEL, open_package, seal
from blastwatch.processes import free_port
from blastwatch.registry import CHAMPION, Registry
from blastwatch.settings import Settings, load
from blastwatch.signing import PROMOTER
from serving.predictor import Judge, prepare
from tests.running import Running
from tests.service_packages import give_alias, make_servable, write_cell

CELLS = 12
TOLERANCE = 1e-4  # of the probability: cells of other callers share a batch, which changes the order of sums
LONGEST = 120.0  # seconds that a move may take before the benchmark gives up


@dataclass(frozen=True)
class Move:
    """One move of the alias, in seconds of the monotonic clock; `all_swapped`: no worker served the old version."""

    version: str
    asked: float
    all_swapped: float
    loading: float


def call(url: str, cells: list[Path], callers: int, stop, out: Path) -> None:
    """Ask without pause from several threads; one row an answer is written at the end."""
    host, port = url.removeprefix("http://").split(":")
    rows: list[tuple[float, float, int, str, float, int]] = []
    bodies = [_multipart(path.read_bytes()) for path in cells]

    def ask(number: int) -> None:
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        turn = number
        while not stop.is_set():
            turn += 1
            cell = turn % len(bodies)
            start, version, probability, status = time.monotonic(), "", float("nan"), 0
            try:
                connection.request(
                    "POST", "/v1/predict", bodies[cell], {"Content-Type": "multipart/form-data; boundary=b"}
                )
                response = connection.getresponse()
                status, text = response.status, response.read()
                if status == 200:
                    answer = json.loads(text)
                    version, probability = answer["model"]["version"], answer["probability"]
            except (OSError, http.client.HTTPException):
                connection.close()
            rows.append((start, time.monotonic(), cell, version, probability, status))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    columns = ["start", "end", "cell", "version", "probability", "status"]
    pd.DataFrame(rows, columns=columns).to_parquet(out)


def _multipart(data: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="cell.bmp"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n"


@contextmanager
def calling(url: str, cells: list[Path], callers: int, out: Path):
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=call, args=(url, cells, callers, stop, out))
    process.start()
    try:
        yield
    finally:
        stop.set()
        process.join()


def expectations(packages: dict[str, Path], cells: list[Path], engine: str) -> dict[str, list[float]]:
    """The probability of each cell by version, each cell computed alone in this process."""
    found = {}
    for version, folder in packages.items():
        package = open_package(folder)
        opened = open_engine(package, engine)
        prepared = [prepare(path.read_bytes(), package) for path in cells]
        judge = Judge(package)
        outputs = [opened.infer(item.crop[None]) for item in prepared]
        found[version] = [
            judge(item, answer.logits[0], answer.embeddings[0]).probability
            for item, answer in zip(prepared, outputs, strict=True)
        ]
    return found


def move(registry: Registry, service: Running, version: str) -> Move:
    """Move the alias as the registry does, and wait until every worker serves the version."""
    before = _loads(service)
    entry = registry.entry(version)
    with registry.writing(PROMOTER) as writer:
        writer.move("promote" if version == "2" else "rollback", CHAMPION, entry, why="a benchmark")
    asked = time.monotonic()
    while _serving(service) != {version}:
        if time.monotonic() - asked > LONGEST:
            raise SystemExit(f"version {version} was not followed: {service.log}\n{service.log.read_text()[-3000:]}")
        time.sleep(0.1)
    after = _loads(service)
    return Move(version, asked, time.monotonic(), (after[0] - before[0]) / max(1.0, after[1] - before[1]))


def _serving(service: Running) -> set[str]:
    return {key[-1] for key in _info(service)}


def _info(service: Running) -> list[tuple[str, str]]:
    import httpx
    from prometheus_client.parser import text_string_to_metric_families

    text = httpx.get(f"{service.url}/metrics", timeout=30).text
    return [
        (sample.name, sample.labels["version"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "blastwatch_model_info"
    ]


def _loads(service: Running) -> tuple[float, float]:
    """Seconds spent with loading, and how often, by all workers."""
    seen = service.metrics()
    name = "blastwatch_model_swap_duration_seconds"
    return seen.get((f"{name}_sum",), 0.0), seen.get((f"{name}_count",), 0.0)


def resident(service: Running) -> list[int]:
    """KiB of each worker."""
    return [child.memory_info().rss >> 10 for child in sorted(service.workers(), key=lambda child: child.pid)]


def register(settings: Settings, asked: argparse.Namespace, cells: list[Path]) -> dict[str, Path]:
    """Two versions, the second one champion.

    An untrained ResNet-50 is all but certain of everything; a temperature makes its versions differ in their answers.
    """
    from mlflow import MlflowClient

    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    experiment = client.create_experiment("following", settings.artifacts.as_uri())
    registry, packages = Registry(settings), {}
    for seed, version in ((0, "1"), (1, "2")):
        folder = packages[version] = settings.home / f"package-{version}"
        run_id = client.create_run(experiment).info.run_id
        make_servable(folder, run_id=run_id, architecture=asked.architecture, size=asked.size, seed=seed)
        package = open_package(folder)
        engine = open_engine(package, asked.engine)
        logits = [engine.infer(prepare(path.read_bytes(), package).crop[None]).logits[0] for path in cells]
        spread = float(np.median([abs(row[1] - row[0]) for row in logits]))
        info = dataclasses.replace(package.info, temperature=spread / (1 + seed))
        (folder / MODEL).write_text(info.to_json())
        (folder / DIGESTS).unlink()
        seal(folder)
        give_alias(registry, registry.register(folder))
    return packages


def run(asked: argparse.Namespace, home: Path) -> None:
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{home / 'mlflow.db'}").search_registered_models()
    settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "benchmark"})
    cells = [write_cell(home / f"{number}.bmp", number) for number in range(CELLS)]
    packages = register(settings, asked, cells)
    expected = expectations(packages, cells, asked.engine)
    apart = min(abs(a - b) for a, b in zip(expected["1"], expected["2"], strict=True))
    registry, moves, memory = Registry(settings), [], []
    service = Running(
        settings,
        free_port(),
        workers=asked.workers,
        BLASTWATCH_ENGINE=asked.engine,
        BLASTWATCH_MAX_LATENCY_MS="60000",  # a slow machine is no failure
    ).wait_until_ready()
    try:
        service.wait_until_following()
        with calling(service.url, cells, asked.callers, home / "answers.parquet"):
            time.sleep(asked.settle)
            for number in range(asked.moves):
                moves.append(move(registry, service, "12"[number % 2]))
                time.sleep(asked.gap)
                memory.append(resident(service))
    finally:
        left = service.stop()
    answers = pd.read_parquet(home / "answers.parquet")
    report(answers, expected, moves, memory, apart, asked.settle)
    print(f"processes left behind: {len(left)}")


def report(answers, expected, moves, memory, apart: float, settle: float) -> None:
    good = answers[answers["status"] == 200]
    table = pd.DataFrame(expected)
    wanted = np.array([table.loc[row.cell, row.version] for row in good.itertuples()])
    wrong = int((np.abs(good["probability"].to_numpy() - wanted) > TOLERANCE).sum())
    print(
        f"answers {len(answers)}, failed {len(answers) - len(good)} {dict(answers['status'].value_counts())}, "
        f"misattributed {wrong} (the two versions are {apart:.1e} apart at least, {TOLERANCE:g} is tolerated)"
    )
    first = [float(good.loc[(good["version"] == one.version) & (good["end"] > one.asked), "end"].min()) - one.asked
             for one in moves]  # fmt: skip
    whole = [one.all_swapped - one.asked for one in moves]
    bare = [max(0.0, wait - one.loading) for wait, one in zip(first, moves, strict=True)]
    # One worker loads after the other.
    workers = len(memory[0])
    swap = [max(0.0, wait - workers * one.loading) for wait, one in zip(whole, moves, strict=True)]
    for name, values in (
        ("from the move to the first answer of the new version", first),
        ("  the same without loading", bare),
        ("from the move until no worker serves the old one", whole),
        ("  the same without loading: the swaps themselves", swap),
        ("loading, a worker", [one.loading for one in moves]),
    ):
        print(f"{name:<54} median {np.median(values):6.2f} s   max {np.max(values):6.2f} s")
    lasted = (good["end"] - good["start"]).to_numpy()
    swapping = np.zeros(len(good), bool)
    for one in moves:
        swapping |= ((good["start"] < one.all_swapped) & (good["end"] > one.asked)).to_numpy()
    steady = ~swapping & (good["start"] > good["start"].min() + settle / 2).to_numpy()
    middle, tail = ([np.quantile(lasted[part], at) * 1000 for part in (steady, swapping)] for at in (0.5, 0.99))
    print(f"answer time, steady: median {middle[0]:.0f} ms, p99 {tail[0]:.0f} ms   ({steady.sum()} answers)")
    print(f"answer time, swaps:  median {middle[1]:.0f} ms, p99 {tail[1]:.0f} ms   ({swapping.sum()} answers)")
    print(f"p99 of swaps over steady: {tail[1] / tail[0]:.2f}")
    early, last = memory[min(2, len(memory) - 1)], memory[-1]
    for number, (then, now) in enumerate(zip(early, last, strict=True), start=1):
        print(f"worker {number}: resident {then >> 10} MiB after the third swap, {now >> 10} MiB after the last "
              f"({100 * (now / then - 1):+.1f} %)")  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--architecture", default="resnet50")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--engine", default="openvino-f32")
    parser.add_argument("--gap", type=float, default=4.0, help="seconds of steady load after each move")
    parser.add_argument("--settle", type=float, default=15.0, help="seconds of steady load before the first move")
    wish = parser.parse_args()
    network = f"{wish.architecture} at {wish.size} px, {wish.engine}"
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.machine()}, {cores} cores; {network}; {wish.workers} workers, {wish.callers} callers", flush=True)
    place = Path(tempfile.mkdtemp(prefix="blastwatch-following-"))
    try:
        run(wish, place)
    finally:
        shutil.rmtree(place)
