"""What BentoML's supervisor and its workers are to each other, beyond what BentoML makes of them.

The supervisor is a circus arbiter, which takes commands on a socket, `add` with any program among them, and tells what
happens on another. BentoML binds both to ports of the loopback and asks nobody who they are: any user of the machine
could run programs as the one of the service. Nothing of the service uses them, so they are bound within the process.

A worker is a session of its own and holds the port and the follower's lock. When its supervisor is gone (killed for
memory, say) nobody stops it any more, so it ends by itself.
"""

import logging
import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from blastwatch.errors import UsageError

SUPERVISOR_VARIABLE = "BLASTWATCH_SUPERVISOR"
"""Set before the workers start, not by people: the id of the process that starts them."""

LOOK_SECONDS = 1.0  # between two looks for the supervisor
LAST_SECONDS = 10.0  # for what a worker has accepted when the supervisor is gone; less than `processes.GRACE`

_log = logging.getLogger("blastwatch.service")


def take_no_commands() -> None:
    """Let the supervisor that BentoML makes next in this process listen to itself alone.

    BentoML has taken the function that makes it by now, but not the kinds that one makes.
    """
    from bentoml._internal.utils import circus

    for kind in ("Arbiter", "ThreadedArbiter"):
        setattr(circus, kind, _deaf(getattr(circus, kind)))


def _deaf(kind: Callable[..., Any]) -> Callable[..., Any]:
    """A kind of supervisor whose two sockets are the process's own."""

    def make(watchers: Any, *, endpoint: str, pubsub_endpoint: str, plugins: Any = None, **options: Any) -> Any:
        del endpoint, pubsub_endpoint
        if plugins:
            raise UsageError(
                "Expected a supervisor that takes no commands but got --reload, which needs one that takes them from "
                "every user of this machine. Leave it out, and start the service again to serve other code."
            )
        inside = f"inproc://{uuid.uuid4()}"
        return kind(watchers, endpoint=f"{inside}/commands", pubsub_endpoint=f"{inside}/events", **options)

    return make


def own_name() -> dict[str, str]:
    """The variable that tells the workers which process theirs is."""
    return {SUPERVISOR_VARIABLE: str(os.getpid())}


def end_with_supervisor(environment: Mapping[str, str]) -> None:
    """Let this worker end soon after its supervisor, by a thread that looks for it.

    Not by a signal of the kernel's at a parent's end, which Linux alone knows, and which the end of the parent's thread
    brings as well.
    """
    told = environment.get(SUPERVISOR_VARIABLE)
    if told is not None:  # else nothing started it, as in a debugger
        threading.Thread(target=_end_with, args=(int(told),), name="supervisor", daemon=True).start()


def _end_with(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(LOOK_SECONDS)
    _log.warning("The supervisor (process %d) is gone: this worker ends.", supervisor)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_SECONDS)
    # The follower and the shadow's child end with the worker, unless they hang; they are of its group.
    end = os.killpg if os.getpgrp() == os.getpid() else os.kill
    end(os.getpid(), signal.SIGKILL)
