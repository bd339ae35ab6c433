"""The engine's outputs of the images that were asked for last. Off by default: few callers send one cell twice.

They belong to one lane, so to one version and one engine, and are found by the digest of the decoded pixels: the same
cell in another file format is the same cell. What is told, counted and captured of an answer is made anew each time.
"""

from collections import OrderedDict
from collections.abc import Callable

from serving.batcher import Row


class Remembered:
    """Keeps a number of outputs, and forgets the one that was asked for longest ago. Use it from one event loop.

    Args:
        most: outputs that are kept, 2 KB to 17 KB each by the width of the network; 0 keeps none.
        on_lookup: called with `hit` or `miss` for every image, where any are kept.
    """

    def __init__(self, most: int, *, on_lookup: Callable[[str], None] = lambda _outcome: None) -> None:
        self._most = most
        self._on_lookup = on_lookup
        self._rows: OrderedDict[str, Row] = OrderedDict()

    def find(self, pixel_sha256: str) -> Row | None:
        """Logits and embedding of an image; None where they are not known."""
        if not self._most:
            return None
        row = self._rows.get(pixel_sha256)
        if row is not None:
            self._rows.move_to_end(pixel_sha256)
        self._on_lookup("miss" if row is None else "hit")
        return row

    def keep(self, pixel_sha256: str, row: Row) -> None:
        """Remember the outputs of an image."""
        if not self._most:
            return
        # Rows are views of a whole batch, which would stay in memory with any of them.
        logits, embedding = row
        self._rows[pixel_sha256] = (logits.copy(), embedding.copy())
        self._rows.move_to_end(pixel_sha256)
        if len(self._rows) > self._most:
            self._rows.popitem(last=False)
