"""Which files below a folder are images: found in one way by import and scoring, so that neither leaves out what the
other reads. Nothing is opened here."""

import errno
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

IMAGE_SUFFIXES = (".bmp", ".dib", ".png", ".webp", ".tif", ".tiff", ".jpg", ".jpeg", ".jpe", ".jfif")
NO_IMAGES = (".csv", ".tsv", ".json", ".yaml", ".yml", ".xml", ".html", ".txt", ".md", ".log", ".pdf", ".py", ".ini",
             ".xlsx", ".xls", ".ods", ".parquet", ".db", ".dvc")  # fmt: skip
"""What lies beside images and is none: it is passed over without a word."""
KNOWN_KIND = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}\s*", re.ASCII)  # .0001 would be one kind for every file
NO_KIND = "files of no known kind"
MAC_ARCHIVE = "__MACOSX"

Twice = Callable[[PurePosixPath, PurePosixPath], None]
"""Told of a folder or image, and of the path by which it is read too; both relative to the root."""


def files_below(
    root: Path,
    suffixes: tuple[str, ...],
    *,
    aside: Callable[[str], None] | None = None,
    twice: Twice | None = None,
    dead: bool = False,
) -> Iterator[str]:
    """Paths of all files of these suffixes below a folder, relative to it, with forward slashes; the names of each
    folder are sorted. Hidden files and folders are passed over, and each folder is entered once, by whatever link.

    A link to a folder outside is followed; one to a folder inside is not, which is walked by its own name. A link to a
    file is given, also one that leads nowhere: who reads it finds out. One that leads nowhere by a name that is no
    file's is taken for a link to a folder, which stops the walk: what is not mounted would be left out unseen.

    Args:
        suffixes: in lower case.
        aside: told why, for each thing that was passed over and may have been meant.
        twice: told of each folder that is not entered since it is read by another name, and, once all were given, of
            each link to an image that is given by its own name or another link too.
        dead: give that link to nothing as well, for who names each file that cannot be read and goes on.

    Raises:
        OSError: a folder cannot be listed, or a link to one leads nowhere; `filename` is which.
    """
    walk = _Walk(root, aside or _unheard, twice)
    for folder, names, files in os.walk(root, followlinks=True, onerror=_unlisted):
        below = PurePosixPath(Path(folder).relative_to(root).as_posix())
        names[:] = [name for name in sorted(names) if walk.enters(below / name)]
        for name in sorted(files):
            wanted = name.lower().endswith(suffixes)
            if wanted and not hidden(name):
                walk.remember(below / name)
                yield (below / name).as_posix()
            elif why := _passed_over(name, wanted):
                if why == NO_KIND and _leads_nowhere(Path(folder, name)):
                    if not dead:
                        raise _nowhere(Path(folder, name))
                    yield (below / name).as_posix()
                else:
                    walk.aside(why)
    walk.tell_of_links(suffixes)


def in_words(aside: Mapping[str, int]) -> str:
    """What was passed over, counted by why.

    >>> in_words({"hidden files": 1, "files ending in '.gif'": 2})
    "1 of the hidden files, 2 of the files ending in '.gif'"
    """
    return ", ".join(f"{count} of the {why}" for why, count in aside.items())


def hidden(name: str) -> bool:
    return name.startswith(".") or name == MAC_ARCHIVE


def _passed_over(name: str, wanted: bool) -> str | None:
    """Why a file is not read, in words, or None where nobody would miss it."""
    if hidden(name):  # ._NAME is what a Mac writes beside NAME on a foreign disk
        return "hidden files" if wanted and not name.startswith("._") else None
    suffix = PurePosixPath(name).suffix
    if suffix.lower() in NO_IMAGES:
        return None
    return f"files ending in {suffix!r}" if KNOWN_KIND.fullmatch(suffix) else NO_KIND


def _leads_nowhere(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _nowhere(path: Path) -> FileNotFoundError:
    words = "it is a link to what is not there or cannot be reached. Mount what it leads to, or remove the link"
    return FileNotFoundError(errno.ENOENT, words, str(path))


def _unheard(_why: str) -> None:
    pass


def _unlisted(error: OSError) -> None:
    raise error


@dataclass
class _Walk:
    """What was entered so far, by its place behind all links.

    trees: the root and the targets of links to folders, all that is below which is read. entered: every folder. Both
    with the paths by which they are read. links: those to images, with where each leads.
    """

    root: Path
    aside: Callable[[str], None]
    twice: Twice | None
    trees: dict[Path, PurePosixPath] = field(default_factory=dict)
    entered: dict[Path, PurePosixPath] = field(default_factory=dict)
    links: list[tuple[PurePosixPath, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trees[self._place(PurePosixPath())] = PurePosixPath()
        self.entered.update(self.trees)

    def enters(self, below: PurePosixPath) -> bool:
        """Whether to enter a folder; it counts as entered then."""
        if hidden(below.name):
            if below.name != MAC_ARCHIVE:
                self.aside("hidden folders")
            return False
        place, linked = self._place(below), (self.root / below).is_symlink()
        # A folder that is no link was entered where a link to what holds it came after one to itself.
        read_as = self.entered.get(place) or (self._read_as(place) if linked else None)
        if read_as is not None:
            if self.twice:
                self.twice(below, read_as)
            self.aside("links to folders that are read by another name")
            return False
        self.entered[place] = below
        if linked:
            self.trees[place] = below
        return True

    def remember(self, below: PurePosixPath) -> None:
        """Keep an image for `tell_of_links` where it is a link."""
        if self.twice and (self.root / below).is_symlink():
            self.links.append((below, self._place(below)))

    def tell_of_links(self, suffixes: tuple[str, ...]) -> None:
        """Tell of each link to an image that is read by its own name too, or was by a link before. Once the walk is
        over: a folder that holds the image may be entered after the link was seen."""
        if not self.twice:
            return
        first: dict[Path, PurePosixPath] = {}
        for below, place in self.links:
            if (before := first.setdefault(place, below)) != below:
                self.twice(below, before)
            read_as = self._read_as(place)
            if read_as is not None and read_as.name.lower().endswith(suffixes):
                self.twice(below, read_as)

    def _read_as(self, place: Path) -> PurePosixPath | None:
        """The path below the root by which a place is read, None where it is not."""
        for tree in (place, *place.parents):
            name = self.trees.get(tree)
            if name is not None:
                inside = place.relative_to(tree)  # what is hidden is read by no other name
                return None if any(map(hidden, inside.parts)) else name / inside.as_posix()
        return None

    def _place(self, below: PurePosixPath) -> Path:
        return Path(os.path.realpath(self.root / below))  # for which a link to itself is no error
