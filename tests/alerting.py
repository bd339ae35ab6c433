"""Prometheus and Alertmanager on the files of `deploy/`, quickened, and a pager that keeps what it is sent."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from blastwatch.processes import Processes

DEPLOY = Path(__file__).parents[1] / "deploy"
PROMETHEUS, ALERTMANAGER = "prometheus", "prometheus-alertmanager"

QUICKENED = (
    ("keep_firing_for: 15m", "keep_firing_for: 5s"), ("15s", "1s"), ("for: 10m", "for: 2s"), ("for: 2m", "for: 2s"),
    ("30s", "0s"), ("5m", "1s"),
)  # fmt: skip
"""What of each file is written otherwise: times alone, so that a test needs seconds and not a quarter of an hour."""


@dataclass
class Pager:
    """Every notification that Alertmanager sent, in order."""

    port: int
    sent: list[dict[str, Any]] = field(default_factory=list)

    def states(self, alert: str) -> list[str]:
        """`firing` or `resolved`, in the order in which it was told; the same again counts once."""
        told = [
            one["status"] for note in list(self.sent) for one in note["alerts"] if one["labels"]["alertname"] == alert
        ]
        return [state for place, state in enumerate(told) if place == 0 or told[place - 1] != state]

    def words(self, alert: str) -> dict[str, Any]:
        """The first notification of an alert."""
        return next(one for note in self.sent for one in note["alerts"] if one["labels"]["alertname"] == alert)


@contextmanager
def listening() -> Iterator[Pager]:
    """A receiver of webhooks on a loopback port of its own."""
    pager = Pager(0)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            note = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/page":
                pager.sent.append(note)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    pager.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.1,))
    thread.start()
    try:
        yield pager
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def start_alerting(children: Processes, folder: Path, ports: dict[str, int]) -> None:
    """Start both on `deploy/`'s files.

    Args:
        folder: where the quickened files and their data go.
        ports: the one to take for each that the files name: `9093`, `9095`, `3000`, `3001`, and `9090`.
    """
    for program in (PROMETHEUS, ALERTMANAGER):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is missing: it comes with the Debian package of this name")
    folder.mkdir()
    for name in ("prometheus/prometheus.yml", "prometheus/rules.yml", "alertmanager/alertmanager.yml"):
        text = (DEPLOY / name).read_text()
        text = re.sub(r"127\.0\.0\.1:(\d+)", lambda found: f"127.0.0.1:{ports[found[1]]}", text)
        # Not the windows of rates in the rules' expressions, only how long one has to hold.
        quickened = [pair for pair in QUICKENED if "for:" in pair[0]] if name.endswith("rules.yml") else QUICKENED
        for slow, quick in quickened:
            text = text.replace(slow, quick)
        (folder / Path(name).name).write_text(text)
    children.start("alertmanager", [
        ALERTMANAGER, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{ports['9093']}", "--cluster.listen-address=",
    ])  # fmt: skip
    children.start("prometheus", [
        PROMETHEUS, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'series'}",
        f"--web.listen-address=127.0.0.1:{ports['9090']}",
    ])  # fmt: skip
    children.wait_for("alertmanager", f"http://127.0.0.1:{ports['9093']}/-/ready")
    children.wait_for("prometheus", f"http://127.0.0.1:{ports['9090']}/-/ready")
