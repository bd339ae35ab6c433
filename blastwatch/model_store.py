"""MLflow's model registry, seen through what this project needs of it: versions, aliases, tags, files.

Every call turns MLflow's errors into ours, and a server that is away into a quick answer.
"""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blastwatch.addresses import shown
from blastwatch.embedded_store import open_embedded
from blastwatch.errors import NotPermitted, RegistryError, RegistryUnreachable, VersionNotFound
from blastwatch.http_environment import reading, usable_environment
from blastwatch.package import Package
from blastwatch.settings import Settings

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy import Engine

REACH_TIMEOUT = 5.0  # seconds that a server gets to answer /health
_ADDING = ("MLFLOW_UV_AUTO_DETECT", "MLFLOW_LOCK_MODEL_DEPENDENCIES")
"""MLflow's variables by which it writes beside a model what lies or is installed where it is called."""
_DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Tags and aliases (alias -> version) of the registered model."""

    tags: dict[str, str]
    aliases: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version as MLflow keeps it."""

    number: str
    run_id: str
    tags: dict[str, str]


class ModelStore:
    """Opens nothing until it is asked something."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = settings.model_name

    # -- reading ------------------------------------------------------------------------------------------------

    def model(self) -> Model | None:
        """The registered model, None where nothing was registered yet. One question: services ask it all the time."""
        from mlflow.exceptions import MlflowException

        with self._reaching() as client:
            try:
                found = client.get_registered_model(self.name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise
        return Model(tags=dict(found.tags), aliases={alias: str(number) for alias, number in found.aliases.items()})

    def versions(self) -> list[Version]:
        """Every version of a model that exists, in no order."""
        with self._reaching() as client:
            return [_version(found) for found in client.search_model_versions(f"name={_quoted(self.name)}")]

    def version(self, number: str) -> Version:
        """Raises `VersionNotFound`."""
        from mlflow.exceptions import MlflowException

        with self._reaching() as client:
            try:
                return _version(client.get_model_version(self.name, number))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise VersionNotFound(f"There is no version {number} of {self.name}.") from error
                raise

    def has(self, number: str) -> bool:
        """Whether there is such a version: it may have been deleted in MLflow."""
        try:
            self.version(number)
        except VersionNotFound:
            return False
        return True

    def size(self, number: str) -> int:
        """Bytes of a version's files, asked of the store without fetching them."""
        import mlflow

        def walk(uri: str) -> int:
            found = mlflow.artifacts.list_artifacts(artifact_uri=uri)
            below = ((item, f"{uri}/{item.path.rsplit('/', 1)[-1]}") for item in found)
            return sum(walk(inner) if item.is_dir else int(item.file_size or 0) for item, inner in below)

        with self._reaching():
            self._point_mlflow_here()
            return walk(self._uri(number))

    def download(self, number: str, scratch: Path | None) -> Path:
        """The folder with a version's files: copied below `scratch`; with None where they lie, if that is this machine.

        Raises:
            RegistryError: the files cannot be read.
        """
        import mlflow

        with self._reaching():
            self._point_mlflow_here()
            try:
                where = str(scratch) if scratch else None
                return Path(mlflow.artifacts.download_artifacts(artifact_uri=self._uri(number), dst_path=where))
            except OSError as error:
                raise RegistryError(f"The files of version {number} cannot be read: {shown(str(error))}.") from error

    # -- writing ------------------------------------------------------------------------------------------------

    def ensure_model(self) -> None:
        with self._reaching() as client:
            if not client.search_registered_models(f"name={_quoted(self.name)}"):
                client.create_registered_model(self.name, description="Single-cell classifier, see the model card.")

    def set_alias(self, alias: str, number: str) -> None:
        with self._reaching() as client:
            client.set_registered_model_alias(self.name, alias, number)

    def delete_alias(self, alias: str) -> None:
        with self._reaching() as client:
            client.delete_registered_model_alias(self.name, alias)

    def set_tag(self, name: str, value: str) -> None:
        with self._reaching() as client:
            client.set_registered_model_tag(self.name, name, value)

    def set_version_tag(self, number: str, name: str, value: str) -> None:
        with self._reaching() as client:
            client.set_model_version_tag(self.name, number, name, value)

    def log(self, package: Package, tags: Mapping[str, str]) -> str:
        """Log a package under the run that trained it and create a version from it; returns its number."""
        import mlflow

        info = package.info
        with self._reaching() as client:
            self._point_mlflow_here()
            try:
                client.get_run(info.run_id)
            except mlflow.exceptions.MlflowException as error:
                if error.error_code in _DENIED:
                    raise
                raise RegistryError(
                    f"Expected the training run {info.run_id} of this package in {self.settings.tracking_shown} but it "
                    "is not there. Register with the MLFLOW_TRACKING_URI that the training used."
                ) from error
            quiet = warnings.catch_warnings()
            with mlflow.start_run(run_id=info.run_id, log_system_metrics=False), quiet, _adding_nothing():
                # Left out on purpose: two cells of 224 px cost 15 MB of JSON a version. Loading is tested instead.
                warnings.filterwarnings("ignore", message=".*An input example was not provided")
                logged = mlflow.pyfunc.log_model(
                    name="package",
                    loader_module="blastwatch.pyfunc_model",
                    data_path=str(package.folder),
                    signature=_signature(package),
                    pip_requirements=["blastwatch"],
                )
            created = client.create_model_version(
                self.name,
                source=logged.model_uri,
                model_id=logged.model_id,
                run_id=info.run_id,
                tags=dict(tags),
                description="Trained on synthetic cells." if info.synthetic else "",
            )
        return str(created.version)

    # -- MLflow -------------------------------------------------------------------------------------------------

    @cached_property
    def _client(self) -> "MlflowClient":
        from mlflow import MlflowClient

        return MlflowClient(self.settings.tracking_uri, self.settings.tracking_uri)

    def _uri(self, number: str) -> str:
        return f"models:/{self.name}/{number}"

    def _point_mlflow_here(self) -> None:
        """Some of MLflow's functions know no client, only the process's own addresses."""
        import mlflow

        mlflow.set_tracking_uri(self.settings.tracking_uri)
        mlflow.set_registry_uri(self.settings.tracking_uri)

    @contextmanager
    def _reaching(self) -> Iterator["MlflowClient"]:
        check_reachable(self.settings)
        from mlflow.exceptions import MlflowException

        from blastwatch.database import translated

        what = f"MLflow's store {self.settings.tracking_shown}"
        try:  # what MLflow meets while it opens a database comes as it is, all later errors of one as its own
            with translated(what, unavailable=RegistryUnreachable, refused=RegistryError):
                yield self._client
        except MlflowException as error:
            raise self._ours(error) from error

    def _ours(self, error: "MlflowException") -> RegistryError:
        where = self.settings.tracking_shown
        if error.error_code in _DENIED:
            account = os.environ.get("MLFLOW_TRACKING_USERNAME") or "a caller without an account"
            return NotPermitted(
                f"MLflow at {where} does not let {account} do this. Ask whoever keeps its accounts, or set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of an account that may."
            )
        # What MLflow's client says where it gave up: no answer in time, or none but errors of the server.
        gave_up = error.message.startswith("API request to http") and " failed with " in error.message
        raised = RegistryUnreachable if gave_up else RegistryError
        return raised(f"MLflow at {where} refused: {shown(error.message)} ({error.error_code}).")


@contextmanager
def _adding_nothing() -> Iterator[None]:
    """Have MLflow write beside a package the same wherever a command runs: `logged_model` refuses everything else. So
    what the caller's environment says of it does not count."""
    before = {name: os.environ[name] for name in _ADDING if name in os.environ}
    os.environ.update(dict.fromkeys(_ADDING, "false"))
    try:
        yield
    finally:
        for name in _ADDING:
            del os.environ[name]
        os.environ.update(before)


def check_reachable(settings: Settings) -> None:
    """Raise `RegistryUnreachable` within seconds where no MLflow server, or no PostgreSQL that is its store, answers;
    MLflow alone retries for minutes.

    A proxy that answers for a server that is down (502, 503) is no server.

    The embedded store is made where it is missing.
    """
    tracking_uri = settings.tracking_uri
    if settings.embedded_registry:
        open_embedded(settings)
    if tracking_uri.startswith("postgresql"):
        _check_database(settings)
    if not tracking_uri.startswith(("http://", "https://")):
        return
    import httpx

    try:
        health = f"{tracking_uri.rstrip('/')}/health"
        with usable_environment():
            caller = httpx.Client(timeout=REACH_TIMEOUT, **reading(tracking_uri))
        with caller:
            answer = caller.get(health)
    except httpx.HTTPError as error:
        raise _away(settings, str(error)) from error
    if answer.is_server_error:
        raise _away(settings, f"HTTP {answer.status_code}")


def _check_database(settings: Settings) -> None:
    """Ask the PostgreSQL that is MLflow's store whether it is there, over a connection of our own that is kept."""
    from blastwatch.database import translated

    what = f"MLflow's store {settings.tracking_shown}"
    with translated(what, unavailable=RegistryUnreachable, refused=RegistryError):
        _engine(settings.tracking_uri).connect().close()


@cache
def _engine(tracking_uri: str) -> "Engine":
    from blastwatch.database import create

    return create(tracking_uri, "MLFLOW_TRACKING_URI", unavailable=RegistryUnreachable)


def _away(settings: Settings, why: str) -> RegistryUnreachable:
    return RegistryUnreachable(
        f"No MLflow server answers at {settings.tracking_shown} ({shown(why)}). "
        "Start it or set MLFLOW_TRACKING_URI to where it is; unset, it is the registry under BLASTWATCH_HOME."
    )


def _quoted(name: str) -> str:
    """A name as MLflow's search takes it, which knows no way to escape a quote; one with both kinds it refuses."""
    return f'"{name}"' if "'" in name else f"'{name}'"


def _version(found: Any) -> Version:
    return Version(number=str(found.version), run_id=found.run_id or "", tags=dict(found.tags))


def _signature(package: Package) -> Any:
    """Unnamed tensors: a named one breaks pyfunc's predict."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    size = package.info.preprocessing.size
    cells = TensorSpec(np.dtype(np.float32), (-1, 3, size, size))
    answers = Schema([ColSpec("double", "probability"), ColSpec("string", "label"), ColSpec("string", "decision")])
    return ModelSignature(inputs=Schema([cells]), outputs=answers)
