"""Fixtures that more than one folder of tests needs."""

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from blastwatch.settings import Settings, load
from tests.ports import free_ports

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(autouse=True)
def no_store_of_another_test(monkeypatch):
    """MLflow writes the store that it was last pointed to into the environment, where the next test would read it."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], object]], Path]:
    """Gives a folder of a name, filled once however many processes test; nothing in it is changed after."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent

    def folder_of(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = shared / name, shared / f"{name}.done"
        with FileLock(shared / f"{name}.lock"):
            if not done.exists():
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def commands(made_once) -> Iterator[Path]:
    """A folder with `blastwatch`, `dvc` and others for PATH: forks of a process that has loaded the libraries."""
    from tests.preloaded import held, write_commands

    folder = made_once("preloaded", lambda folder: write_commands(folder / "bin", folder / "socket"))
    with held(folder / "socket"):
        yield folder / "bin"


@pytest.fixture(scope="session")
def empty_store(made_once) -> Path:
    """An MLflow store with its tables and nothing in them: making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    def fill(folder: Path) -> None:
        uri = f"sqlite:///{folder / 'mlflow.db'}"
        MlflowClient(uri, uri).search_registered_models()  # both: MLflow keeps the registry of an earlier test

    return made_once("store", fill) / "mlflow.db"


@pytest.fixture
def settings(tmp_path, empty_store) -> Settings:
    """Settings over the empty home of this test."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    return load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "tester"})


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, one for the tests of a file; marks of the test say `browser`."""
    if not CHROMIUM.exists():
        pytest.skip("needs Chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="session")
def free_port(worker_id) -> Callable[[], int]:
    """Gives ports of the loopback address that nobody listens on."""
    return functools.partial(next, free_ports(int(worker_id.removeprefix("gw") if worker_id != "master" else 0)))


@pytest.fixture(scope="session")
def cohort(made_once) -> Path:
    """A work folder with a small synthetic cohort, imported, audited, split and packed at 32 px."""
    return made_once("cohort", draw_cohort) / "data"


def draw_cohort(work: Path) -> None:
    from click.testing import CliRunner

    from training.data_commands import data

    (work / "params.yaml").write_text("image: {size: 32}\n")
    folder = {name: str(work / "data" / name) for name in ("source", "cells", "audit", "split", "pack")}
    parameters = ["--params", str(work / "params.yaml")]
    for call in (
        ["synth", "--patients", "20", "--cells", "6", "--seed", "3", "--duplicates", "1", "--out", folder["source"]],
        ["import", folder["source"], "--kind", "cnmc", "--out", folder["cells"]],
        ["audit", folder["cells"], "--out", folder["audit"]],
        ["split", folder["cells"], "--audit", folder["audit"], "--out", folder["split"], *parameters],
        ["pack", folder["cells"], "--out", folder["pack"], *parameters],
    ):
        CliRunner().invoke(data, call, catch_exceptions=False)
