"""`python -m tests.benchmarks.api --examples 1000`: schemathesis against a started service that wants keys.

Prints what it did and found; the exit code is 1 where it found anything.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from blastwatch.processes import free_port
from blastwatch.settings import load
from serving.keys import KeyFolder
from tests.running import Running
from tests.schemathesis_run import run_schemathesis
from tests.service_packages import crown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=1000, help="random requests an operation")
    parser.add_argument("--seconds", type=float, default=3600, help="longest time")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        settings = load({"BLASTWATCH_HOME": home, "BLASTWATCH_ACTOR": "benchmark"})
        crown(settings, Path(home) / "package")
        key = KeyFolder(settings.api_keys).add("lab")
        service = Running(settings, free_port())
        try:
            service.wait_until_ready()
            code, said = run_schemathesis(service.url, examples=asked.examples, key=key, seconds=asked.seconds)
        finally:
            left = service.stop()
    print(said)
    print(f"left behind: {left}")
    sys.exit(bool(code or left))


if __name__ == "__main__":
    main()
