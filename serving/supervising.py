"""What BentoML's supervisor and its workers are to each other, beyond what BentoML makes of them.

The supervisor is a circus arbiter, which takes commands on a socket, `add` with any program among them, and tells what
happens on another. BentoML binds both to ports of the loopback and asks nobody who they are: any user of the machine
could run programs as the one of the service. Nothing of the service uses them, so they are bound within the process.

It replaces every worker that ends, and so would start workers of which none can open the version for ever. Until one of
them serves it replaces none, and ends once there are none. A closed terminal (SIGHUP) would make it start its workers
anew, under `nohup` as well; here it ends, and under `nohup` runs on.

A worker is a session of its own and holds the port and the follower's lock. When its supervisor is gone (killed for
memory, say) nobody stops it any more, so it ends by itself.
"""

import json
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
"""Set before the workers start, not by people: the id of the process that starts them, and the number of the open pipe
in which they tell it that they serve."""

LOOK_SECONDS = 1.0  # between two looks for the supervisor
NONE_LEFT = "No active process"  # what circus says where no worker is left and none is replaced
AGAIN_SECONDS = 0.05  # until a supervisor that was busy is told again to end
LAST_SECONDS = 10.0  # for what a worker has accepted when the supervisor is gone; less than `processes.GRACE`

_log = logging.getLogger("blastwatch.service")


def prepare_supervisor() -> dict[str, str]:
    """Let the supervisor that BentoML makes next in this process be as the service needs it.

    BentoML has taken the function that makes it by now, but not the kinds that one makes.

    Returns:
        The variables that its workers need.
    """
    from bentoml._internal.utils import circus

    told, telling = os.pipe()
    os.set_inheritable(telling, True)
    for kind in ("Arbiter", "ThreadedArbiter"):
        setattr(circus, kind, _ours(getattr(circus, kind), told))
    return own_name(telling)


def _ours(kind: Callable[..., Any], told: int) -> Callable[..., Any]:
    """A kind of supervisor whose sockets are the process's own, and whose workers tell in a pipe that they serve."""

    def make(watchers: Any, *, endpoint: str, pubsub_endpoint: str, plugins: Any = None, **options: Any) -> Any:
        del endpoint, pubsub_endpoint
        if plugins:
            raise UsageError(
                "Expected a supervisor that takes no commands but got --reload, which needs one that takes them from "
                "every user of this machine. Leave it out, and start the service again to serve other code."
            )
        inside = f"inproc://{uuid.uuid4()}"
        closed_terminal = signal.getsignal(signal.SIGHUP)
        made = kind(watchers, endpoint=f"{inside}/commands", pubsub_endpoint=f"{inside}/events", **options)
        _end_when_told(made, closed_terminal)
        _end_where_none_starts(made, told)
        return made

    return make


def _end_when_told(supervisor: Any, before: Any) -> None:
    """Let SIGTERM end a supervisor whatever it does just then, and SIGHUP likewise, unless that was ignored before, as
    `nohup` wants it.

    By itself it drops the order to end where it is looking after its workers at that moment, as it mostly is while one
    of them cannot start.
    """
    controller = supervisor.ctrl
    signals = controller.sys_hdl

    def end() -> None:
        if supervisor._restarting or supervisor._exclusive_running_command is not None:
            controller.loop.call_later(AGAIN_SECONDS, end)
        else:
            controller.dispatch((None, json.dumps({"command": "quit", "properties": {}})))

    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.quit = lambda: controller.loop.add_callback_from_signal(end)
    signals.handle_hup = signals.handle_term


def _end_where_none_starts(supervisor: Any, told: int) -> None:
    """Let a supervisor end with an error where all its workers ended before one told that it serves."""
    from bentoml.exceptions import BentoMLException

    replaces = [(watcher, watcher.respawn) for watcher in supervisor.watchers]  # BentoML's word: not in an image
    serving = threading.Event()
    start = supervisor.start

    def hear() -> None:
        while os.read(told, 1):
            serving.set()
            for watcher, respawn in replaces:
                watcher.respawn = respawn

    def start_and_tell(*arguments: Any, **named: Any) -> Any:
        threading.Thread(target=hear, name="serving", daemon=True).start()
        try:
            return start(*arguments, **named)
        except RuntimeError as error:
            if serving.is_set() or NONE_LEFT not in str(error):
                raise
            words = "Expected at least one worker that serves but all ended at their start, as the lines above say."
            raise BentoMLException(words) from error

    for watcher, _ in replaces:
        watcher.respawn = False
    supervisor.start = start_and_tell


def own_name(telling: int) -> dict[str, str]:
    """The variable that tells the workers which process theirs is, and in which pipe it hears them."""
    return {SUPERVISOR_VARIABLE: f"{os.getpid()} {telling}"}


def tell_serving(environment: Mapping[str, str]) -> None:
    """Tell the supervisor that this worker serves, so that workers which end are replaced from now on."""
    name = environment.get(SUPERVISOR_VARIABLE)
    if name is not None:  # else nothing started it, as in a debugger
        os.write(int(name.split()[1]), b".")


def end_with_supervisor(environment: Mapping[str, str]) -> None:
    """Let this worker end soon after its supervisor, by a thread that looks for it.

    Not by a signal of the kernel's at a parent's end, which Linux alone knows, and which the end of the parent's thread
    brings as well.
    """
    name = environment.get(SUPERVISOR_VARIABLE)
    if name is not None:  # else nothing started it, as in a debugger
        threading.Thread(target=_end_with, args=(int(name.split()[0]),), name="supervisor", daemon=True).start()


def _end_with(supervisor: int) -> None:
    while os.getppid() == supervisor:
        time.sleep(LOOK_SECONDS)
    _log.warning("The supervisor (process %d) is gone: this worker ends.", supervisor)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_SECONDS)
    # The follower and the shadow's child end with the worker, unless they hang; they are of its group.
    end = os.killpg if os.getpgrp() == os.getpid() else os.kill
    end(os.getpid(), signal.SIGKILL)
