"""Many promoters at once, each a process of its own, started together."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor

import mlflow.tracking  # noqa: F401  (before the processes part: each would take seconds for it)

from blastwatch import promotion
from blastwatch.errors import AliasMoved, AliasNotSet, UsageError
from blastwatch.registry import Registry
from blastwatch.settings import load
from tests.forkserver import forkserver

BACK = "back"
READY_SECONDS = 120

_start = None


def promote_at_once(wanted: Sequence[str], variables: Mapping[str, str]) -> list[str]:
    """Promote each version, or roll back where `BACK` stands; what was refused, and why."""
    context = forkserver()
    begin = (dict(variables), context.Barrier(len(wanted)))
    with ProcessPoolExecutor(len(wanted), mp_context=context, initializer=_begin, initargs=begin) as pool:
        return [said for said in pool.map(_act, range(len(wanted)), wanted) if said]


def _begin(variables, start) -> None:
    global _start
    _start = start
    os.environ.update(variables)


def _act(number: int, wanted: str) -> str:
    registry = Registry(load({**os.environ, "BLASTWATCH_ACTOR": f"promoter {number}"}))
    _start.wait(READY_SECONDS)
    try:
        if wanted == BACK:
            promotion.rollback(registry, reason="at once")
        else:
            promotion.promote(registry, wanted, reason="at once", cells=None).check()
    except (UsageError, AliasMoved, AliasNotSet) as error:  # somebody was there first, or nothing is left to go back to
        return str(error)
    return ""
