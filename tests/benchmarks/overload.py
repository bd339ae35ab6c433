"""`python -m tests.benchmarks.overload [--times 10]`: more requests than a service can answer.

Requests come at a steady rate whether earlier ones were answered or not, as from callers who know nothing of each
other, and each is timed from the moment at which it was due. What the service can do is measured first, by callers who
wait for their answers. Callers and service share the machine.
"""

import argparse
import asyncio
import gc
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from blastwatch.settings import load
from tests.benchmarks.following import register
from tests.benchmarks.serving import load_on, multipart, request
from tests.benchmarks.soak import encoded, serving
from tests.running import Running
from tests.service_packages import draw_cell

LOST_SECONDS = 30.0  # a request without an answer for so long is lost
OPEN_FILES = 16_384
CONNECTING = 5.0  # seconds; at first every caller needs a connection of its own


@dataclass
class Told:
    """What the callers were told: when each request was due since the first, and the seconds until it was answered, by
    HTTP status; what failed, in words.

    late: seconds by which the callers themselves sent a request too late.
    """

    answers: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    failed: Counter[str] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)


class Callers:
    """Connections to one service, each used again by whoever comes next."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, message: bytes) -> int:
        """The status of one answer, which is read to its end. A connection that the service closed meanwhile, since
        nothing had come on it for a while, gives way to a new one, as in every HTTP client."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                break
            writer.close()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(message)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            await reader.readexactly(int(fields[b"content-length"]))
            await writer.drain()  # who is told no before the body was sent sends the rest of it all the same
        except BaseException:
            writer.close()
            raise
        if fields.get(b"connection") == b"close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(head.split()[1])


async def arrive(port: int, message: bytes, rate: float, seconds: float) -> Told:
    """Let requests come at a rate."""
    callers, told, asked = Callers(port), Told(), []
    loop = asyncio.get_running_loop()
    start = loop.time()

    async def one(due: float) -> None:
        told.late.append(loop.time() - due)
        try:
            async with asyncio.timeout(LOST_SECONDS):
                status = await callers.ask(message)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            told.failed[f"{type(error).__name__} {error}"] += 1
            return
        told.answers.setdefault(status, []).append((due - start, loop.time() - due))

    for number in range(int(rate * seconds)):
        due = start + number / rate
        if (early := due - loop.time()) > 0:
            await asyncio.sleep(early)
        asked.append(asyncio.create_task(one(due)))
    await asyncio.gather(*asked)
    return told


def run(
    port: int, message: bytes, rate: float, seconds: float, out: "multiprocessing.Queue[tuple[Told, float]]"
) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, most), most))
    gc.disable()  # a collection stops all callers for a second, whose requests then come at once
    told = asyncio.run(arrive(port, message, rate, seconds))
    out.put((told, time.process_time()))


def spread(seconds: list[float]) -> str:
    middle, high, most = (1000 * float(np.quantile(seconds or [np.nan], share)) for share in (0.5, 0.99, 1.0))
    return f"median {middle:.0f} ms, p99 {high:.0f} ms, longest {most:.0f} ms"


def overload(service: Running, message: bytes, asked: argparse.Namespace) -> None:
    capacity = load_on(service.port, [message], 8, 10.0).rate
    rate = asked.times * capacity
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    process = context.Process(target=run, args=(service.port, message, rate, asked.seconds, out))
    process.start()
    told, spent = out.get()
    process.join()
    print(
        f"\n{rate:.0f} requests/s of {len(message) >> 10} KiB for {asked.seconds:g} s, {asked.times:g} times the "
        f"{capacity:.0f}/s that the service answers; a cell may wait {service.settings.max_latency_ms / 1000:g} s"
    )
    for status, answers in sorted(told.answers.items()):
        print(f"- HTTP {status}: {len(answers) / asked.seconds:.1f}/s, {spread([took for _, took in answers])}")
        later = [took for due, took in answers if due > CONNECTING]
        print(f"  of these due after {CONNECTING:g} s, when callers have connections: {spread(later)}")
    print(f"- failed: {dict(told.failed)}")
    print(f"- the callers took {spent / asked.seconds:.2f} of a core and were late themselves: {spread(told.late)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=float, default=10.0, help="what comes, in what the service can answer")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--engine", default="openvino-f32")
    parser.add_argument("--architecture", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    asked = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    try:
        image = home / "cell.png"
        image.write_bytes(encoded(draw_cell(0), "PNG"))
        settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "benchmark"})
        register(settings, asked, [image])
        with serving(settings, asked.engine) as service:
            message = request(service.port, "/v1/predict", multipart("image", [image.read_bytes()]))
            overload(service, message, asked)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
