"""Processes that part from one which has loaded what any of the tests' processes needs."""

import contextlib
import multiprocessing
from multiprocessing import forkserver as server
from multiprocessing.context import ForkServerContext
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Python starts one such process and never asks it again what to load, so this is what all of them need: where the
# first to come named its own part alone, each process of the others took seconds to load torch or MLflow.
PRELOADED = (
    "mlflow",
    "mlflow.store.model_registry.sqlalchemy_store",  # a second of imports in each process that opens a registry
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.pyfunc",
    "tests.killing",
    "tests.promoters",
    "tests.trainings",
    "training.importing",
    "training.side_by_side",
)


def forkserver() -> ForkServerContext:
    """The context whose processes part from that one, which runs from now on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with contextlib.chdir(ROOT):  # it looks for modules where it starts
        server.ensure_running()
    return context
