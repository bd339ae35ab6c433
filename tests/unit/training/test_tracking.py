"""The MLflow run of a training: what is told where it cannot be opened."""

from dataclasses import asdict

import pytest

from blastwatch.errors import RegistryError
from blastwatch.settings import load
from training import tracking
from training.parameters import READ_BY_LOGISTIC, TrainParameters


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


def test_people_are_told_what_a_training_read_and_not_where_its_weights_lay():
    knobs = asdict(TrainParameters(weights="file", weights_file="/home/somebody/w.safetensors"))
    named = knobs | {"weights_file": "w.safetensors"}
    assert tracking.read_knobs(knobs) == named
    assert tracking.read_knobs(knobs | {"fit": "logistic"}) == {
        name: value for name, value in named.items() if name in READ_BY_LOGISTIC
    } | {"fit": "logistic"}
    assert tracking.read_knobs({"epochs": 3}) == {"epochs": 3}


def test_a_run_that_another_mlflow_has_is_told_with_what_to_set(settings):
    from mlflow import MlflowClient

    with pytest.raises(RegistryError, match=r"Expected the training run 0{32} in sqlite:.*Set MLFLOW_TRACKING_URI"):
        tracking.check_run(settings, "0" * 32)
    with pytest.raises(RegistryError, match="Set MLFLOW_TRACKING_URI"), tracking.open_run(settings, run_id="0" * 32):
        pass
    client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
    run_id = client.create_run(client.create_experiment("any")).info.run_id
    tracking.check_run(settings, run_id)
    client.delete_run(run_id)
    with pytest.raises(RegistryError, match=f"was deleted in .* mlflow runs restore --run-id {run_id}"):
        tracking.check_run(settings, run_id)
