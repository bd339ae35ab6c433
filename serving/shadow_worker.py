"""The process in which the challenger reads: `python -m serving.shadow_worker SOCKET HANDOVER DIGEST`.

It runs at SCHED_IDLE: the kernel gives it a core only while nothing else wants it, so it takes nothing from the ones
that answer. It does for each image what the service does, with the challenger's own preprocessing, and answers in
JSON. It ends when its socket closes, whatever it does at that moment: the worker has gone, however it came to its end.
"""

import os
import select
import socket
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blastwatch.errors import BlastwatchError, ImageRejected, PackageError
from blastwatch.settings import Settings, load
from serving.live_folder import reason_of
from serving.offspring import leave_the_end_to_the_worker
from serving.shadow_wire import receive, send

if TYPE_CHECKING:
    from serving.live import LiveModel
    from serving.predictor import Judge

LOWEST_NICE = 19


def step_back() -> str:
    """Give way to everything else on this machine; returns the word for how. Threads made later do so too."""
    try:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except (AttributeError, PermissionError):  # another system, or a sandbox that forbids it
        os.nice(LOWEST_NICE)
        return "nice"
    return "idle"


def _end_with_worker(wire: socket.socket) -> None:
    """Wait until the other side of the socket is no more; what is asked and answered meanwhile is left to others."""
    looked = select.poll()
    looked.register(wire, 0)
    looked.poll()
    os._exit(0)  # at once: a load, or an inference that hangs, would hold the memory of a version until it is done


def _serve(wire: socket.socket, handover: Path, digest: str, settings: Settings, how: str) -> None:
    try:
        live, judge = _open(handover, digest, settings)
    except BlastwatchError as error:
        send(wire, {"refused": reason_of(error), "message": str(error)})
        return
    send(wire, {"ready": True, "engine": live.engine.name, "priority": how})
    while (message := receive(wire)) is not None:
        send(wire, read(live, judge, message[1], settings))


def read(live: "LiveModel", judge: "Judge", data: bytes, settings: Settings) -> dict[str, Any]:
    """What the challenger says of one image file, or the word for why it reads none."""
    from serving.predictor import prepare

    try:
        prepared = prepare(data, live.served.package, max_pixels=settings.max_image_pixels)
    except ImageRejected as error:
        return {"rejected": error.reason}
    outputs = live.engine.infer(prepared.crop[None])
    said = judge(prepared, outputs.logits[0], outputs.embeddings[0])
    return {"probability": said.probability, "label": said.label, "decision": said.decision, "seen": said.seen}


def _open(handover: Path, digest: str, settings: Settings) -> "tuple[LiveModel, Judge]":
    from serving.live import open_live, take_over
    from serving.predictor import Judge

    served = take_over(handover)
    if served.package.digest != digest:
        raise PackageError(f"Expected package {digest} in {handover} but another one is named there by now.")
    return open_live(served, replace(settings, threads="1")), Judge(served.package)


def main() -> None:
    from blastwatch.images import without_warnings

    leave_the_end_to_the_worker()
    without_warnings()
    with socket.socket(fileno=int(sys.argv[1])) as wire:
        # Before this process steps back: it should find a core for its end.
        threading.Thread(target=_end_with_worker, args=(wire,), name="worker", daemon=True).start()
        how = step_back()
        with suppress(BrokenPipeError, ConnectionResetError):  # the worker is no more, and so nobody to answer to
            _serve(wire, Path(sys.argv[2]), sys.argv[3], load(), how)


if __name__ == "__main__":
    main()
