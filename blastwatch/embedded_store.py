"""The embedded MLflow store: a SQLite file under the home, whose tables one process makes while the others wait.

MLflow makes them when the store is first opened, and two processes that do so at once damage each other's: a training
and a service that are started together on a new machine.
"""

from functools import cache

from blastwatch.addresses import shown
from blastwatch.errors import RegistryError
from blastwatch.settings import Settings

LOCK = "mlflow.lock"


def open_embedded(settings: Settings) -> None:
    """Make the tables where they are missing; once a process.

    Raises:
        RegistryError: where MLflow cannot open the file, such as one of another version of MLflow.
    """
    _open(settings.tracking_uri, settings)


@cache
def _open(tracking_uri: str, settings: Settings) -> None:
    from filelock import FileLock
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    settings.home.mkdir(parents=True, exist_ok=True)
    with FileLock(settings.home / LOCK):
        try:
            MlflowClient(tracking_uri, tracking_uri).search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError) as error:
            said = shown(f"MLflow cannot open its store {tracking_uri}: {error}")
            raise RegistryError(said) from error
