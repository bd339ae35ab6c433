"""Children of the shadow that behave as told: `python -m tests.shadow_children MODE SOCKET HANDOVER DIGEST`."""

import json
import os
import socket
import struct
import sys
import threading
import time

from serving.shadow_wire import receive, send

GOOD = {"probability": 0.75, "label": "all", "decision": "all"}
ANNOUNCED = {"negative": -1, "huge": 1 << 62}  # bytes after the header


def answer(mode: str, number: int, data: bytes) -> dict[str, object]:
    if mode == "crash" and number == 2:
        os._exit(7)
    if mode == "sleep":
        time.sleep(60)
    if mode == "spin":
        while True:
            pass
    if mode == "nan":
        return GOOD | {"probability": float("nan")}
    if mode == "strange":
        return {"what": "is this"}
    if mode == "beyond":
        return GOOD | {"probability": 10**400}
    if mode == "slow":
        time.sleep(0.3)
    if mode == "seen":
        return GOOD | {"seen": number == 1}
    if mode == "reject":
        return {"rejected": "truncated"}
    return GOOD | {"probability": (len(data) % 100) / 100}


def hang() -> None:
    """The real child, which never comes to the end of a cell."""
    from serving import shadow_worker

    shadow_worker.read = lambda *_: threading.Event().wait()
    del sys.argv[1]
    shadow_worker.main()


def main() -> None:
    mode, number = sys.argv[1], 0
    if mode == "hang":
        hang()
    with socket.socket(fileno=int(sys.argv[2])) as wire:
        if mode == "refuse":
            send(wire, {"refused": "golden", "message": "wrong on its golden cells"})
            return
        if mode == "damaged":
            send(wire, {"refused": "corrupt", "message": "a file was changed"})
            return
        if mode == "unready":
            send(wire, {"ready": True})
            return
        if mode == "mute":
            time.sleep(60)
        if mode == "garbage":
            wire.sendall(b"\xff\xff\xff\xff")
            return
        send(wire, {"ready": True, "engine": "test", "priority": "none"})
        while (message := receive(wire)) is not None:
            number += 1
            if mode in ANNOUNCED:
                header = json.dumps(GOOD | {"bytes": ANNOUNCED[mode]}).encode()
                wire.sendall(struct.pack(">I", len(header)) + header)
                continue
            send(wire, answer(mode, number, message[1]))


if __name__ == "__main__":
    main()
