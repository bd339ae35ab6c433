"""A service without image statistics and capture (`tests.benchmarks.uncaptured`), to measure what the rest costs."""

import subprocess
import sys
from pathlib import Path

from blastwatch.settings import Settings
from tests.running import Running, environment

ROOT = Path(__file__).parents[2]


class Unwatched(Running):
    """The service without statistics and capture."""

    def __init__(self, settings: Settings, port: int, **variables: str) -> None:
        self.settings, self.port, self.url = settings, port, f"http://127.0.0.1:{port}"
        self.log = settings.home / f"unwatched-{port}.log"
        names = variables | {"BLASTWATCH_HOME": str(settings.home), "BLASTWATCH_PORT": str(port)}
        names |= {"BENTOML_HOME": str(settings.home / "bentoml" / str(port)), "BENTOML_DO_NOT_TRACK": "True"}
        words = [sys.executable, "-m", "bentoml", "serve", "tests.benchmarks.uncaptured:Blastwatch"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*words, "--host", "127.0.0.1", "--port", str(port)],
                cwd=ROOT, env=environment(**names), stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
