"""Children of the shadow that behave as told: `python -m tests.shadow_children MODE SOCKET HANDOVER DIGEST`."""

import os
import socket
import sys
import time

from serving.shadow_wire import receive, send

GOOD = {"probability": 0.75, "label": "all", "decision": "all"}


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
    if mode == "slow":
        time.sleep(0.3)
    if mode == "reject":
        return {"rejected": "truncated"}
    return GOOD | {"probability": (len(data) % 100) / 100}


def main() -> None:
    mode, number = sys.argv[1], 0
    with socket.socket(fileno=int(sys.argv[2])) as wire:
        if mode == "refuse":
            send(wire, {"refused": "golden", "message": "wrong on its golden cells"})
            return
        if mode == "mute":
            time.sleep(60)
        if mode == "garbage":
            wire.sendall(b"\xff\xff\xff\xff")
            return
        send(wire, {"ready": True, "engine": "test", "priority": "none"})
        while (message := receive(wire)) is not None:
            number += 1
            send(wire, answer(mode, number, message[1]))


if __name__ == "__main__":
    main()
