"""How much memory a version needs, how much there is, what stays in it, and giving it back."""

import ctypes
import gc
import os
from pathlib import Path

from blastwatch.control_groups import MEMBERSHIP, ROOT, groups
from blastwatch.errors import TooLarge
from blastwatch.package import ONNX, WEIGHTS, Package
from blastwatch.settings import Settings

MIB = 1 << 20
# What loading a version and its first full batch added to a process (OpenVINO, float32), measured: ResNet-18 at 32 px
# 94 MiB, at 224 px 266, ResNet-50 at 224 px 414, of graphs of 42, 42 and 89 MiB. The file, its constants and their
# reordered copies are there at once; the rest are the activations of a batch, counted in sizes of its input.
GRAPH_FACTOR, BATCH_FACTOR = 3.0, 8.0

RETRY_SECONDS = 60.0
MAY_MEND = ("too-large", "not-opened")
"""Reasons of a refusal that is tried once more after `RETRY_SECONDS`: memory that was short, or whatever stood in the
way, may be otherwise then; nothing else that was refused mends itself."""


def needed(package: Package, max_batch_size: int) -> int:
    """Bytes that loading a version may take at its peak, estimated from its float32 graph and the largest batch."""
    largest = max((package.folder / name).stat().st_size for name in (ONNX, WEIGHTS))
    return int(GRAPH_FACTOR * largest) + of_a_batch(package, max_batch_size)


def of_a_batch(package: Package, max_batch_size: int) -> int:
    """Bytes that the largest batch takes, which an engine at rest gave back and takes again."""
    return int(BATCH_FACTOR * max_batch_size * 3 * package.info.preprocessing.size**2 * 4)  # float32, three colours


def available(settings: Settings) -> int:
    """Bytes that this process may still take."""
    import psutil

    if settings.memory_limit:
        return max(0, int(settings.memory_limit * MIB) - psutil.Process().memory_info().rss)
    return min([psutil.virtual_memory().available, *left_in_container()])


def left_in_container(root: Path = ROOT, membership: Path = MEMBERSHIP) -> list[int]:
    """Bytes left below each memory limit of this process and of the groups around it."""
    found = []
    for group in groups(root, membership):
        try:
            limit = int((group / "memory.max").read_text())  # the word `max` where there is no limit
            used = int((group / "memory.current").read_text())
            kept = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        found.append(max(0, limit - used + int(kept.get("inactive_file", 0))))  # files read once are given back first
    return found


def check_memory(package: Package, settings: Settings, beside: Package | None = None) -> None:
    """Refuse what cannot be held, before the kernel ends this process for trying.

    Args:
        beside: of the version that serves meanwhile, whose engine may be at rest just now.

    Raises:
        TooLarge: saying how much is needed and how much there is.
    """
    need, left = needed(package, settings.max_batch_size), available(settings)
    if beside is not None:
        need += of_a_batch(beside, settings.max_batch_size)
    if need > left:
        raise TooLarge(
            f"Loading package {package.digest[:12]} takes up to {need // MIB} MiB but {left // MIB} MiB are left for "
            "this process. Give it more memory (BLASTWATCH_MEMORY_LIMIT, or the container's limit), or fewer workers."
        )


def room_for_all(package: Package, settings: Settings) -> bool:
    """Whether every worker may load the version at the same time. A limit of a process is nobody else's."""
    workers = 1 if settings.memory_limit else settings.workers
    return workers * needed(package, settings.max_batch_size) <= available(settings)


def set_apart() -> None:
    """Let Python's garbage collector pass over what is there now, most of which libraries made while they loaded and
    which lives to the end. To look through it takes a tenth of a second, in which nobody is answered."""
    gc.collect()
    gc.freeze()


def give_back() -> None:
    """Free what a dropped version leaves, and return it to the system."""
    if gc.get_freeze_count():
        gc.unfreeze()  # that version was set apart with all the rest
        set_apart()
    trim()


def trim() -> None:
    """Return to the system what was freed, which glibc keeps from it."""
    if os.name == "posix":
        of_glibc = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if of_glibc is not None:
            of_glibc(0)
