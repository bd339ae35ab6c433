"""Addresses: what one says of the connection, how it is shown, and whether it is free."""

import ipaddress
import re
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

from blastwatch.errors import BlastwatchError

_PORT = re.compile(r":\d*\Z")


def encrypted(address: str) -> bool:
    """False for a plain `http://` address, as on the loopback; the value of httpx' `verify`.

    Where httpx may have to verify, it loads the certificates of every authority first: 40 ms a call, for nothing where
    there is no TLS.
    """
    return not address.lower().startswith("http://")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address. A name other than localhost may be anybody's."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def asked_on_loopback(host: str) -> bool:
    """Whether a request was sent to the loopback, by its header `Host`: a name or address, with or without a port.

    >>> asked_on_loopback("LOCALHOST:3000"), asked_on_loopback("[::1]:3001"), asked_on_loopback("127.0.0.1.lab:3000")
    (True, True, False)
    """
    return is_loopback(_PORT.sub("", host.lower()))


def origin(host: str, port: int) -> str:
    """Where what is bound there is asked.

    >>> origin("127.0.0.1", 3000), origin("::1", 3000)
    ('http://127.0.0.1:3000', 'http://[::1]:3000')
    """
    return f"http://{_in_url(host)}:{port}"


def _in_url(host: str) -> str:
    """A host as it stands in an address: one of IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def past_proxies(address: str) -> dict[str, None]:
    """The value of httpx' `mounts`: what stays on this machine goes to no proxy of the environment (HTTP_PROXY).

    httpx makes no exception for the loopback, so cells and keys would go to whoever the proxy is. Its `trust_env=False`
    would leave out SSL_CERT_FILE too.

    >>> past_proxies("http://127.0.0.1:3000"), past_proxies("https://cells.lab")
    ({'all://127.0.0.1': None}, {})
    """
    try:
        host = urlsplit(address).hostname or ""
    except ValueError:  # no address: whoever asks there is told so by httpx
        return {}
    return {f"all://{_in_url(host)}": None} if is_loopback(host) else {}


def unproxied(environment: Mapping[str, str]) -> dict[str, str]:
    """NO_PROXY of an environment with the loopback in it, in both spellings: of two, each library reads another.

    For MLflow and for child processes, which are told in no other way.
    """
    named = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    if hosts != ["*"]:
        hosts += [host for host in ("127.0.0.1", "localhost", "::1") if host not in hosts]
    return dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(hosts))


# An account before the host: NAME:PASSWORD, also with a stroke or an @ in the password (but no port), or all before @.
_ACCOUNT = re.compile(r"(?<=[^/]//)(?:[^\s/?#:]*:(?!\d+(?:/|$))\S*|[^\s/?#]*)@")
_PARAMETER = re.compile(r"(?<=password=)[^\s&]+", re.IGNORECASE)


def shown(text: str) -> str:
    """An address, or a text with addresses in it, as a person may see it: without account and password.

    >>> shown("No server answers at http://pat:s3cret@127.0.0.1:5000/mlflow")
    'No server answers at http://127.0.0.1:5000/mlflow'
    >>> shown("postgresql://db/history?user=pat&password=s3cret")
    'postgresql://db/history?user=pat&password=***'
    """
    return _PARAMETER.sub("***", _ACCOUNT.sub("", text))


def bound(host: str, port: int, variable: str) -> socket.socket:
    """A socket that listens there.

    Args:
        variable: the setting that the port came from, for the message.

    Raises:
        BlastwatchError: something else does, or there is no such address here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _taken(host, port, variable, error) from error
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        raise _taken(host, port, variable, error) from error
    return found


def _taken(host: str, port: int, variable: str, error: OSError) -> BlastwatchError:
    return BlastwatchError(
        f"Port {port} of {host} cannot be bound ({error.strerror}). Stop what uses it or set {variable}."
    )


def check_free(host: str, port: int, variable: str) -> None:
    """Raise `BlastwatchError` where something listens there already."""
    bound(host, port, variable).close()
