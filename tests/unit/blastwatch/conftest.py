from dataclasses import replace

import mlflow
import pytest

from blastwatch.registry import Registry
from blastwatch.signing import PROMOTER, TRAINER
from tests.keys import add_key, private_of
from tests.packages import make_package
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


@pytest.fixture
def people(lenient_settings, tmp_path):
    """The registry as Tom, who trains, and Pat, who promotes, see it."""
    keys = tmp_path / "trusted"
    for role, name in ((TRAINER, "tom"), (PROMOTER, "pat")):
        add_key(keys, role, name)

    def seen(name):
        return Registry(replace(lenient_settings, signing_key=private_of(keys, name), trusted_keys=keys, actor=name))

    return seen("tom"), seen("pat")


@pytest.fixture
def register(new_run, tmp_path):
    made = []

    def make(registry, right=0.9):
        made.append(tmp_path / f"package{len(made)}")
        return registry.register(make_package(made[-1], run_id=new_run(), right=right, seed=len(made)))

    return make


@pytest.fixture
def client(lenient_settings):
    return mlflow.MlflowClient(lenient_settings.tracking_uri, lenient_settings.tracking_uri)
