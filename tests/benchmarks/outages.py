"""`python -m tests.benchmarks.outages [--kills 10 --away 300]`: what becomes of predictions while parts of it all die.

A real service with two workers, the monitor and PostgreSQL, under callers without pause between their calls:

    worker, service, monitor, database   ended by SIGKILL, one every few seconds, in a drawn order; what does not come
                                         back by itself is started again, as systemd or Kubernetes would
    database away                        stopped for `--away` seconds; half-way the whole service is killed too
    disk full                            on SQLite, in a file system of a few MB that is filled and emptied again

Every answer is written down by its caller, and held against the database and the service's own counters at the end:
stored twice, counted as stored but not there, answered but not stored, and how much of the latter the counters show.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import psutil
import sqlalchemy as sa
from mlflow import MlflowClient

from blastwatch.package import DIGESTS, seal
from blastwatch.processes import free_port
from blastwatch.registry import Registry
from blastwatch.settings import Settings, load
from monitoring.capture import LONGEST_PAUSE
from monitoring.database import StoreError
from monitoring.store import open_store
from tests import postgres
from tests.benchmarks.serving import exchange, multipart, request
from tests.cohorts import draw_cohort, write_reference
from tests.running import Running, environment, get, until
from tests.service_packages import give_alias, make_servable, write_cell

CELLS, CALLERS = 16, 4
PATIENCE = 90.0  # seconds until everything is stored, or up again
DISK = "16m"
LATE = 0.1  # seconds between the moment noted for a kill and the last answer that a caller reads of its process


@dataclass
class Ledger:
    """What the callers were told: the id of every answer with its time, and the failures in words."""

    answered: dict[str, float] = field(default_factory=dict)
    failures: list[tuple[float, str]] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def longest_silence(self) -> float:
        """Seconds between two answers, whoever got them."""
        times = sorted(self.answered.values())
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


def ask(port: int, messages: list[bytes], ledger: Ledger, number: int, pause: float) -> None:
    """One caller: a connection as long as it holds, and a new one after that."""
    turn = number
    while not ledger.stop.is_set():
        try:
            with socket.create_connection(("127.0.0.1", port), 30) as connection:
                while not ledger.stop.wait(pause):
                    turn += 1
                    status, body = exchange(connection, messages[turn % len(messages)])
                    if status == 200:
                        ledger.answered[json.loads(body)["id"]] = time.monotonic()
                    else:
                        ledger.failures.append((time.monotonic(), f"HTTP {status}"))
        except OSError as error:
            ledger.failures.append((time.monotonic(), type(error).__name__))
            ledger.stop.wait(0.05)


@contextlib.contextmanager
def asked(port: int, messages: list[bytes], pause: float) -> Iterator[Ledger]:
    ledger = Ledger()
    threads = [threading.Thread(target=ask, args=(port, messages, ledger, number, pause)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        yield ledger
    finally:
        ledger.stop.set()
        for thread in threads:
            thread.join()


class Counters:
    """The service's own counters, added up over its lives: they begin anew where the whole service was killed."""

    def __init__(self, service: Running) -> None:
        self.service, self.before = service, Counter()

    def now(self) -> Counter:
        return self.before + self._read()

    def _read(self) -> Counter:
        counts: Counter = Counter()
        for (name, *labels), value in self.service.metrics().items():
            if name == "blastwatch_predictions_total":
                counts["answers"] += int(value)
            if name == "blastwatch_capture_predictions_total":
                counts[labels[0]] += int(value)
        return counts

    def service_ends(self) -> None:
        with contextlib.suppress(httpx.HTTPError):
            self.before += self._read()


class Watcher:
    """The monitor as a process."""

    def __init__(self, settings: Settings, variables: dict[str, str]) -> None:
        self.port = free_port()
        self._environment = environment(
            BLASTWATCH_HOME=str(settings.home), BLASTWATCH_MONITOR_PORT=str(self.port),
            BLASTWATCH_DRIFT_INTERVAL="1", **variables,
        )  # fmt: skip
        self._log = (settings.home / "monitor.log").open("a")
        self.start()

    def start(self) -> None:
        words = [sys.executable, "-m", "blastwatch.cli", "drift", "watch"]
        self.process = subprocess.Popen(words, env=self._environment, stdout=self._log, stderr=self._log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stored(self) -> int:
        """What its page says of the database; -1 while it does not answer."""
        try:
            return int(get(f"http://127.0.0.1:{self.port}/drift.json").json()["stored"]["predictions"])
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return -1


def kill_family(service: Running) -> None:
    """The whole service at once, as a machine that loses its power would."""
    family = [psutil.Process(service.process.pid), *service.children()]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    service.process.wait()
    psutil.wait_procs(family, timeout=10)


def kill_database(server: postgres.Postgres) -> None:
    """SIGKILL to the server and to all of its parts."""
    pid = int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=10)


def ids_in(url: str) -> list[str]:
    """Of every row, so that one stored twice would show."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        found = [row[0] for row in connection.execute(sa.text("SELECT id FROM predictions"))]
    engine.dispose()
    return found


def rows_in(url: str) -> int:
    with open_store(url) as store:
        return store.count()


def settle(url: str, counters: Counters) -> None:
    """Wait until what was answered is stored, or nothing moves any more."""
    end, last = time.monotonic() + PATIENCE, (-1, Counter())
    while time.monotonic() < end:
        with contextlib.suppress(StoreError, httpx.HTTPError):
            now = (rows_in(url), counters.now())
            if now == last:
                return
            last = now
        time.sleep(2)


def account(
    name: str,
    url: str,
    ledger: Ledger,
    counters: Counters,
    service_kills: Sequence[float] = (),
    database_away: Sequence[tuple[float, float]] = (),
) -> None:
    """Hold what the callers were told against the database and the counters."""
    settle(url, counters)
    rows, counted = ids_in(url), counters.now()
    stored, answered = set(rows), set(ledger.answered)
    lost = [ledger.answered[identity] for identity in answered - stored]
    failures = Counter(words for _, words in ledger.failures)
    print(f"\n**{name}**\n")
    print(
        f"- {len(answered)} answers to callers, {len(rows)} rows, of these {len(stored - answered)} whose answer died"
    )
    print(f"- stored twice: {len(rows) - len(stored)}; counted as stored but not there: "
          f"{max(0, counted['stored'] - len(rows))}")  # fmt: skip
    why = Counter(reason(moment, service_kills, database_away) for moment in lost)
    gap = counted["answers"] - counted["stored"] - counted["dropped"]
    print(f"- answered but not stored: {len(lost)} {dict(why)}; counted as dropped: {counted['dropped']}")
    before = [kill - moment for moment in lost if (kill := next_kill(moment, service_kills)) - moment < 1]
    print(f"- the longest time between such an answer and its kill: {max(before, default=0):.2f} s")
    print(f"- answers that the service counted, less those that it counted as stored or dropped: {gap}")
    print(f"- failed attempts to write: {counted['failed']}; calls without an answer: {dict(failures)}")
    print(f"- longest time without any answer: {ledger.longest_silence():.1f} s", flush=True)


def next_kill(moment: float, service_kills: Sequence[float]) -> float:
    """The kill that an answer may have gone down with."""
    return min((kill for kill in service_kills if kill >= moment - LATE), default=float("inf"))


def reason(moment: float, service_kills: Sequence[float], database_away: Sequence[tuple[float, float]]) -> str:
    """Why an answer of this moment may have gone down with a queue."""
    kill = next_kill(moment, service_kills)
    if kill - moment < 1:
        return "within a second before a kill"
    if any(begin < kill and moment < end + LONGEST_PAUSE for begin, end in database_away):
        return "killed while it waited for the database"
    return "for another reason"


def kills(asked_for: argparse.Namespace, settings: Settings, messages: list[bytes], server: postgres.Postgres) -> None:
    """SIGKILL to each part in turn, in a drawn order."""
    url, draw = server.database("kills"), random.Random(asked_for.seed)
    variables = {"BLASTWATCH_PREDICTIONS_URL": url}
    port, service_kills, database_away, false_counts = free_port(), [], [], 0
    service = Running(settings, port, workers=2, **variables).wait_until_ready().wait_until_following()
    watcher, counters = Watcher(settings, variables), Counters(service)
    try:
        with asked(port, messages, 0.0) as ledger:
            turns = [part for part in ("worker", "service", "monitor", "database") for _ in range(asked_for.kills)]
            draw.shuffle(turns)
            for part in turns:
                time.sleep(draw.uniform(1, 4))
                with contextlib.suppress(httpx.HTTPError, StoreError):  # the counter first: it follows the database
                    before = counters.now()["stored"]
                    false_counts += before > rows_in(url)
                if part == "worker":
                    service_kills.append(time.monotonic())
                    os.kill(draw.choice(service.workers()).pid, signal.SIGKILL)
                    until(lambda service=service: len(service.workers()) == 2, PATIENCE)
                elif part == "service":
                    counters.service_ends()
                    service_kills.append(time.monotonic())
                    kill_family(service)
                    service = counters.service = Running(settings, port, workers=2, **variables).wait_until_ready()
                elif part == "monitor":
                    watcher.kill()
                    watcher.start()
                else:
                    begin = time.monotonic()
                    kill_database(server)
                    time.sleep(draw.uniform(0, 1))
                    server.start()
                    database_away.append((begin, time.monotonic()))
            time.sleep(3)
        account(f"{len(turns)} kills", url, ledger, counters, service_kills, database_away)
        print(f"- the counter ran ahead of the database: {false_counts} times; ", end="")
        try:
            until(lambda: watcher.stored() == rows_in(url), PATIENCE)
        except AssertionError:
            words = (settings.home / "monitor.log").read_text()[-3000:]
            print(f"the monitor has seen {watcher.stored()} of {rows_in(url)} rows: {words}")
        else:
            print("the monitor has seen every row")
    finally:
        watcher.kill()
        service.stop()


def away(asked_for: argparse.Namespace, settings: Settings, messages: list[bytes], server: postgres.Postgres) -> None:
    """The database is stopped for minutes, and the service that cannot reach it is killed meanwhile."""
    url, port = server.database("away"), free_port()
    service = Running(settings, port, workers=2, BLASTWATCH_PREDICTIONS_URL=url)
    counters = Counters(service)
    try:
        service.wait_until_ready().wait_until_following()
        with asked(port, messages, asked_for.pause) as ledger:
            time.sleep(3)
            server.stop("immediate")
            begin = time.monotonic()
            time.sleep(asked_for.away / 2)
            counters.service_ends()
            killed = time.monotonic()
            kill_family(service)
            service = counters.service = Running(settings, port, workers=2, BLASTWATCH_PREDICTIONS_URL=url)
            service.wait_until_ready()
            time.sleep(max(0.0, begin + asked_for.away - time.monotonic()))
            server.start()
            time.sleep(3)
        what = f"database away for {asked_for.away:g} s, the service killed meanwhile"
        account(what, url, ledger, counters, [killed], [(begin, time.monotonic())])
    finally:
        service.stop()


def disk_full(settings: Settings, messages: list[bytes], home: Path) -> None:
    """SQLite in a small file system, filled to the last byte for ten seconds."""
    disk = home / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(disk)], check=True)
    try:
        url = f"sqlite:///{disk}/predictions.db"
        service = Running(settings, free_port(), workers=2, BLASTWATCH_PREDICTIONS_URL=url)
        try:
            service.wait_until_ready().wait_until_following()
            with asked(service.port, messages, 0.0) as ledger:
                time.sleep(3)
                with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
                    while True:
                        ballast.write(bytes(4096))
                until(lambda: Counters(service).now()["failed"] > 2, PATIENCE)
                time.sleep(10)
                (disk / "ballast").unlink()
                time.sleep(3)
            account("disk full", url, ledger, Counters(service))
        finally:
            service.stop()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def install(home: Path) -> Settings:
    """A small network as champion, with a reference that windows can be held against; what it says does not matter."""
    settings = load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "benchmark"})
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    run = client.create_run(client.create_experiment("outages", settings.artifacts.as_uri()))
    registry, folder = Registry(settings), make_servable(home / "package", run_id=run.info.run_id)
    (folder / DIGESTS).unlink()
    write_reference(folder, draw_cohort(np.random.default_rng(0), patients=12, cells=40))
    seal(folder)
    give_alias(registry, registry.register(folder))
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="of each part")
    parser.add_argument("--away", type=float, default=300.0, help="seconds that the database is stopped")
    parser.add_argument("--pause", type=float, default=0.1, help="of each caller between its calls meanwhile, seconds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("kills", "away", "disk"), help="one of the three")
    asked_for = parser.parse_args()
    home = Path(tempfile.mkdtemp())
    try:
        settings = install(home)
        messages = []
        for number in range(CELLS):
            data = write_cell(home / f"{number}.bmp", number).read_bytes()
            messages.append(request(0, "/v1/predict", multipart("image", [data])))
        with postgres.running(free_port()) as server:
            if asked_for.only in (None, "kills"):
                kills(asked_for, settings, messages, server)
            if asked_for.only in (None, "away"):
                away(asked_for, settings, messages, server)
        if asked_for.only in (None, "disk"):
            disk_full(settings, messages, home)
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
