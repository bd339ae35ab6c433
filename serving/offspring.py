"""What the child processes of a worker (`serving.follower`, `serving.shadow_worker`) have in common."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path


def same_code(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which a child runs this very code, wherever the worker found it."""
    code = str(Path(__file__).parents[1])
    path = os.pathsep.join(part for part in (code, environment.get("PYTHONPATH", "")) if part)
    return {**environment, "PYTHONPATH": path}


def leave_the_end_to_the_worker() -> None:
    """Ctrl+C reaches the whole group, and BentoML's supervisor stops the children of a worker with it. Yet a child is
    ended by its worker alone, which would take any other end for an accident."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
