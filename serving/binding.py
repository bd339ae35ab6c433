"""On which address the service may be reached without a key: on the loopback of its own machine, and nowhere else; and
what else is decided before the workers start."""

import os
from collections.abc import Mapping

from blastwatch.addresses import is_loopback
from blastwatch.console import say
from blastwatch.errors import BlastwatchError, UsageError
from blastwatch.settings import Settings
from monitoring.pseudonyms import Pseudonyms
from serving.keys import KeyFolder, KeysUnreadable

KEYLESS_VARIABLE = "BLASTWATCH_KEYLESS"
"""Set before the workers start, not by people: 1 where the service is bound to the loopback and there was no key yet.
Without it keys are needed, so a worker that was started in another way is shut rather than open, and so is one that is
started again when the keys are lost."""

SETTLED_VARIABLE = "BLASTWATCH_SETTLED"
"""Set to 1 by `blastwatch serve` once it has settled what the workers serve at first, so that it is not done twice."""


def check_binding(host: str, settings: Settings) -> dict[str, str]:
    """Refuse an address that others reach where no key would keep them out.

    Returns:
        The variable that tells the workers.

    Raises:
        UsageError: naming the command that makes a key.
        KeysUnreadable: there are keys, or there were, and they cannot be read.
    """
    folder = KeyFolder(settings.api_keys)
    good = [row for row in folder.read() if not row.revoked]
    if good:
        folder.secret()
    if is_loopback(host):
        if folder_is_missing(settings):
            raise UsageError(
                f"Expected the folder that BLASTWATCH_API_KEYS names, {settings.api_keys}, but there is none. Make a "
                "key there (blastwatch keys add NAME), or the folder alone for a service that needs none here."
            )
        if not (folder.in_use or folder.empty):
            raise KeysUnreadable(
                f"The API keys in {folder.list_file} are gone, but the secret of their hash is there. Restore the list "
                "or make a key (blastwatch keys add NAME). To need none on this machine, remove the folder."
            )
        return {KEYLESS_VARIABLE: "1" if folder.empty else ""}
    if not good:
        raise UsageError(
            f"Expected an API key in {settings.api_keys} before others can reach the service at {host}, but there is "
            "none. Make one: blastwatch keys add NAME. Without keys it binds to this machine alone: --host 127.0.0.1"
        )
    return {KEYLESS_VARIABLE: ""}


def check_salt(settings: Settings) -> None:
    """Refuse a salt of the patients that was named and is none: each call that names a patient would be refused.

    One in the home is made, or missed, when the first patient comes: few services have any. One that was named is made
    now where it is missing, and that is said: a name that was mistyped would make new patients of all.

    Raises:
        UsageError: it can be neither read nor made.
    """
    salt = settings.patient_salt
    if salt == settings.home / "patient.salt":
        return
    missing = not salt.exists()
    try:
        Pseudonyms(salt).prepare()
    except BlastwatchError as error:
        raise UsageError(f"Expected the patients' salt where BLASTWATCH_PATIENT_SALT names it. {error}") from error
    if missing:
        say(f"Made a new salt of the patients at {salt}: all services on one database need this file.")


def folder_is_missing(settings: Settings) -> bool:
    """Whether the keys were given a folder of their own and it is not there: nobody knows whether keys are in it."""
    return settings.api_keys != settings.home / "api-keys" and not settings.api_keys.is_dir()


def keyless(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this worker is bound to the loopback, and needed no key when the service started."""
    return environment.get(KEYLESS_VARIABLE) == "1"


def asked_host() -> str:
    """The address that the running `bentoml serve` binds; every address where that cannot be told."""
    import click
    from bentoml._internal.configuration.containers import BentoMLContainer

    context = click.get_current_context(silent=True)
    given = context.params.get("host") if context else None
    return str(given or BentoMLContainer.http.host.get() or "0.0.0.0")  # noqa: S104  (the one to be refused)
