"""The MLflow run of a training: what is told where it cannot be opened."""

import pytest

from blastwatch.errors import RegistryError
from blastwatch.settings import load
from training import tracking


def test_a_run_that_cannot_be_opened_shows_no_account(tmp_path, monkeypatch):
    import mlflow
    from mlflow.exceptions import MlflowException

    def refuse(**_):
        raise MlflowException("API request to http://pat:s3cret@127.0.0.1:9/api failed")

    monkeypatch.setattr(tracking, "check_reachable", lambda _settings: None)
    monkeypatch.setattr(tracking, "_experiment", lambda _settings: None)
    monkeypatch.setattr(mlflow, "start_run", refuse)
    before = mlflow.get_tracking_uri(), mlflow.get_registry_uri()
    settings = load({"BLASTWATCH_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": "http://pat:s3cret@127.0.0.1:9"})
    try:
        with pytest.raises(RegistryError, match="cannot open the run") as told, tracking.open_run(settings):
            pass
    finally:
        mlflow.set_tracking_uri(before[0])
        mlflow.set_registry_uri(before[1])
    assert "s3cret" not in str(told.value) and "http://127.0.0.1:9" in str(told.value)
