"""Files that hold a secret: readable by their owner only, there whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def create_once(path: Path, content: bytes) -> None:
    """Write a file where there is none yet. Of several that do so at once, the first one's stays.

    Raises:
        OSError: it cannot be written.
    """
    with _written_beside(path, content) as written, contextlib.suppress(FileExistsError):
        os.link(written, path)


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file in one step, in place of the one that may be there.

    Args:
        mode: for what is no secret.

    Raises:
        OSError: it cannot be written.
    """
    with _written_beside(path, content) as written:
        written.chmod(mode)
        written.replace(path)


@contextlib.contextmanager
def _written_beside(path: Path, content: bytes) -> Iterator[Path]:
    """The content in a file of another name in the same folder, on the disk; gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)  # made with mode 0600
    written = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield written
    finally:
        written.unlink(missing_ok=True)
