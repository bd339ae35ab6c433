from dataclasses import replace

import mlflow
import pytest

from tests.policies import lenient


@pytest.fixture
def new_run(settings):
    """Starts training runs in the embedded store."""
    client = mlflow.MlflowClient(settings.tracking_uri)
    experiment = client.create_experiment("test", artifact_location=settings.artifacts.as_uri())
    return lambda: client.create_run(experiment).info.run_id


@pytest.fixture
def lenient_settings(settings, tmp_path):
    """Under which a package made by hand passes."""
    return replace(settings, policy=lenient(tmp_path))
