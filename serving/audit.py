"""The audit log: one JSON line for each request under /v1/, also of those that were kept out.

    {"time", "request_id", "key", "address", "method", "route", "status", "cells", "model_version", "ms"}

`key` is the name of the API key, null where none was good; `model_version` null where no cell was read; `route` is one
that exists, or `other`. Nothing else goes in: no pixel, no file name, no patient, no label, never a key.

A line is one write to a file opened for appending, so lines of several workers do not mix, and what was written stays
when a worker is killed. It is written when the answer was handed to the connection, before that takes another request.
"""

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from starlette.types import Scope

OFF, STANDARD_OUTPUT = "off", "-"
LOOK_SECONDS = 0.5  # between two looks whether the file was moved away: one before each line cost a twelfth of the loop
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class AuditLog:
    """Appends to one file, and goes on in a new one where another program moved it away to rotate it.

    Args:
        target: path of the file, `-` for standard output, `off` for nothing.
        failed: called with the error of each line that could not be written; the request is answered all the same.
    """

    def __init__(self, target: str, *, failed: Callable[[OSError], object] = lambda _error: None) -> None:
        self._path = None if target in (OFF, STANDARD_OUTPUT) else Path(target)
        self._standard = target == STANDARD_OUTPUT
        self._failed = failed
        self._file: int | None = None
        self._looked = 0.0
        self._torn = False  # whether the file ends in half a line of ours

    def write(self, scope: Scope, *, route: str, status: int, seconds: float) -> None:
        """Add the line of one request that was answered."""
        if self._path is None and not self._standard:
            return
        line = json.dumps(entry(scope, route=route, status=status, seconds=seconds)).encode() + b"\n"
        try:
            file = self._opened()
            line = b"\n" + line if self._torn else line
            written = os.write(file, line)
            if written:
                self._torn = line[written - 1 : written] != b"\n"
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes of a line were written")
        except OSError as error:
            self._failed(error)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file, self._torn = None, False

    def _opened(self) -> int:
        if self._path is None:
            return 1
        now = time.monotonic()
        if self._file is not None and now - self._looked >= LOOK_SECONDS:
            self._looked = now
            if not _is_at(self._file, self._path):
                self.close()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            self._looked = now
        return self._file


def entry(scope: Scope, *, route: str, status: int, seconds: float) -> dict[str, object]:
    """What the log keeps of one request."""
    state, client = scope.get("state", {}), scope.get("client")
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "request_id": state.get("request_id"),
        "key": state.get("key"),
        "address": client[0] if client else None,
        "method": scope["method"] if scope["method"] in METHODS else "other",
        "route": route,
        "status": status,
        "cells": state.get("cells", 0),
        "model_version": state.get("model_version"),
        "ms": round(seconds * 1000, 1),
    }


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one that has the path now."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
