"""How many bytes of bodies a worker holds at a time: what a caller sends is kept from its coming to its answer."""

from collections.abc import Mapping

from serving.problems import Problem

RETRY_AFTER = 5  # seconds; a batch is read and answered in a few


class InFlight:
    """One count of the bytes of all requests of a worker, for its event loop alone.

    Bytes count as they come: whoever announces a large body and sends none of it takes nothing from the others.

    Args:
        limits: by path the bytes of all requests together beyond which one at that path is turned away.
    """

    def __init__(self, limits: Mapping[str, int]) -> None:
        self._limits = limits
        self._held = 0

    def check(self, path: str, size: int) -> None:
        """Raise the `Problem` (429) of a body at this path that has no room for `size` more bytes."""
        limit = self._limits.get(path)
        if limit is not None and self._held + size > limit:
            detail = f"Expected room for the body but those of other calls fill it. Try again in {RETRY_AFTER} s."
            raise Problem("overloaded", detail, headers={"Retry-After": str(RETRY_AFTER)})

    def take(self, path: str, size: int) -> None:
        """Count bytes that came, to be given back when their request ends. Raises as `check`, and counts none then."""
        self.check(path, size)
        self._held += size

    def give_back(self, size: int) -> None:
        self._held -= size
