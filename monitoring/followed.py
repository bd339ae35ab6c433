"""What an alias stands on, as services take it.

A service takes an alias only on the signed word of a trusted promoter. Where that word is missing, says otherwise, the
package is damaged, the registry is away or the policy cannot be read, it goes on with the version that it has. So does
the monitor: else it would watch a version that nobody is answered by, or none for as long as MLflow is down.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Generic, TypeVar

from blastwatch import history
from blastwatch.entry import Entry
from blastwatch.errors import AliasMoved, AliasNotSet, PackageError, PolicyError, RegistryError, SignatureInvalid
from blastwatch.registry import Registry

Taken = TypeVar("Taken")


class Followed(Generic[Taken]):
    """One alias; remembers what was taken last.

    Args:
        take: what is wanted of the version; called at every look, also where it is the same.
        withdrawn: whether an action takes the alias away, as it does of a challenger. Of a champion none does, and
            services go on without the alias.
    """

    def __init__(
        self, registry: Registry, alias: str, take: Callable[[Entry], Taken], *, withdrawn: bool = False
    ) -> None:
        self._registry, self._alias, self._take, self._withdrawn = registry, alias, take, withdrawn
        self._last: tuple[Entry, Taken] | None = None
        self._proven = False  # whether a trusted word stood for the last one
        self.problem = ""  # why the last look did not go by such a word, "" where it did

    def look(self) -> Taken:
        """Ask the registry, and once more after `MOVE_SECONDS` where the alias lies elsewhere than its word says.

        Raises:
            AliasNotSet: nothing carries the alias, and nothing was taken before or it was withdrawn.
            RegistryError, PackageError: as from the registry, where nothing was taken before.
        """
        self.problem = ""
        try:
            entry, proven = self._named()
            self._last, self._proven = (entry, self._take(entry)), proven
        except (RegistryError, PackageError) as error:
            if isinstance(error, AliasNotSet) and self._withdrawn:
                self._last, self._proven = None, False
            if self._last is None:
                raise
            self.problem = f"{error} Version {self._last[0].version} is watched as before."
        return self._last[1]

    def _named(self) -> tuple[Entry, bool]:
        """The version, and whether a trusted word stands for it.

        Where nothing was proven before, an alias that was moved or taken away by hand counts for the version that the
        last word put it on, which is the one that services serve. A machine without the keys that services trust proves
        none: it goes by the alias alone. Either is said."""
        try:
            entry = proven_patiently(self._registry, self._alias)
            self._check_order(entry)
            return entry, True
        except PolicyError as error:  # it is read for the rule of two persons, and may be written just now
            raise RegistryError(f"Whether a trusted word stands is not known: {error}") from error
        except (AliasMoved, AliasNotSet) as error:
            if self._proven or (isinstance(error, AliasNotSet) and self._withdrawn):
                raise
            entry = self._named_by_word(error)
            self.problem = f"{error} Version {entry.version} is watched, by that word."
            return entry, True
        except SignatureInvalid as error:
            if self._proven:
                raise
            entry = self._registry.entry(self._alias)
            self.problem = f"{error} Version {entry.version} is watched, unproven, since the alias stands on it."
            return entry, False

    def _named_by_word(self, moved: AliasMoved | AliasNotSet) -> Entry:
        """The version that the last signed word puts the alias on. Raises `moved` where there is no such word, or the
        version is another package now."""
        model = self._registry.store.model()
        if model is None:
            raise moved
        try:
            word = self._registry.word(model, self._alias)
        except SignatureInvalid as error:
            raise moved from error
        version = history.stands_on(word, self._alias)
        if not version:
            raise moved
        entry = self._registry.entry(version)
        if entry.digest != word.digest:
            raise moved
        return replace(entry, word=word.number)

    def _check_order(self, entry: Entry) -> None:
        """Raise `AliasMoved` for a word older than the one that was believed: somebody put both back."""
        if self._proven and self._last is not None and 0 < entry.word < self._last[0].word:
            raise AliasMoved(
                f"The alias {self._alias} stands on version {entry.version} by entry {entry.word} of the history, but "
                f"entry {self._last[0].word} had moved it on: an old word was put back. If the registry was restored "
                "from a backup, start the monitor anew."
            )


def proven_patiently(registry: Registry, alias: str) -> Entry:
    """As `Registry.proven`, and once more where a promotion may just be written."""
    try:
        return registry.proven(alias)
    except AliasMoved:
        time.sleep(history.MOVE_SECONDS)
        return registry.proven(alias)
