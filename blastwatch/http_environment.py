"""What the environment says of HTTP: proxies, exceptions from them, and files of certificates."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from blastwatch.addresses import encrypted, past_proxies, shown
from blastwatch.errors import SettingsError

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")


def reading(address: str) -> dict[str, Any]:
    """Arguments of httpx' clients: what one for this address reads of the environment, which is nothing where nothing
    of it would be used. A proxy that is wrong would be an error there."""
    mounts = past_proxies(address)
    return {"verify": encrypted(address), "mounts": mounts, "trust_env": encrypted(address) or not mounts}


@contextmanager
def usable_environment() -> Iterator[None]:
    """Around the making of one of httpx' clients, which reads the environment.

    Raises:
        SettingsError: a proxy, an exception from it or a file of certificates that it names cannot be used.
    """
    import httpx

    try:
        yield
    except (httpx.InvalidURL, ImportError, ValueError) as error:
        raise SettingsError(
            f"Expected proxies and exceptions from them that can be used in {_named_in_environment(PROXIES)} but got: "
            f"{shown(str(error))} Name a proxy such as http://proxy:3128 and a host such as cells.lab that is asked "
            "without, or unset the variable."
        ) from error
    except OSError as error:
        raise SettingsError(
            f"Expected files that can be read in {_named_in_environment(CERTIFICATES)} but got: "
            f"{error.strerror or error}. Name the certificates of the authority that you trust, or unset the variable."
        ) from error


def _named_in_environment(variables: tuple[str, ...]) -> str:
    """Those that are set, as they are spelt there; all, where a machine keeps its proxies elsewhere."""
    found = [name for one in variables for name in (one, one.lower()) if os.environ.get(name)]
    return ", ".join(found or variables)
