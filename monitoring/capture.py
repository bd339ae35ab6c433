"""Predictions on their way to the database, without making any caller wait.

    submit --> bounded queue --> one writer thread --> database, some hundred rows a transaction
                                        |                 ^
                                        +--> disk --------+  while the database is away (`monitoring.waiting`)

A full queue drops and counts. A database that is away for a while is tried again until it is back; what waits
meanwhile lies on disk, where a kill does not reach it. Where the disk refuses it stays in the queue.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from monitoring.database import StoreError, StoreUnavailable
from monitoring.store import PredictionRecord, open_store

GATHER_SECONDS = 0.2  # how long the first prediction of a batch waits for more
BATCH_ROWS = 500
_CLOSING_SECONDS = 1.0  # to close the store, beyond the time that is left for writing
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between attempts while the database is away

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CaptureCounts:
    """stored: rows written; dropped: rows lost for good; failed: attempts to write that failed; waiting: rows in memory
    now."""

    stored: int
    dropped: int
    failed: int
    waiting: int


def nothing(_: int) -> None:
    """For who does not count."""


Record = TypeVar("Record")
Taken = TypeVar("Taken", contravariant=True)


class Rows(Protocol[Taken]):
    """A store that takes records of one kind, all or none at a time, and the same again without harm."""

    def add(self, records: Sequence[Taken], /) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class HandedOver:
    """found: rows that waited on disk, of them stored: in the database now; refused: never taken by it, and gone.

    Those that another process handed over at the same moment are neither.
    """

    found: int
    stored: int
    refused: int


class Aside(Protocol[Record]):
    """Where records lie while their store is away, see `monitoring.waiting.WaitingPredictions`."""

    def left(self) -> bool: ...

    def keep(self, records: Sequence[Record], /) -> bool: ...

    def hand_over(self, rows: Rows[Record], /) -> HandedOver: ...

    def count(self) -> int: ...

    def close(self) -> None: ...


class QueuedWriter(Generic[Record]):
    """Stores records from a thread of its own; close it to flush what waits.

    Args:
        open_rows: opens the store; called by the thread, so a database that is away stops no start.
        queue_size: records that may wait. batch_rows: how many are stored in one transaction at most.
        size_of, queue_bytes: what a record takes, and how much of it may wait; None: only their number counts.
        aside: where records lie while the store is away; None: they stay in the queue.
        on_stored, on_dropped, on_failed, on_aside: called with the number of rows (attempts for `on_failed`; for
            `on_aside` those that lie there now), for metrics; they run in the thread that noticed and must not block
            or raise.
    """

    def __init__(
        self,
        open_rows: Callable[[], Rows[Record]],
        *,
        queue_size: int = 10_000,
        batch_rows: int = BATCH_ROWS,
        size_of: Callable[[Record], int] | None = None,
        queue_bytes: int = 0,
        aside: Aside[Record] | None = None,
        on_stored: Callable[[int], None] = nothing,
        on_dropped: Callable[[int], None] = nothing,
        on_failed: Callable[[int], None] = nothing,
        on_aside: Callable[[int], None] = nothing,
    ) -> None:
        if queue_size < 1:
            raise ValueError(f"Expected `queue_size` to be at least 1 but got {queue_size}")
        self._open = open_rows
        self._size_of, self._most_bytes, self._bytes = size_of, queue_bytes, 0
        self._queue: queue.Queue[Record] = queue.Queue(maxsize=queue_size)
        self._on_stored, self._on_dropped, self._on_failed = on_stored, on_dropped, on_failed
        self._aside, self._on_aside = aside, on_aside
        self._lies_aside = aside is not None and aside.left()
        self._next_try, self._pause = 0.0, FIRST_PAUSE
        self._lock = threading.Lock()
        self._stored = self._dropped = self._failed = self._in_hand = 0
        self._batch_rows, self._batch, self._left = batch_rows, list[Record](), False
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._thread.start()

    def submit(self, record: Record) -> bool:
        """Hand over one record; False where it was dropped because the queue is full or closed. Never blocks."""
        if not self._closing.is_set() and self._take_bytes(record):
            try:
                self._queue.put_nowait(record)
                return True
            except queue.Full:
                self._give_bytes([record])
        self._count_dropped(1)
        return False

    def counts(self) -> CaptureCounts:
        """The counters now."""
        with self._lock:
            return CaptureCounts(
                stored=self._stored,
                dropped=self._dropped,
                failed=self._failed,
                waiting=self._queue.qsize() + self._in_hand,
            )

    def close(self, *, timeout: float = 10.0) -> CaptureCounts:
        """Take no more, write what waits, and stop; what cannot be written within `timeout` seconds is dropped, but
        for what lies on disk: the next start finds it."""
        self._deadline = time.monotonic() + timeout
        self._closing.set()
        self._thread.join(timeout + 2 * GATHER_SECONDS + _CLOSING_SECONDS)
        if self._thread.is_alive():
            self._leave()
        return self.counts()

    def __enter__(self) -> "QueuedWriter[Record]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _leave(self) -> None:
        """Put to the disk what the thread did not get to, else count it as dropped: its store answers nothing. If that
        takes what is in hand all the same, it has it twice, which does no harm."""
        with self._lock:
            self._left = True
            left = self._batch[len(self._batch) - self._in_hand :]
            self._in_hand = 0
        with suppress(queue.Empty):
            while True:
                left.append(self._queue.get_nowait())
        if left and (self._aside is None or not self._aside.keep(left)):
            _log.error("%d rows are lost: their database did not answer until the end", len(left))
            self._count_dropped(len(left))

    def _take_bytes(self, record: Record) -> bool:
        if self._size_of is None:
            return True
        size = self._size_of(record)
        with self._lock:
            fits = self._bytes + size <= self._most_bytes
            self._bytes += size if fits else 0
        return fits

    def _give_bytes(self, records: list[Record]) -> None:
        if self._size_of is not None:
            size = sum(map(self._size_of, records))
            with self._lock:
                self._bytes -= size

    # -- the writer thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        store: Rows[Record] | None = None
        with suppress(Exception):  # told with the first batch, if it still cannot be opened then
            store = self._open()  # now, since opening takes long enough for a kill to come between
        try:
            while True:
                batch = self._gather()
                try:
                    if batch:
                        store = self._write(store, batch)
                    if self._aside is not None and self._due(last=not batch):
                        store = self._hand_over(store, self._aside)
                except Exception as error:  # noqa: BLE001  (said and counted; those who come next are stored again)
                    self._go_on(error, batch)
                # Not by `batch` alone: more may have come while what waited was handed over.
                if not batch and self._closing.is_set() and self._queue.empty():
                    return
        finally:
            for opened in (store, self._aside):
                if opened is not None:
                    opened.close()

    def _go_on(self, error: Exception, batch: list[Record]) -> None:
        """After an error that nobody thought of: say it, and count what is left of the batch as lost."""
        _log.error("Rows are lost by an error that was not expected", exc_info=error)
        self._count_failed(error)
        self._put_off()
        with self._lock:
            left = batch[len(batch) - self._in_hand :]
        if left:
            self._settle(left, stored=False)

    def _due(self, *, last: bool) -> bool:
        """Whether to try to hand over what lies on disk; once more before the end."""
        return self._lies_aside and (time.monotonic() >= self._next_try or (last and self._closing.is_set()))

    def _gather(self) -> list[Record]:
        """The next batch; empty once closed and empty, or where there is something else to do."""
        while True:
            closing = self._closing.is_set()
            try:
                batch = [self._queue.get(timeout=0.001 if closing else GATHER_SECONDS / 4)]
                break
            except queue.Empty:
                if closing or self._due(last=False):
                    return []
        with self._lock:
            self._batch, self._in_hand = batch, 1
        # Others come meanwhile. Woken for each of them, this thread took as much of the cores as all its writing.
        until = time.monotonic() + GATHER_SECONDS
        while self._queue.qsize() < self._batch_rows - 1 and time.monotonic() < until and not self._closing.is_set():
            self._closing.wait(GATHER_SECONDS / 8)
        with suppress(queue.Empty):
            while len(batch) < self._batch_rows:
                batch.append(self._queue.get_nowait())
        with self._lock:
            self._batch, self._in_hand = batch, len(batch)
        return batch

    def _write(self, store: Rows[Record] | None, batch: list[Record]) -> Rows[Record] | None:
        """Write a batch; while the database is away to the disk, or again and again where that is not to be had.

        Returns:
            The store to go on with.
        """
        if self._lies_aside and self._put_aside(batch):  # and does not wait for a database that is known to be away
            return store
        pause = FIRST_PAUSE
        while True:
            try:
                store = store or self._open()
                store.add(batch)
            except StoreUnavailable as error:
                self._count_failed(error)
                if self._put_aside(batch):
                    return store
                if time.monotonic() + pause > self._deadline:
                    self._settle(batch, stored=False)
                    return store
                self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            except (StoreError, ValueError, KeyError) as error:
                self._count_failed(error)
                if store is None and self._put_aside(batch):  # what cannot be opened has seen none of them
                    return store
                if store is None or len(batch) == 1:
                    self._settle(batch, stored=False)
                    return store
                for record in batch:  # one bad row must not take the good ones with it
                    store = self._write(store, [record])
                return store
            else:
                self._settle(batch, stored=True)
                return store

    def _put_aside(self, batch: list[Record]) -> bool:
        if self._aside is None or not self._aside.keep(batch):
            return False
        self._give_bytes(batch)
        with self._lock:
            self._in_hand -= 0 if self._left else len(batch)
        if not self._lies_aside:
            self._lies_aside = True
            self._put_off()
        return True

    def _hand_over(self, store: Rows[Record] | None, aside: Aside[Record]) -> Rows[Record] | None:
        """Give the store what lies on disk, for as long as a batch gathers; returns the store to go on with."""
        until, found = time.monotonic() + GATHER_SECONDS, True
        try:
            store = store or self._open()
            while found and time.monotonic() < until:
                given = aside.hand_over(store)
                found = given.found > 0
                self._tell(given)
            self._pause = FIRST_PAUSE
            self._lies_aside = found
            self._on_aside(aside.count() if found else 0)
        except StoreError as error:
            self._count_failed(error)
            self._put_off()
            with suppress(StoreError):
                self._on_aside(aside.count())
        return store

    def _put_off(self) -> None:
        self._next_try = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _tell(self, given: HandedOver) -> None:
        with self._lock:
            self._stored += given.stored
        self._on_stored(given.stored)
        if given.refused:
            self._count_dropped(given.refused)

    def _wait(self, seconds: float) -> None:
        """Pause between attempts; cut short when closing begins, so that the flush starts at once."""
        if self._closing.is_set():
            time.sleep(seconds)
        else:
            self._closing.wait(seconds)

    def _settle(self, batch: list[Record], *, stored: bool) -> None:
        self._give_bytes(batch)
        with self._lock:
            if self._left:  # whoever closed has counted them
                return
            self._in_hand -= len(batch)
            if stored:
                self._stored += len(batch)
        if stored:
            self._on_stored(len(batch))
        else:
            self._count_dropped(len(batch))

    def _count_dropped(self, rows: int) -> None:
        with self._lock:
            self._dropped += rows
        self._on_dropped(rows)

    def _count_failed(self, error: Exception) -> None:
        with self._lock:
            self._failed += 1
        _log.warning("A batch of rows could not be stored: %s", error)
        self._on_failed(1)


class Capture(QueuedWriter[PredictionRecord]):
    """Stores predictions.

    Args:
        store_url: for `monitoring.store.open_store`.
        queue_size, aside, on_stored, on_dropped, on_failed, on_aside: as in `QueuedWriter`.
    """

    def __init__(
        self,
        store_url: str,
        *,
        queue_size: int = 10_000,
        aside: Aside[PredictionRecord] | None = None,
        on_stored: Callable[[int], None] = nothing,
        on_dropped: Callable[[int], None] = nothing,
        on_failed: Callable[[int], None] = nothing,
        on_aside: Callable[[int], None] = nothing,
    ) -> None:
        super().__init__(
            lambda: open_store(store_url),
            queue_size=queue_size,
            aside=aside,
            on_stored=on_stored,
            on_dropped=on_dropped,
            on_failed=on_failed,
            on_aside=on_aside,
        )
