"""Ends a process with SIGKILL before the Nth step that reaches outside: a write to MLflow, or to the history.

    python -m tests.killing N promote REF | rollback | register FOLDER | challenge REF | withdraw | restore

Exit code 0 where there were fewer steps. The gap after a write is the one before the next, so every gap is met.
"""

import os
import signal
import sys
from pathlib import Path

from blastwatch import promotion
from blastwatch.ledger import Ledger
from blastwatch.model_store import ModelStore
from blastwatch.registry import Registry
from blastwatch.settings import Settings, load
from tests.forkserver import forkserver

WRITES = (
    (Ledger, ("append",)),
    (ModelStore, ("log", "set_alias", "delete_alias", "set_tag", "set_version_tag")),
)


def kill_before(step: int) -> None:
    """Wrap every write so that the process dies at the given one of all moments around them."""
    seen = 0

    def moment() -> None:
        nonlocal seen
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1

    def wrap(inner):
        def call(*arguments, **named):
            moment()
            return inner(*arguments, **named)

        return call

    for owner, names in WRITES:
        for name in names:
            setattr(owner, name, wrap(getattr(owner, name)))


def act(registry: Registry, action: str, *arguments: str) -> None:
    if action == "register":
        registry.register(Path(arguments[0]))
    elif action == "promote":
        promotion.promote(registry, arguments[0], reason="killed", cells=None).check()
    elif action == "rollback":
        promotion.rollback(registry, reason="killed")
    elif action == "challenge":
        promotion.challenge(registry, arguments[0], reason="killed")
    elif action == "withdraw":
        promotion.withdraw(registry, reason="killed")
    elif action == "restore":
        promotion.restore(registry, reason="killed")


def act_until(step: int, settings: Settings, action: str, arguments: tuple[str, ...]) -> None:
    kill_before(step)
    act(Registry(settings), action, *arguments)


def die_at(step: int, settings: Settings, action: str, *arguments: str) -> bool:
    """Run an action in a process that dies at a step; True where it died before the end.

    Not in a fork of this one: a thread of MLflow may hold a lock just then, which nobody would let go of in the child.
    """
    process = forkserver().Process(target=act_until, args=(step, settings, action, arguments))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


if __name__ == "__main__":
    act_until(int(sys.argv[1]), load(), sys.argv[2], tuple(sys.argv[3:]))
