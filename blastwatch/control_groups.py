"""The control groups (cgroup v2) around this process, which hold the limits of its container."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def groups(root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """Folders of the group that this process is in and of those around it, the innermost first; none where there is no
    cgroup v2."""
    try:
        line = next(text for text in membership.read_text().splitlines() if text.startswith("0::"))
    except (OSError, StopIteration):
        return
    inner = root / line.removeprefix("0::").strip().lstrip("/")
    for group in (inner, *inner.parents):
        if not group.is_relative_to(root):
            return
        yield group
