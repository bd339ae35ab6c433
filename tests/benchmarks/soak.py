"""`python -m tests.benchmarks.soak [--minutes 20]`: a service that is never let rest, by callers of every kind.

Valid cells one by one and in batches, images that are none, damaged, or too large, forms that are wrong, bodies that
come slowly, callers that leave in the middle of a body or before their answer. Each caller knows what it must be told:
the probability and the image statistics of its own cell, or the name of the problem. At the end the counters
of the service are held against what the callers wrote down, and its memory against what it was early on.
"""

import argparse
import io
import json
import multiprocessing
import random
import shutil
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from blastwatch.engines import open_engine
from blastwatch.package import Package, open_package
from blastwatch.processes import free_port
from blastwatch.settings import Settings, load
from serving.predictor import Judge, prepare
from tests.benchmarks.following import register
from tests.benchmarks.peers import memory
from tests.benchmarks.serving import exchange, multipart, post, request
from tests.running import Running
from tests.service_packages import draw_cell

CELLS, BATCH = 24, 8
TOLERANCE = 1e-4  # of the probability: cells of other callers share a batch, which changes the order of sums
SAMPLE_SECONDS = 5.0
EITHER = "aborted or ok"  # the connection ends while the answer is on its way

Check = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class Call:
    """One kind of request: how often it is drawn, what is sent, and what must come back.

    outcome: under which the service counts it. pieces: it is sent in so many, over two seconds. leave: the share that
    is sent before the caller goes.
    """

    name: str
    weight: float
    route: str
    message: bytes
    status: int = 200
    outcome: str = "ok"
    check: Check | None = None
    pieces: int = 1
    leave: float | None = None


def same(expected: dict[str, Any], got: dict[str, Any]) -> bool:
    """Whether this answer is of this cell: by the image's own statistics, and by what the network says."""
    statistics = got["quality"]["statistics"] == expected["statistics"]
    return statistics and abs(got["probability"] - expected["probability"]) < TOLERANCE


def expectations(package: Package, engine: str, files: list[bytes]) -> list[dict[str, Any]]:
    opened, judge, found = open_engine(package, engine), Judge(package), []
    for data in files:
        cell = prepare(data, package)
        said = opened.infer(cell.crop[None])
        probability = judge(cell, said.logits[0], said.embeddings[0]).probability
        found.append({"statistics": cell.statistics, "probability": probability})
    return found


def encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def calls(port: int, files: list[bytes], expected: list[dict[str, Any]]) -> list[Call]:
    """Every kind of request."""

    def form(path: str, field: str, *bodies: bytes) -> bytes:
        return request(port, path, multipart(field, list(bodies)))

    def is_cell(number: int) -> Check:
        return lambda got: same(expected[number], got)

    def is_batch(first: int) -> Check:
        def check(got: dict[str, Any]) -> bool:
            *cells, broken = got["results"]
            right = all(same(expected[first + place], cell) for place, cell in enumerate(cells))
            return right and len(cells) == BATCH and broken["type"] == "/problems/image-truncated"

        return check

    one, many, label = "/v1/predict", "/v1/predict_batch", "/v1/labels"
    singles = [form(one, "image", data) for data in files]
    bomb = encoded(np.zeros((3000, 3000, 3), np.uint8), "PNG")
    huge = f"POST {one} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n"
    huge += "Content-Type: multipart/form-data\r\n\r\n"
    wrong = [
        Call("a text as image", 2, one, form(one, "image", b"no image"), 415, "refused"),
        Call("a damaged image", 2, one, form(one, "image", files[0][:200_000]), 422, "refused"),
        Call("another field", 2, one, form(one, "picture", files[0]), 400, "refused"),
        Call("JSON", 2, one, post(port, one, b"{}", "application/json"), 415, "refused"),
        Call("a label for nothing", 2, label, post(port, label, b"[]", "application/json"), 400, "refused"),
        Call("no such address", 1, "other", post(port, "/v2/predict", b"", "text/plain"), 404, "refused"),
        Call("nine million pixels", 2, one, form(one, "image", bomb), 413, "refused"),
        Call("a body of 100 MB", 2, one, huge.encode(), 413, "refused"),
    ]
    cells = [
        Call("a cell", 70 / len(files), one, message, check=is_cell(number)) for number, message in enumerate(singles)
    ]
    batches = [
        Call(f"{BATCH} cells and a damaged one", 1, many,
             form(many, "images", *files[first : first + BATCH], files[0][:9999]), check=is_batch(first))
        for first in range(0, len(files) - BATCH + 1, BATCH)
    ]  # fmt: skip
    return [
        *cells, *batches, *wrong,
        Call("a slow body", 4, one, singles[1], check=is_cell(1), pieces=20),
        Call("leaves in the body", 4, one, singles[2], outcome="aborted", leave=0.6),
        Call("leaves before the answer", 4, one, singles[3], outcome=EITHER, leave=1.0),
    ]  # fmt: skip


def send(connection: socket.socket, call: Call) -> tuple[int, bytes] | None:
    """Send a request in the manner of its kind; None where the caller left."""
    if call.leave is not None:
        connection.sendall(call.message[: int(len(call.message) * call.leave)])
        return None
    if call.pieces > 1:
        step = len(call.message) // call.pieces
        for place in range(call.pieces - 1):
            connection.sendall(call.message[place * step : (place + 1) * step])
            time.sleep(2 / call.pieces)
        return exchange(connection, call.message[(call.pieces - 1) * step :])
    return exchange(connection, call.message)


def ask(port: int, kinds: list[Call], callers: int, stop: Any, out: Any, seed: int) -> None:
    """Callers in a process of its own; puts the outcomes by route, and what was not as it must be."""
    counts: Counter[tuple[str, str]] = Counter()
    faults: list[str] = []
    weights = [call.weight for call in kinds]

    def one(number: int) -> None:
        draw, connection = random.Random(seed + number), None
        while not stop.is_set():
            (call,) = draw.choices(kinds, weights)
            connection = connection or socket.create_connection(("127.0.0.1", port), 60)
            try:
                answer = send(connection, call)
            except OSError as error:
                faults.append(f"{call.name}: {type(error).__name__} {error}")
                connection = None
                continue
            outcome = call.outcome
            if answer is not None:
                status, body = answer
                if status == 429:
                    outcome = "overloaded"
                elif status != call.status or (call.check and not call.check(json.loads(body))):
                    faults.append(f"{call.name}: HTTP {status} {body[:300]!r}")
            counts[call.route, outcome] += 1
            if call.leave is not None or call.status == 413:
                connection.close()
                connection = None

    threads = [threading.Thread(target=one, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    out.put((counts, faults))


def counted(service: Running) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for (name, *labels), value in service.metrics().items():
        if name == "blastwatch_requests_total":
            outcome, route = sorted(labels, key=lambda label: label.startswith("/") or label == "other")
            found[route, outcome] += int(value)
    return found


def soak(service: Running, kinds: list[Call], asked: argparse.Namespace) -> None:
    context = multiprocessing.get_context("fork")
    stop, out = context.Event(), context.Queue()
    before = counted(service)
    asking = context.Process(target=ask, args=(service.port, kinds, asked.callers, stop, out, asked.seed))
    asking.start()
    sizes, end = [], time.monotonic() + 60 * asked.minutes
    while time.monotonic() < end:
        time.sleep(SAMPLE_SECONDS)
        sizes.append(memory(service.process.pid))
    stop.set()
    counts, faults = out.get()
    asking.join()
    time.sleep(3)  # the last of those who left
    after = counted(service)
    after.subtract(before)
    report(counts, after, faults, sizes, asked)


def report(
    told: Counter[tuple[str, str]],
    after: Counter[tuple[str, str]],
    faults: list[str],
    sizes: list[float],
    asked: argparse.Namespace,
) -> None:
    print(f"\n{sum(told.values())} requests in {asked.minutes:g} minutes by {asked.callers} callers\n")
    print("| route | outcome | callers | service |\n|---|---|---|---|")
    differing = 0
    for route, outcome in sorted(told):
        if outcome == EITHER:
            continue
        own, theirs = told[route, outcome], after[route, outcome]
        # Who left before the answer stands under one of the two, and which one only the service knows.
        slack = told[route, EITHER] if outcome in EITHER.split(" or ") else 0
        differing += not own <= theirs <= own + slack
        print(f"| {route} | {outcome} | {own}{f' to {own + slack}' if slack else ''} | {theirs} |")
    totals = {route: sum(count for (place, _), count in told.items() if place == route) for route, _ in told}
    whole = {route: sum(count for (place, _), count in after.items() if place == route) for route in totals}
    failed = sum(count for (_, outcome), count in after.items() if outcome == "failed")
    print(f"\n- answers that were not as they must be: {len(faults)}; counted as failed: {failed}")
    for fault in faults[:10]:
        print(f"  - {fault}")
    print(f"- counters that differ: {differing}; requests by route differ: {totals != whole}")
    early, late = sizes[len(sizes) // 5 : 2 * len(sizes) // 5], sizes[-(len(sizes) // 5 or 1) :]
    first, last = float(np.median(early)), float(np.median(late))
    print(f"- memory: {first:.0f} MiB in the second fifth of the time, {last:.0f} in the last: {last / first - 1:+.1%}")


@contextmanager
def serving(settings: Settings, engine: str) -> Iterator[Running]:
    """A service that follows its registry; at its end the errors in its log are counted."""
    service = Running(settings, free_port(), BLASTWATCH_ENGINE=engine)
    try:
        yield service.wait_until_ready().wait_until_following()
    finally:
        service.stop()
        print(f"\nservice log, errors: {sum('ERROR' in line for line in service.log.read_text().splitlines())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--callers", type=int, default=12)
    parser.add_argument("--engine", default="openvino-f32")
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    try:
        files = [encoded(draw_cell(number), "BMP") for number in range(CELLS)]
        paths = [home / f"{number}.bmp" for number in range(CELLS)]
        for path, data in zip(paths, files, strict=True):
            path.write_bytes(data)
        settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "benchmark"})
        package = open_package(register(settings, asked, paths)["2"])
        with serving(settings, asked.engine) as service:
            soak(service, calls(service.port, files, expectations(package, asked.engine, files)), asked)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
