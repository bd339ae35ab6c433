"""One small run of the demo, which several tests look at."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from blastwatch.processes import script
from tests import postgres as server

ROOT = Path(__file__).parents[2]
# The commands, one after the other, in one process: each would take ten seconds of a core to load torch and the rest.
CHAIN = "import shlex, sys; from blastwatch.cli import blastwatch\n" \
        "for line in sys.argv[1:]: blastwatch(shlex.split(line), standalone_mode=False)"  # fmt: skip
SMALL = ("train.architecture=resnet18", "image.size=32", "train.epochs=2", "evaluate.resamples=50",
         "package.drift_resamples=100", "package.calibration_cells=20", "package.parity_cells=40")  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A work folder with a home of its own; `run` calls an installed command in it."""

    folder: Path
    said: str

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("BLASTWATCH_", "MLFLOW_"))}
        return clean | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "BLASTWATCH_HOME": str(self.folder / "home"),
            "BLASTWATCH_ACTOR": "tester",
        }

    def run(self, name, *arguments, code=0, **environment):
        done = subprocess.run(
            [script(name), *arguments], cwd=self.folder, env=self.environment | environment,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, f"{name} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def demo(made_once) -> Work:
    """The demo on a small network; nothing in its folder is changed after."""

    def fill(folder: Path) -> None:
        (folder / "said").write_text(run_demo(folder / "work"))
        train_another(Work(folder / "work", ""))

    folder = made_once("demo", fill)
    return Work(folder / "work", (folder / "said").read_text())


def run_demo(folder: Path) -> str:
    """What the demo says."""
    sets = [part for knob in SMALL for part in ("--set", knob)]
    done = subprocess.run(
        [script("blastwatch"), "demo", "--dir", str(folder), "--patients", "20", "--cells-each", "12", *sets],
        cwd=ROOT, env=Work(folder, "").environment, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train_another(demo: Work) -> None:
    """Leave a second package of another seed and one epoch less beside the first."""
    demo.run(
        "python", "-c", CHAIN, "train --set train.seed=2 --set train.epochs=1 --out second/train",
        "evaluate --trained second/train --out second/evaluate --summary second/summary.json",
        "package --trained second/train --evaluated second/evaluate --out second/package",
    )  # fmt: skip


@pytest.fixture(scope="session")
def second_package(demo) -> Path:
    """Evaluated on the same test cells as the demo's own."""
    return demo.folder / "second/package"


@pytest.fixture
def postgres(free_port):
    """A PostgreSQL server of this test's own."""
    with server.running(free_port()) as running:
        yield running
