"""Which version a command of the monitor is about: the one that `--ref` names, else the one that serves.

A number is taken at its word. An alias counts only on the signed word of a trusted promoter, as for services: else a
report would speak of another version than the one that answered.
"""

from blastwatch.embedded_store import check_made
from blastwatch.entry import Entry
from blastwatch.errors import SignatureInvalid
from blastwatch.history import ALIASES
from blastwatch.registry import Fetched, Registry, parse_ref
from blastwatch.settings import Settings
from monitoring.followed import proven_patiently


def asked(settings: Settings, ref: str | None) -> Fetched:
    """The version and its verified package; raises as `named`, and `PackageError`."""
    registry = Registry(settings)
    entry = named(registry, ref or settings.model_alias)
    return Fetched(entry, registry.fetch_entry(entry))


def named(registry: Registry, ref: str, *, option: str = "--ref") -> Entry:
    """The version that a reference names: an alias, a number, or a model URI of either.

    Args:
        option: of the command, which names another version.

    Raises:
        AliasMoved: an alias that stands elsewhere than the last signed word about it says.
        SignatureInvalid: an alias without the signed word of anybody trusted, or on a version that nobody trusted
            registered.
        AliasNotSet, VersionNotFound: there is none.
        RegistryError: there is no registry, and none is made.
    """
    check_made(registry.settings)
    wanted = parse_ref(ref, registry.name)
    if wanted not in ALIASES:
        return registry.entry(wanted)
    try:
        return proven_patiently(registry, wanted)
    except SignatureInvalid as error:
        raise SignatureInvalid(
            f"{error} To read what is stored of a version all the same, name it by its number: {option} NUMBER"
        ) from error
