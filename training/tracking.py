"""The MLflow run behind a model: where it is kept, how it is found again, and how it ends."""

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blastwatch.addresses import shown
from blastwatch.errors import RegistryError
from blastwatch.registry import check_reachable
from blastwatch.settings import Settings
from training.parameters import READ_BY_LOGISTIC

if TYPE_CHECKING:
    from mlflow import ActiveRun
    from mlflow.exceptions import MlflowException

SYSTEM_METRICS_INTERVAL = 5  # seconds
PARENT, NAME = "mlflow.parentRunId", "mlflow.runName"  # tags by which MLflow nests and names runs


@contextmanager
def open_run(
    settings: Settings, *, run_id: str | None = None, tags: dict[str, str] | None = None, machine: bool = True
) -> "Iterator[ActiveRun]":
    """Start a run, or go on with one; an error marks it FAILED. Within a run that is open it becomes that one's child.

    Args:
        machine: log the load of the machine, too; a parent of runs leaves that to its children.

    Raises:
        RegistryUnreachable, RegistryError: where MLflow cannot be used, or does not have the run.
    """
    if run_id is None:
        check_reachable(settings)
    else:
        check_run(settings, run_id)
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(settings.tracking_uri)
    mlflow.set_registry_uri(settings.tracking_uri)
    mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_INTERVAL)  # type: ignore[no-untyped-call]
    try:
        if run_id is None:
            _experiment(settings)
        parent = mlflow.active_run()
        if parent is not None:
            tags = (tags or {}) | {PARENT: parent.info.run_id}
        run = mlflow.start_run(
            run_id=run_id, tags=tags, nested=parent is not None, log_system_metrics=machine and run_id is None
        )
    except MlflowException as error:
        raise _cannot_open(settings, error) from error
    with run:
        yield run


def check_run(settings: Settings, run_id: str) -> None:
    """For those who go on with a run at the end of their work: say before it that MLflow does not have the run.

    Raises:
        RegistryUnreachable, RegistryError: where MLflow cannot be used, or does not have it.
    """
    check_reachable(settings)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        run = MlflowClient(settings.tracking_uri).get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise _cannot_open(settings, error) from error
        raise RegistryError(
            f"Expected the training run {run_id} in {settings.tracking_shown} but it is not there: another MLflow has "
            "it. Set MLFLOW_TRACKING_URI to the one that the training used, or train here."
        ) from error
    if run.info.lifecycle_stage == "deleted":
        raise RegistryError(
            f"The training run {run_id} was deleted in {settings.tracking_shown}. Bring it back: mlflow runs restore "
            f"--run-id {run_id}"
        )


def _cannot_open(settings: Settings, error: "MlflowException") -> RegistryError:
    return RegistryError(f"MLflow at {settings.tracking_shown} cannot open the run: {shown(error.message)}")


@contextmanager
def open_parent(
    settings: Settings, *, key: str, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]
) -> "Iterator[ActiveRun]":
    """Open the run above those that are started within: the one with this key where there is one.

    Args:
        key: what tells it from others, a digest. parameters: logged when it is new.
    """
    known = unfinished_run(settings, key)
    with open_run(settings, run_id=known, tags={**tags, NAME: name, "blastwatch.key": key}, machine=False) as run:
        if known is None:
            import mlflow

            mlflow.log_params(dict(parameters))
        yield run


def _experiment(settings: Settings) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    if client.get_experiment_by_name(settings.experiment) is None:
        # The embedded store would otherwise put artifacts into the current folder.
        place = settings.artifacts.as_uri() if settings.embedded_registry else None
        client.create_experiment(settings.experiment, artifact_location=place)
    mlflow.set_experiment(settings.experiment)


def unfinished_run(settings: Settings, key: str) -> str | None:
    """The latest run with the tag `blastwatch.key`: what a stopped training left behind."""
    check_reachable(settings)
    import mlflow

    client = mlflow.MlflowClient(settings.tracking_uri)
    experiment = client.get_experiment_by_name(settings.experiment)
    if experiment is None:
        return None
    found = client.search_runs([experiment.experiment_id], f"tags.`blastwatch.key` = '{key}'", max_results=1)
    return str(found[0].info.run_id) if found else None


def flat(parameters: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`{"train": {"epochs": 3}}` as `{"train.epochs": 3}`, which is how MLflow shows parameters."""
    return {f"{section}.{key}": value for section, values in parameters.items() for key, value in values.items()}


def read_knobs(train: Mapping[str, Any]) -> dict[str, Any]:
    """Of the section `train` what that training read, for people: the rest shaped nothing. A file of weights goes by
    its name: where it lay on this machine is nobody else's business.

    >>> read_knobs({"fit": "logistic", "epochs": 30, "nuisances": 60, "weights_file": "/home/me/w.safetensors"})
    {'fit': 'logistic', 'nuisances': 60, 'weights_file': 'w.safetensors'}
    """
    every = train.get("fit") != "logistic"
    read = {name: value for name, value in train.items() if every or name in READ_BY_LOGISTIC}
    return read | ({"weights_file": Path(read["weights_file"]).name} if read.get("weights_file") else {})


def git_commit(folder: Path) -> str:
    """The commit of the checkout around a folder, with `+` where files differ from it; "" outside of one, and where
    there is no git."""
    git = shutil.which("git")
    if git is None:
        return ""
    call = [git, "-C", str(folder)]
    head = subprocess.run([*call, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603
    if head.returncode:
        return ""
    changed = subprocess.run([*call, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=False)  # noqa: S603
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
