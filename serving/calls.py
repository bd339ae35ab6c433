"""What the two clients share: what is sent, what an answer means, and when to try again. Nothing here waits."""

import io
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

from blastwatch.addresses import encrypted, past_proxies
from blastwatch.errors import DataError, ServiceError, ServiceUnreachable
from serving.canary import CALLER_HEADER, LONGEST_HEADER, PATIENT_HEADER

Image = bytes | str | os.PathLike[str]
"""The bytes of an image file, or its path."""

Answer = dict[str, Any]

RETRIED = (429, 502, 503)  # the service says itself that a later call may succeed; 502: see `BROKEN`
BROKEN = (httpx.ReadError, httpx.WriteError, httpx.CloseError, httpx.RemoteProtocolError)
"""A connection that was there and ended before the answer: of a worker that was killed, or one that the service gave up
just when it was used again. Others may answer, so it is tried again; no connection at all is told at once. Behind a
proxy the same is a 502. Its 504 is not tried again: what took too long would only be computed twice."""
LONGEST_PAUSE = 30.0  # seconds before a service that is away is asked again
LONGEST_DEBT = 900.0  # seconds that one call waits altogether for its turn under the limit of its caller
LONGEST_CROWD = 120.0  # seconds that one call waits altogether while the service is overloaded: its own deadline
_LONGEST = {"/problems/rate-limited": LONGEST_DEBT, "/problems/overloaded": LONGEST_CROWD}  # by the type of a 429
NO_ANSWER = 502  # the status of an error for a connection that ended: what a proxy would say
TIMEOUT = 150.0  # seconds: longer than the service's own deadline of 120, so that it says itself what took so long
LONGEST_CONNECT = 60.0  # seconds until a machine that does not even take the connection counts as away
AT_ONCE = 8  # calls in flight: enough for batches to form, and far from the service's limits


def file_part(image: Image) -> tuple[str, bytes, str]:
    """Name, bytes and media type of one part of the form.

    Raises:
        TypeError: it is neither bytes nor a path.
        DataError: the path cannot be read.
    """
    if isinstance(image, bytes):
        return "image", image, "application/octet-stream"
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(
            f"Expected `image` to be the bytes of an image file or its path but got {_kind_of(image)}. Of an open file "
            "send what read() gives; write an array or a picture in memory as PNG first"
        )
    path = Path(image)
    try:
        name = path.name.encode("utf-8", "replace").decode()  # one that is not in UTF-8 has halves of letters
        return name, path.read_bytes(), "application/octet-stream"
    except OSError as error:
        raise DataError(f"Expected an image file but {path} cannot be read: {error.strerror or error}.") from error


def check_several(images: Iterable[Image]) -> None:
    """Raises `TypeError` for one image in place of several, whose letters or bytes would be taken for images."""
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, io.IOBase)) or not isinstance(
        images, Iterable
    ):
        raise TypeError(
            f"Expected `images` to be several images, such as a list of them, but got {_kind_of(images)}. Ask for one "
            "with predict(image), or give [image]"
        )


def _kind_of(value: object) -> str:
    """The name of its type, as it stands in an import."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


class Retries:
    """When one call is made again.

    A caller that sends more than its limit is not refused but has to wait its turn, as long as the service says, and so
    is one that comes while the service is overloaded: that takes none of the attempts but time, or callers side by
    side, of whom one gets in at a time, would lose their images.

    Args:
        attempts: how often a call is made while the service's database is away or connections break.
    """

    def __init__(self, attempts: int) -> None:
        self._attempts = attempts
        self._made = 0
        self._waited = dict.fromkeys(_LONGEST, 0.0)

    def pause(self, response: httpx.Response) -> float | None:
        """None where the call succeeded, seconds to wait where it is to be made again.

        Raises:
            ServiceError: the service refused, there is no attempt left, or the caller's turn is too far off.
        """
        if response.is_success:
            return None
        asked = response.headers.get("Retry-After", "")
        kind = _kind(response) if response.status_code == 429 and asked.isdecimal() else ""
        if kind in _LONGEST:
            seconds = max(float(asked), 1.0)
            self._waited[kind] += seconds
            if self._waited[kind] > _LONGEST[kind]:
                raise ServiceError(_words(response), status=response.status_code)
            return _spread(seconds)
        self._made += 1
        if response.status_code not in RETRIED or self._made >= self._attempts:
            raise ServiceError(_words(response), status=response.status_code)
        return _spread(min(float(asked) if asked.isdecimal() else 0.25 * 2.0**self._made, LONGEST_PAUSE))

    def pause_after(self, error: Exception) -> float | None:
        """Seconds to wait where a call that got no answer is to be made again, None where it is not: see `BROKEN`."""
        self._made += 1
        if not isinstance(error, BROKEN) or self._made >= self._attempts:
            return None
        return _spread(min(0.25 * 2.0**self._made, LONGEST_PAUSE))


def _spread(seconds: float) -> float:
    """A little more, by chance, so that callers do not return together."""
    return seconds * random.uniform(1.0, 1.25)  # noqa: S311  (no secret depends on it)


def _kind(response: httpx.Response) -> str:
    """The type of a problem document, "" where the answer is none."""
    try:
        return str(response.json()["type"])
    except (ValueError, KeyError, TypeError):
        return ""


def read_json(response: httpx.Response, url: str) -> Answer:
    """The object of an answer. Raises `ServiceError` where another server answers at that address."""
    try:
        value: Answer = response.json()
    except ValueError as error:
        raise ServiceError(
            f"Expected JSON from {url} but got {response.headers.get('content-type', 'nothing')}. "
            "Is this the address of the prediction service?",
            status=response.status_code,
        ) from error
    return value


def named(*, patient: str = "", caller: str = "") -> dict[bytes, bytes]:
    """The headers that say whose cells these are and who asks; none for "".

    Raises:
        TypeError: for what is no text.
        ValueError: for what no header can carry, or longer than the service takes. It does not repeat the key.
    """
    headers = {}
    for argument, name, key in (("patient", PATIENT_HEADER, patient), ("caller", CALLER_HEADER, caller)):
        if not isinstance(key, str):
            raise TypeError(f"Expected `{argument}` to be a str but got {_kind_of(key)}. For none leave it out")
        if not key.isprintable() or key != key.strip() or len(key.encode()) > LONGEST_HEADER:
            raise ValueError(
                f"Expected `{argument}` to be one line of printable text without spaces around it, of at most "
                f"{LONGEST_HEADER} bytes in UTF-8"
            )
        if key:
            headers[name.encode()] = key.encode()
    return headers


def unanswered(url: str, error: Exception, timeout: float) -> ServiceError | ServiceUnreachable:
    """The error for a request without an answer: the service is there but took longer than `timeout` seconds, or there
    was no connection to it."""
    if isinstance(error, httpx.UnsupportedProtocol):
        return no_address(url)
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        return ServiceError(
            f"The service at {url} did not answer within {timeout:g} s. Send fewer images a call, or see its log.",
            status=504,
        )
    return ServiceUnreachable(
        f"No prediction service answers at {url} ({error or type(error).__name__}). "
        "Start it (blastwatch serve) or name its address (--url, BLASTWATCH_URL)."
    )


def no_address(url: str) -> ServiceUnreachable:
    """The error for something that is no address, or one that does not say how to call it."""
    return ServiceUnreachable(
        f"Expected an address that begins with http:// or https://, such as http://127.0.0.1:3000, but got {url!r}."
    )


def _check_key(api_key: str) -> None:
    if not api_key.isascii() or any(character <= " " for character in api_key):
        raise ValueError("Expected `api_key` to be the text that `blastwatch keys add` printed, without spaces")


def connection(url: str, *, api_key: str, timeout: float) -> dict[str, Any]:
    """How httpx connects to a service, whichever of its clients it is.

    Raises:
        ValueError: for what no key can be.
    """
    _check_key(api_key)
    return {
        "base_url": url,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT)),
        "verify": encrypted(url),
        "mounts": past_proxies(url),
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
    }


def check_positive(**numbers: int) -> None:
    """Raises `ValueError` for the first number that is below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"Expected `{name}` to be at least 1 but got {value}")


def _words(response: httpx.Response) -> str:
    """The problem document in one line, or what came instead of one."""
    try:
        problem = response.json()
        title, detail = str(problem["title"]), str(problem["detail"])
        words = detail if detail.startswith(title) else f"{title}. {detail}"
        return f"{words} (HTTP {response.status_code}, request {problem.get('request_id', 'unknown')})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"The service at {response.url} answered HTTP {response.status_code} without saying why."
