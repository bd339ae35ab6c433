"""What an alias stands on, as services take it.

A service takes an alias only on the signed word of a trusted promoter. Where that word is missing, says otherwise, the
package is damaged or the registry is away, it goes on with the version that it has. So does the monitor: else it would
watch a version that nobody is answered by, or none for as long as MLflow is down.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

from blastwatch.entry import Entry
from blastwatch.errors import AliasMoved, AliasNotSet, PackageError, RegistryError, SignatureInvalid
from blastwatch.registry import Registry

Taken = TypeVar("Taken")


class Followed(Generic[Taken]):
    """One alias; remembers what was taken last.

    Args:
        take: what is wanted of the version; called at every look, also where it is the same.
    """

    def __init__(self, registry: Registry, alias: str, take: Callable[[Entry], Taken]) -> None:
        self._registry, self._alias, self._take = registry, alias, take
        self._last: tuple[Entry, Taken] | None = None
        self._proven = False  # whether a trusted word stood for the last one
        self.problem = ""  # why the last look did not go by such a word, "" where it did

    def look(self) -> Taken:
        """Ask the registry once.

        Raises:
            AliasNotSet: nothing carries the alias; what was taken is forgotten.
            RegistryError, PackageError: as from the registry, where nothing was taken before.
        """
        self.problem = ""
        try:
            entry, proven = self._named()
            self._last, self._proven = (entry, self._take(entry)), proven
        except AliasNotSet:
            self._last, self._proven = None, False
            raise
        except (RegistryError, PackageError) as error:
            if self._last is None:
                raise
            self.problem = f"{error} Version {self._last[0].version} is watched as before."
        return self._last[1]

    def _named(self) -> tuple[Entry, bool]:
        """The version, and whether a trusted word stands for it.

        A machine without the keys that services trust proves none: it goes by the alias alone, and says so."""
        try:
            entry = self._registry.proven(self._alias)
            self._check_order(entry)
            return entry, True
        except (AliasMoved, SignatureInvalid) as error:
            if self._proven:
                raise
            entry = self._registry.entry(self._alias)
            self.problem = f"{error} Version {entry.version} is watched, unproven, since the alias stands on it."
            return entry, False

    def _check_order(self, entry: Entry) -> None:
        """Raise `AliasMoved` for a word older than the one that was believed: somebody put both back."""
        if self._proven and self._last is not None and 0 < entry.word < self._last[0].word:
            raise AliasMoved(
                f"The alias {self._alias} stands on version {entry.version} by entry {entry.word} of the history, but "
                f"entry {self._last[0].word} had moved it on: an old word was put back. If the registry was restored "
                "from a backup, start the monitor anew."
            )
