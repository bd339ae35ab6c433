"""Fixtures that more than one folder of tests needs."""

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")

from blastwatch.settings import Settings, load  # noqa: E402  (telemetry is off before anything else loads)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """An MLflow store with its tables and nothing in them: making one takes seconds, copying it none."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_registered_models()
    return path


@pytest.fixture
def settings(tmp_path, empty_store) -> Settings:
    """Settings over the empty home of this test."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(empty_store, home / "mlflow.db")
    return load({"BLASTWATCH_HOME": str(home), "BLASTWATCH_ACTOR": "tester"})


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives ports of the loopback address that nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
