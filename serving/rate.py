"""How much one caller may send: a token bucket a caller, shared by all workers of one home.

A bucket holds at most `burst` tokens and gains `rate` tokens a second. A request is let in while its caller's bucket
holds a whole token, and takes one. A batch of n cells takes n - 1 more once its files are counted, and may leave the
bucket in debt, which the caller waits out. What was taken for a call that is then turned away for want of room, before
its body is read, is given back: who waits and sends it again pays once. Over any t seconds the service so reads at most
burst + rate * t cells of one caller, and the rest of the calls that were let in by then.

Kept is one number a bucket, the time at which it would be full again (the theoretical arrival time of the generic cell
rate algorithm, ITU-T I.371, which is the same bucket). The numbers lie in a file that every worker maps, so that
several workers are one limit, exact: each looks and takes under a lock of the file, which a killed process loses. The
file has a fixed size. Where more callers meet in one set than it has places, the one whose bucket is fullest makes
room and begins with a full bucket if it comes again.
"""

import fcntl
import hashlib
import ipaddress
import math
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETS, WAYS = 4096, 8  # 32,768 callers in 512 KiB
_SLOT = struct.Struct("<Qd")  # hash of the caller, 0 for none; seconds since boot at which its bucket is full
_SET_BYTES = WAYS * _SLOT.size
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class RateLimiter:
    """The buckets of one home.

    Args:
        folder: holds the file; of two limiters over one folder each sees what the other took.
        rate: tokens a second, positive. burst: tokens of a full bucket, at least 1.

    Raises:
        OSError: the file cannot be made, or there is no room for all of it.
    """

    def __init__(self, folder: Path, *, rate: float, burst: int) -> None:
        if not rate > 0 or burst < 1:
            raise ValueError(f"Expected a positive rate and a burst of at least 1 but got {rate} and {burst}")
        self._rate, self._burst = rate, burst
        self._file = os.open(_path(folder), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # A page of the map that has no room on a full disk would end the process that writes to it (SIGBUS).
            os.posix_fallocate(self._file, 0, SETS * _SET_BYTES)
            self._slots = mmap.mmap(self._file, SETS * _SET_BYTES)
        except OSError:
            os.close(self._file)
            raise

    def take(self, caller: str, *, at: float | None = None) -> float:
        """Take one token where there is one.

        Args:
            at: seconds since boot; default: now.

        Returns:
            0 where it was taken, else the seconds until there will be one.
        """
        return self._move(caller, 1, at, always=False)

    def charge(self, caller: str, tokens: int, *, at: float | None = None) -> None:
        """Take tokens of a call that was let in, into debt if need be."""
        if tokens > 0:
            self._move(caller, tokens, at, always=True)

    def give_back(self, caller: str, tokens: int) -> None:
        """Put tokens back that were taken for what was not read; a bucket holds no more than its burst."""
        number, start = _place_of(caller)
        with self._locked(start):
            place, full = self._find(number, start)
            if full:  # else it is not known any more, and begins with a full bucket anyway
                _SLOT.pack_into(self._slots, place, number, full - tokens / self._rate)

    def close(self) -> None:
        self._slots.close()
        os.close(self._file)

    def _move(self, caller: str, tokens: int, at: float | None, *, always: bool) -> float:
        number, start = _place_of(caller)
        with self._locked(start):
            now = time.monotonic() if at is None else at  # one clock for every process of the machine
            place, full = self._find(number, start)
            full = max(full, now)
            # A bucket that is full at `full` holds burst - (full - now) * rate now.
            wait = full - now - (self._burst - 1) / self._rate
            if wait > 0 and not always:
                return wait
            _SLOT.pack_into(self._slots, place, number, full + tokens / self._rate)
            return 0.0

    @contextmanager
    def _locked(self, start: int) -> Iterator[None]:
        """Alone with one set."""
        fcntl.lockf(self._file, fcntl.LOCK_EX, _SET_BYTES, start)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN, _SET_BYTES, start)

    def _find(self, number: int, start: int) -> tuple[int, float]:
        """The place of a caller and when its bucket is full; for a new one the place that loses least."""
        best, earliest = start, math.inf
        for place in range(start, start + _SET_BYTES, _SLOT.size):
            held, full = _SLOT.unpack_from(self._slots, place)
            if held == number:
                return place, full
            if full < earliest:
                best, earliest = place, full
        return best, 0.0


def _place_of(caller: str) -> tuple[int, int]:
    """The hash of a caller, and where its set begins."""
    number = int.from_bytes(hashlib.blake2b(caller.encode(), digest_size=8).digest(), "little") or 1
    return number, number % SETS * _SET_BYTES


def address_of(host: str) -> str:
    """The caller that an address stands for: an IPv6 network of 64 bits is one, since each host there has all of it."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv6Address):
        return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))
    return str(found)


def _path(folder: Path) -> Path:
    """The file of this boot of the machine, since its clock counts from there; those of earlier boots go."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rate-{_BOOT.read_text().strip()}"
    for other in folder.glob("rate-*"):
        if other != path:
            other.unlink(missing_ok=True)
    return path
