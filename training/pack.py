"""Every cell decoded and cropped once, into one memory-mapped array that training and evaluation read."""

import errno
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from blastwatch.console import progress
from blastwatch.cores import cores
from blastwatch.digests import file_digest
from blastwatch.errors import DataError, ImageRejected
from blastwatch.images import Pixels, Preprocessing, crop_cell, decode, pixel_digest
from blastwatch.manifest import Cells, read_json, write_json
from training.parameters import ImageParameters
from training.steps import held

CROPS, INDEX, FACTS = "crops.npy", "index.parquet", "pack.json"
ASIDE = ".pack-"  # begins the name of the folder that a new one is written in
LOCK = ".pack.lock"


@dataclass(frozen=True)
class Packed:
    """crops: uint8, shape (n, size, size, 3), read-only memory map; paths: of the manifest, in the order of crops."""

    crops: Pixels
    paths: tuple[str, ...]
    preprocessing: Preprocessing
    digest: str

    def rows_of(self, paths: Sequence[str]) -> NDArray[np.int64]:
        """Row of each path.

        Raises:
            DataError: naming a path that was not packed.
        """
        known = {path: row for row, path in enumerate(self.paths)}
        missing = [path for path in paths if path not in known]
        if missing:
            raise DataError(f"{len(missing)} cells are not in the pack, the first {missing[0]}. Pack them anew.")
        return np.array([known[path] for path in paths], dtype=np.int64)


def check_image(packed: Packed, wanted: ImageParameters, folder: Path) -> None:
    """Raise `DataError` where cells were packed with another crop or size than the parameters say."""
    found = packed.preprocessing
    if (found.crop, found.size) != (wanted.crop, wanted.size):
        raise DataError(
            f"Expected cells packed with image.crop={wanted.crop} and image.size={wanted.size} in {folder} but they "
            f"have {found.crop} and {found.size}. Run blastwatch data pack anew."
        )


def write_pack(cells: Cells, preprocessing: Preprocessing, out: Path) -> dict[str, Any]:
    """Decode and crop every cell of the manifest; both cores, memory does not grow with the number of cells.

    A pack that lies there stays as it is for those who have it open, and whole until this one is.

    Raises:
        DataError: where an image is no longer what the import read, or the disk has no room for the crops.
        UsageError: another process packs into the same folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = out / LOCK
    with held(lock, f"Another process packs cells into {out}. Wait for its end, or name another folder: --out."):
        try:
            for left in out.glob(f"{ASIDE}*"):  # by one that was killed
                shutil.rmtree(left)
            with TemporaryDirectory(dir=out, prefix=ASIDE) as aside:
                facts = _fill(Path(aside), cells, preprocessing)
                for name in (CROPS, INDEX, FACTS):  # the facts last: until they are there, their digest tells
                    (Path(aside) / name).replace(out / name)
        finally:
            lock.unlink(missing_ok=True)  # while it is held, see `training.checkpoint.alone_with`
    return facts


def _fill(folder: Path, cells: Cells, preprocessing: Preprocessing) -> dict[str, Any]:
    rows = cells.rows.sort_values("path")
    size = preprocessing.size
    shape = (len(rows), size, size, 3)
    crops = _with_room(folder / CROPS, shape)

    def read(task: tuple[int, str, str]) -> None:
        row, path, expected = task
        try:
            image = decode((cells.root / path).read_bytes())
        except OSError as error:
            raise DataError(f"{path} of the manifest cannot be read under {cells.root}: {error}.") from error
        except ImageRejected as error:
            raise DataError(f"{path} is no usable image any more: {error} Import the source anew.") from error
        if pixel_digest(image) != expected:
            raise DataError(f"{path} has other pixels than when it was imported. Import the source anew.")
        crops[row] = crop_cell(image, preprocessing)

    tasks = list(zip(range(len(rows)), rows["path"], rows["pixel_sha256"], strict=True))
    with ThreadPoolExecutor(cores()) as pool:
        for _ in progress(pool.map(read, tasks), total=len(tasks), what="Packing"):
            pass
    crops.flush()
    pd.DataFrame({"path": rows["path"]}).to_parquet(folder / INDEX, index=False)
    facts = {
        "digest": file_digest(folder / CROPS),
        "data_digest": cells.digest,
        "crop": preprocessing.crop,
        "size": size,
        "cells": len(rows),
    }
    write_json(folder / FACTS, facts)
    return facts


def _with_room(path: Path, shape: tuple[int, ...]) -> "np.memmap[Any, np.dtype[np.uint8]]":
    """A new file of zeros, mapped, of which all blocks are taken. By itself such a file takes them as its pages are
    written, and a disk that is full by then ends the process with a bus error and no word."""
    free = shutil.disk_usage(path.parent).free
    try:
        crops = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"Expected {math.prod(shape) / 1e9:.3f} GB free in {path.parent.parent} for the packed cells but got "
            f"{free / 1e9:.3f} GB ({error.strerror}). Free some, or name another folder."
        ) from error
    return crops


def _paths(folder: Path, cells: Cells, made_by: str) -> tuple[str, ...]:
    """The paths in the order of the crops. No digest covers the index, but only the order of `_fill` is right."""
    path, expected = folder / INDEX, tuple(cells.rows["path"].sort_values())
    try:
        found = tuple(pd.read_parquet(path)["path"])
    except (OSError, ValueError, KeyError) as error:  # Arrow says with a ValueError that it is no Parquet
        raise DataError(f"{path} is missing or cannot be read ({error}). Make it anew: {made_by}") from error
    if found != expected:
        raise DataError(
            f"Expected the {len(expected)} cells of the manifest in {path}, sorted by path, but got {len(found)}, "
            f"others or in another order: it was changed. Make it anew: {made_by}"
        )
    return expected


def _made_by(folder: Path, cells: Cells) -> str:
    return f"blastwatch data pack {cells.folder} --out {folder}"


def read_pack_facts(folder: Path, cells: Cells) -> dict[str, Any]:
    """What a pack says of itself; raises `DataError` where it is missing or of another manifest."""
    made_by = _made_by(folder, cells)
    facts = read_json(folder / FACTS, made_by=made_by)
    if facts["data_digest"] != cells.digest:
        raise DataError(f"The pack in {folder} was made of another manifest. Make it anew: {made_by}")
    return facts


def open_pack(folder: Path, cells: Cells) -> Packed:
    """Open a pack and check that it is whole and belongs to the manifest.

    Raises:
        DataError: saying what does not fit.
    """
    made_by = _made_by(folder, cells)
    facts = read_pack_facts(folder, cells)
    preprocessing = Preprocessing(crop=facts["crop"], size=facts["size"])
    if not (folder / CROPS).is_file() or file_digest(folder / CROPS) != facts["digest"]:
        raise DataError(f"{folder / CROPS} is missing or was changed. Make it anew: {made_by}")
    crops = np.load(folder / CROPS, mmap_mode="r")
    expected = (facts["cells"], facts["size"], facts["size"], 3)
    if crops.shape != expected:
        raise DataError(f"Expected {folder / CROPS} of shape {expected} but got {crops.shape}. Make it anew: {made_by}")
    paths = _paths(folder, cells, made_by)
    return Packed(crops=crops, paths=paths, preprocessing=preprocessing, digest=facts["digest"])
