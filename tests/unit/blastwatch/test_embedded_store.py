from concurrent.futures import ProcessPoolExecutor

import pytest

from blastwatch.embedded_store import open_embedded
from blastwatch.errors import RegistryError
from blastwatch.settings import load
from tests.forkserver import forkserver


def experiments(home):
    """What a process that has opened the store finds in it."""
    from mlflow import MlflowClient

    settings = load({"BLASTWATCH_HOME": str(home)})
    open_embedded(settings)
    return [experiment.name for experiment in MlflowClient(settings.tracking_uri).search_experiments()]


def test_processes_that_open_a_new_store_at_once_all_get_it(tmp_path):
    with ProcessPoolExecutor(3, mp_context=forkserver()) as pool:
        assert list(pool.map(experiments, [tmp_path] * 3)) == [["Default"]] * 3


def test_a_store_that_mlflow_cannot_open_is_said(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    with pytest.raises(RegistryError, match="cannot open its store .* is not a database"):
        open_embedded(load({"BLASTWATCH_HOME": str(tmp_path)}))
