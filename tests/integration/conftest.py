"""One small run of the demo, which several tests look at."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import postgres as server

ROOT = Path(__file__).parents[2]
SMALL = ("train.architecture=resnet18", "image.size=32", "train.epochs=2", "evaluate.resamples=50",
         "package.drift_resamples=100", "package.calibration_cells=20", "package.parity_cells=40")  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A work folder with a home of its own; `run` calls a command of the folder `commands` in it."""

    folder: Path
    commands: Path
    said: str = ""

    @property
    def environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("BLASTWATCH_", "MLFLOW_"))}
        return clean | {
            "PATH": f"{self.commands}{os.pathsep}{os.environ['PATH']}",
            "BLASTWATCH_HOME": str(self.folder / "home"),
            "BLASTWATCH_ACTOR": "tester",
        }

    def run(self, name, *arguments, code=0, **environment):
        done = subprocess.run(
            [self.commands / name, *arguments], cwd=self.folder, env=self.environment | environment,
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == code, f"{name} {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="session")
def demo(made_once, commands) -> Work:
    """The demo on a small network; nothing in its folder is changed after."""

    def fill(folder: Path) -> None:
        work = Work(folder / "work", commands)
        (folder / "said").write_text(run_demo(work))
        train_another(work)

    folder = made_once("demo", fill)
    return Work(folder / "work", commands, (folder / "said").read_text())


def run_demo(work: Work) -> str:
    """What the demo says."""
    sets = [part for knob in SMALL for part in ("--set", knob)]
    done = subprocess.run(
        [work.commands / "blastwatch", "demo", "--dir", work.folder, "--patients", "20", "--cells-each", "12", *sets],
        cwd=ROOT, env=work.environment, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train_another(demo: Work) -> None:
    """Leave a second package of another seed and one epoch less beside the first."""
    trained, evaluated = ("--trained", "second/train"), ("--evaluated", "second/evaluate")
    demo.run("blastwatch", "train", "--set", "train.seed=2", "--set", "train.epochs=1", "--out", "second/train")
    demo.run("blastwatch", "evaluate", *trained, "--out", "second/evaluate", "--summary", "second/made/summary.json")
    demo.run("blastwatch", "package", *trained, *evaluated, "--out", "second/package")


@pytest.fixture(scope="session")
def second_package(demo) -> Path:
    """Evaluated on the same test cells as the demo's own."""
    return demo.folder / "second/package"


@pytest.fixture
def postgres(free_port):
    """A PostgreSQL server of this test's own."""
    with server.running(free_port()) as running:
        yield running
