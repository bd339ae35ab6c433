"""Numbers of cells that were computed once, in files, for whoever asks for the same again.

What a network makes of a cell before its last layer is the same for every recipe and fold that leaves it as it is, and
takes nearly all the time of fitting a last layer. A folder holds one kind of numbers: files of some rows of the pack
each, named by their digest, so that one that is not what was written is noticed and made again.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blastwatch.console import say
from blastwatch.errors import DataError
from blastwatch.state_files import replace_file

Floats = NDArray[np.float32]
PART = 1024  # rows of a file: about what a stopped training loses


class KeptRows:
    """Numbers by row of the pack."""

    def __init__(self, folder: Path) -> None:
        """Read what the folder holds; it need not be there."""
        self.folder = folder
        self._values: list[Floats] = []
        self._places: dict[int, tuple[int, int]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._read(path)

    def of(self, rows: NDArray[np.int64], make: Callable[[NDArray[np.int64]], Floats]) -> Floats:
        """The numbers of some rows, float32 (n, ...), in their order.

        Args:
            make: computes those of rows that are not held, float32 (rows, ...); what it made is kept.

        Raises:
            DataError: where they cannot be written.
        """
        missing = np.array(sorted(set(rows.tolist()) - set(self._places)), dtype=np.int64)
        for start in range(0, len(missing), PART):
            part = missing[start : start + PART]
            values = make(part)
            self._write(part, values)
            self._hold(part, values)
        places = [self._places[row] for row in rows.tolist()]
        return np.stack([self._values[file][place] for file, place in places])

    def _hold(self, rows: NDArray[np.int64], values: Floats) -> None:
        self._places |= {row: (len(self._values), place) for place, row in enumerate(rows.tolist())}
        self._values.append(values)

    def _read(self, path: Path) -> None:
        from safetensors.numpy import load

        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != path.stem:
            say(f"{path} was changed since it was written. It is removed, and its cells are looked at again.")
            path.unlink()
            return
        held = load(content)
        self._hold(held["rows"], held["values"])

    def _write(self, rows: NDArray[np.int64], values: Floats) -> None:
        """In one step: several processes may write the same, and each may be killed."""
        from safetensors.numpy import save

        content = save({"rows": rows, "values": np.ascontiguousarray(values)})
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, content)
        except OSError as error:
            raise DataError(
                f"What the network makes of {len(rows)} cells cannot be kept in {self.folder}: {error}. Make room "
                "there, or name another folder: --out."
            ) from error
