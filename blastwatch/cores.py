"""How many cores this process may keep busy."""

import os
from pathlib import Path

from blastwatch.control_groups import MEMBERSHIP, ROOT, groups


def cores(root: Path = ROOT, membership: Path = MEMBERSHIP) -> int:
    """The cores that it may run on, and no more than a limit of its container gives it the time of; at least 1.

    A container with a limit of CPU (Kubernetes, `docker run --cpus`) still sees every core of its machine. Threads
    beyond the limit use up its time early in each period, and all of them are then held up until the next.
    """
    # macOS knows no process that may run on some cores alone.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *_limits(root, membership)]))


def _limits(root: Path, membership: Path) -> list[int]:
    """Cores that each limit around this process comes to, rounded: of 1.9, a second thread is worth more than being
    held up for a twentieth of the time."""
    found = []
    for group in groups(root, membership):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            found.append(round(int(quota) / int(period)))  # the word `max` where there is no limit
        except (OSError, ValueError):
            continue
    return found
