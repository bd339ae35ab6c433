"""The files by which workers join their metrics, with room on the disk for all that is written to them.

`prometheus_client` maps a file of 64 KiB without a page behind it. On a full disk the first value that needs a new
page would end the worker (SIGBUS), and each one that is started in its place. So room is taken before it is written to;
where there is none a value stays in the process, and goes into the file when it next changes and there is room.
"""

import errno
import logging
import os
from contextlib import suppress
from pathlib import Path

import prometheus_client.values
from prometheus_client.mmap_dict import MmapedDict

FILE_BYTES = 1 << 16  # of a new file; it grows by doubling
_ENTRY_BYTES = 4 + 8 + 16  # beside the key: its length, at most 8 of padding, value and time

_log = logging.getLogger(__name__)


class RoomyFile:
    """One file of values by key, as `prometheus_client` asks for it; it calls under a lock of its own.

    A value that is not in the file reads as 0: the metric that counted it knows it.
    """

    def __init__(self, path: str) -> None:
        self._path, self._told = Path(path), False
        self._opened: MmapedDict | None = None
        self._open()

    def read_value(self, key: str) -> tuple[float, float]:
        """Value and time (seconds since 1970)."""
        opened = self._room_for(key)
        return opened.read_value(key) if opened else (0.0, 0.0)  # type: ignore[no-untyped-call]

    def write_value(self, key: str, value: float, timestamp: float) -> None:
        opened = self._room_for(key)
        if opened:
            opened.write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        if self._opened:
            self._opened.close()  # type: ignore[no-untyped-call]

    def _room_for(self, key: str) -> MmapedDict | None:
        """The file where the key lies in it or fits into it."""
        opened = self._open()
        if opened is None or key in opened._positions:
            return opened
        capacity, wanted = opened._capacity, opened._used + len(key.encode()) + _ENTRY_BYTES
        while capacity < wanted:
            capacity *= 2
        return opened if capacity == opened._capacity or self._takes(opened._f.fileno(), capacity) else None

    def _open(self) -> MmapedDict | None:
        if self._opened is None and self._make():
            self._opened = MmapedDict(str(self._path))  # type: ignore[no-untyped-call]
        return self._opened

    def _make(self) -> bool:
        """Let the file be there with all of its room. Others see it only then: they cannot read an empty one."""
        part = self._path.with_suffix(".part")
        with suppress(FileNotFoundError), self._path.open("r+b") as old:
            return self._takes(old.fileno(), max(FILE_BYTES, self._path.stat().st_size))
        try:
            with part.open("wb") as new:
                made = self._takes(new.fileno(), FILE_BYTES)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            made = self._lacks(error)  # not even a place in the folder
        if made:
            part.replace(self._path)
        else:
            part.unlink(missing_ok=True)
        return made

    def _takes(self, file: int, size: int) -> bool:
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            return self._lacks(error)
        self._told = False
        return True

    def _lacks(self, error: OSError) -> bool:
        if not self._told:
            _log.warning(
                "Metrics stay in this process and out of /metrics: expected room for %s but got: %s. Make room.",
                self._path, error.strerror,
            )  # fmt: skip
            self._told = True
        return False


def take_room() -> None:
    """Let the metrics that are made from now on lie in files with room; nothing changes for a process by itself."""
    vars(prometheus_client.values)["MmapedDict"] = RoomyFile  # it has no setting for it, and looks there for each file
