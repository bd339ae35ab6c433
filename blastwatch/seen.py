"""Which images a version has seen: those of the patients whom it learned from, known by their pixels and not by names.

A name is spelled otherwise in another import, and an image that is sent to the service has none. The digest of its
pixels is the same wherever it comes from. It tells nothing of another image of the same cell: a photograph that was
taken again, cut or compressed anew has other pixels.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blastwatch.errors import PackageError
from blastwatch.package import SEEN, SINCE, Package
from blastwatch.package_files import read_tensors
from blastwatch.state_files import write_whole

if TYPE_CHECKING:
    import pandas as pd

SEEN_SIDES = ("train", "validation", "calibration")
"""All but the test side: what the version answers to test patients it would answer to anybody."""

BYTES = 32  # of SHA-256
Digests = NDArray[np.bytes_]
"""Shape (n,), 32 bytes each."""
_SHA256 = re.compile(f"[0-9a-f]{{{2 * BYTES}}}")


@dataclass(frozen=True)
class SeenImages:
    """Digests of pixels (`blastwatch.images.pixel_digest`), ascending."""

    digests: Digests

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, pixel_sha256: str) -> bool:
        return bool(self.among([pixel_sha256])[0])

    def among(self, pixel_sha256: Iterable[str]) -> NDArray[np.bool_]:
        """Which of these digests, n of them in hex, are known here, shape (n,).

        Raises:
            PackageError: where one is none.
        """
        asked = _digests(pixel_sha256)
        if not len(self):
            return np.zeros(len(asked), dtype=bool)
        place = np.searchsorted(self.digests, asked).clip(max=len(self) - 1)
        return np.asarray(self.digests[place] == asked)


def write_seen(folder: Path, rows: "pd.DataFrame") -> None:
    """Write what a package that is being made has seen.

    Args:
        rows: of the split, with `side` and `pixel_sha256`.
    """
    from safetensors.numpy import save

    sides = {side: _digests(rows.loc[rows["side"] == side, "pixel_sha256"]) for side in SEEN_SIDES}
    tensors = {side: np.unique(found).view(np.uint8).reshape(-1, BYTES) for side, found in sides.items()}
    write_whole(folder / SEEN, save(tensors))


def read_seen(package: Package, *sides: str) -> SeenImages | None:
    """What a version has seen; None for a package of a format before 7, which does not say.

    Args:
        sides: of `SEEN_SIDES`; all of them where none is named.

    Raises:
        PackageError: where the file cannot be read.
    """
    if package.info.format < SINCE[SEEN]:
        return None
    parts = read_tensors(package.folder, SEEN, sides or SEEN_SIDES)
    wrong = [part for part in parts if part.dtype != np.uint8 or part.ndim != 2 or part.shape[1] != BYTES]
    if wrong:
        raise PackageError(
            f"Expected uint8 of shape (n, {BYTES}) in {SEEN} but got {wrong[0].dtype} of shape {wrong[0].shape}. "
            "Package the model again."
        )
    whole = np.ascontiguousarray(np.concatenate(parts))
    return SeenImages(np.unique(whole.view(f"S{BYTES}").ravel()))


def _digests(pixel_sha256: Iterable[str]) -> Digests:
    asked = list(pixel_sha256)
    wrong = [digest for digest in asked if not (isinstance(digest, str) and _SHA256.fullmatch(digest))]
    if wrong:
        raise PackageError(
            f"Expected digests of pixels, {2 * BYTES} hex digits each, but got {wrong[0]!r:.80}. "
            "Package the model again."
        )
    return np.array([bytes.fromhex(digest) for digest in asked], dtype=f"S{BYTES}")
