"""Whether an engine answers: told by its batches that failed in a row, such as all of a GPU that was lost."""

import logging
import time

FAILED = 3  # batches in a row, from where on the fault is the engine's and not the batch's
REST_SECONDS = 30.0
"""Not ready after a failure. Then the engine is tried again: nobody else would learn that it has recovered. Longer than
a probe needs to believe it (15 s in deploy/kubernetes)."""
DEAD_SECONDS = 60.0  # from the first failure to the latest, without a success between

_log = logging.getLogger("blastwatch.service")


class EngineHealth:
    """What the threads of one engine tell of their batches. May be called from any thread."""

    def __init__(self) -> None:
        self._failed = 0
        self._first = self._latest = 0.0  # seconds of the monotonic clock

    def failed(self) -> None:
        """A batch failed."""
        self._latest = time.monotonic()
        if self._failed == 0:
            self._first = self._latest
        self._failed += 1
        if self._failed == FAILED:
            _log.error("The engine failed %s batches in a row: not ready until one is answered.", FAILED)

    def answered(self) -> None:
        """A batch was answered."""
        self._failed = 0

    @property
    def ready(self) -> bool:
        """False for a while after the latest of several failures in a row."""
        return self._failed < FAILED or time.monotonic() - self._latest >= REST_SECONDS

    @property
    def alive(self) -> bool:
        """False once it has failed for so long that only a new process may help, until a batch is answered."""
        return self._failed < FAILED or self._latest - self._first < DEAD_SECONDS
