"""When nobody needs to ask: a registry in an SQLite file of this machine says nothing new while its files stand still.

To ask it takes MLflow, which holds 130 MiB. So the follower ends where nothing has moved for a while, and leaves what
it saw; the worker that holds its lock compares a few times a second, and starts it again where something moves. The
trusted keys and the policy are among these files: with others the same registry gives another answer.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from blastwatch.settings import Settings
from blastwatch.signing import ROLES, open_trusted
from blastwatch.state_files import write_state
from serving.live_folder import LiveFolder, mark

RESTS_AFTER = 30.0  # seconds in which nothing moved
SQLITE = "sqlite:///"
BESIDE = ("", "-wal", "-journal")  # the files of a database: its own, and those that a commit is written to first

Seen = dict[str, list[int] | None]
"""By file its `Mark`, None where it is missing, as JSON has them. Of keys and policy the time is that of any change: a
key that may be read no more counts no more."""


class Rest:
    """What stands still while nobody needs to ask, and where that is written down.

    Args:
        aliases: that are asked for; what others left is no answer for these.
    """

    def __init__(self, settings: Settings, folder: LiveFolder, aliases: Sequence[str]) -> None:
        self._settings, self._folder, self._aliases = settings, folder, list(aliases)

    def seen(self) -> Seen | None:
        """The files as they are now; None where the registry is none of files on this machine, and must be asked."""
        uri = self._settings.tracking_uri
        if not uri.startswith(SQLITE):
            return None
        database = uri.removeprefix(SQLITE).partition("?")[0]
        marks = {str(path): _marked(path) for path in [*(Path(database + end) for end in BESIDE), self._folder.nudge]}
        return marks | {str(path): _any_change(path) for path in self._trusted()} if marks[database] else None

    def _trusted(self) -> list[Path]:
        """Folders and files of the trusted keys, and of the policy where one is set."""
        keys = open_trusted(self._settings).folder
        roles = [keys / role for role in ROLES]
        files = [path for role in roles for path in _pems(role)]
        return [keys, *roles, *files, *([self._settings.policy] if self._settings.policy else [])]

    def begin(self, seen: Seen) -> None:
        """Write down that what these files say was looked at, and that nothing of it is left to do."""
        write_state(self._folder.rest, {"asked": self._asked(), "seen": seen})

    def end(self) -> None:
        """Forget it: somebody asks again, or must."""
        self._folder.rest.unlink(missing_ok=True)

    def holds(self) -> bool:
        """Whether somebody asked the same, and nothing moved since."""
        seen = self.seen()
        try:
            written = json.loads(self._folder.rest.read_text())
        except (OSError, ValueError):
            return False
        return seen is not None and written == {"asked": self._asked(), "seen": seen}

    def _asked(self) -> list[str]:
        return [self._settings.tracking_uri, self._settings.model_name, *self._aliases]


def _pems(role: Path) -> list[Path]:
    try:
        return sorted(role.glob("*.pem"))
    except OSError:  # nobody may look into it; its own mark, or that it has none, says that it is another
        return []


def _marked(path: Path) -> list[int] | None:
    found = mark(path)
    return None if found is None else list(found)


def _any_change(path: Path) -> list[int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_ino, found.st_ctime_ns, found.st_size]
