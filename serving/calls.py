"""What the two clients share: what is sent, what an answer means, and when to try again. Nothing here waits."""

import io
import os
import random
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx

from blastwatch.addresses import shown
from blastwatch.errors import DataError, ServiceError, ServiceUnreachable, UsageError
from blastwatch.http_environment import reading
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
MOST_BROKEN = 16  # images in a row without an answer that `predict_many` bears, or twice `at_once` where that is more
AT_ONCE = 8  # calls in flight: enough for batches to form, and far from the service's limits
CONNECTIONS = 100  # of one client; further calls wait, for as long as it takes, until one of them is free
MOST_BYTES = 256 << 20  # of one file: far more than a service takes, and so many calls at once still fit into memory


def file_part(image: Image) -> tuple[str, bytes, str]:
    """Name, bytes and media type of one part of the form.

    Raises:
        TypeError: it is neither bytes nor a path.
        DataError: the path cannot be read, or what is there is a device or far larger than an image.
    """
    if isinstance(image, bytes):
        return "image", image, "application/octet-stream"
    if not isinstance(image, (str, os.PathLike)):
        raise TypeError(
            f"Expected `image` to be the bytes of an image file or its path but got {kind_of(image)}. Of an open file "
            "send what read() gives; write an array or a picture in memory as PNG first"
        )
    path = Path(image)
    try:
        name = path.name.encode("utf-8", "replace").decode()  # one that is not in UTF-8 has halves of letters
        return name, _content(path), "application/octet-stream"
    except OSError as error:
        raise DataError(f"Expected an image file but {path} cannot be read: {error.strerror or error}.") from error


def _content(path: Path) -> bytes:
    """What is in a file or comes out of a pipe, at most `MOST_BYTES`."""
    state = path.stat()
    if stat.S_ISCHR(state.st_mode) or stat.S_ISBLK(state.st_mode):  # /dev/zero has no end
        raise DataError(f"Expected an image file but {path} is a device. Save the image to a file.")
    if state.st_size > MOST_BYTES:
        raise _beyond(path)
    if stat.S_ISREG(state.st_mode):
        return path.read_bytes()
    content = bytearray()
    with path.open("rb") as pipe:
        while piece := pipe.read(1 << 20):
            content += piece
            if len(content) > MOST_BYTES:
                raise _beyond(path)
    return bytes(content)


def _beyond(path: Path) -> DataError:
    return DataError(f"Expected at most {MOST_BYTES} bytes in {path} but it is larger. Send one image a file.")


def check_several(images: Iterable[Image]) -> None:
    """Raises `TypeError` for one image in place of several, whose letters or bytes would be taken for images."""
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike, io.IOBase)) or not isinstance(
        images, Iterable
    ):
        raise TypeError(
            f"Expected `images` to be several images, such as a list of them, but got {kind_of(images)}. Ask for one "
            "with predict(image), or give [image]"
        )


def kind_of(value: object) -> str:
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


class Broken:
    """Counts the images in a row of which each connection ended before the answer (or a proxy said 502).

    Behind something that still takes connections, a service that is gone would else cost all attempts for every image
    of an archive.
    """

    def __init__(self, url: str, at_once: int) -> None:
        self._url, self._most, self._row = url, max(MOST_BROKEN, 2 * at_once), 0

    def count(self, answer: Answer | ServiceError | DataError) -> Answer | ServiceError | DataError:
        """What was given. An image that cannot be read was not sent, and so neither counts nor begins anew.

        Raises:
            ServiceUnreachable: too many in a row.
        """
        if isinstance(answer, DataError):
            return answer
        self._row = self._row + 1 if isinstance(answer, ServiceError) and answer.status == NO_ANSWER else 0
        if self._row >= self._most:
            raise ServiceUnreachable(
                f"No prediction service answers at {shown(self._url)}: {self._row} images in a row got no answer, "
                f"however often they were sent. The last: {answer}"
            )
        return answer


def _spread(seconds: float) -> float:
    """A little more, by chance, so that callers do not return together."""
    return seconds * random.uniform(1.0, 1.25)  # noqa: S311  (no secret depends on it)


def _kind(response: httpx.Response) -> str:
    """The type of a problem document, "" where the answer is none."""
    try:
        return str(response.json()["type"])
    except (ValueError, KeyError, TypeError):
        return ""


def named(*, patient: str = "", caller: str = "") -> dict[bytes, bytes]:
    """The headers that say whose cells these are and who asks; none for "".

    Raises:
        TypeError: for what is no text.
        ValueError: for what no header can carry, or longer than the service takes. It does not repeat the key.
    """
    headers = {}
    for argument, name, key in (("patient", PATIENT_HEADER, patient), ("caller", CALLER_HEADER, caller)):
        if not isinstance(key, str):
            raise TypeError(f"Expected `{argument}` to be a str but got {kind_of(key)}. For none leave it out")
        if not key.isprintable() or key != key.strip() or len(key.encode()) > LONGEST_HEADER:
            raise ValueError(
                f"Expected `{argument}` to be one line of printable text without spaces around it, of at most "
                f"{LONGEST_HEADER} bytes in UTF-8"
            )
        if key:
            headers[name.encode()] = key.encode()
    return headers


def refuse_redirect(response: httpx.Response) -> None:
    """A cell or a key goes to no other address than the one that was named. For the hooks of httpx, which otherwise
    takes an address that it cannot read for a broken connection.

    Raises:
        ServiceError: the answer leads on to another address.
    """
    if response.has_redirect_location:
        there = shown(response.headers["Location"])
        raise ServiceError(
            f"{shown(str(response.url))} leads on to {there} (HTTP {response.status_code}), which is not followed. "
            "Name the address of the service itself (--url, BLASTWATCH_URL).",
            status=response.status_code,
        )


def unanswered(url: str, error: Exception, timeout: float) -> ServiceError | ServiceUnreachable:
    """The error for a request without an answer: the service is there but took longer than `timeout` seconds, ended the
    connection or answered what nobody can read; or there was no connection to it."""
    address, why = shown(url), str(error) or type(error).__name__
    if isinstance(error, (httpx.ReadTimeout, httpx.WriteTimeout)):
        return ServiceError(
            f"The service at {address} did not answer within {timeout:g} s. Send fewer images a call, or see its log.",
            status=504,
        )
    if isinstance(error, BROKEN):  # the next image may be answered, so it is no end of all
        return ServiceError(
            f"The service at {address} ended the connection before its answer ({why}). What was sent may be more than "
            "it takes, or have ended one of its processes: see its log.",
            status=NO_ANSWER,
        )
    if isinstance(error, httpx.DecodingError):
        return ServiceError(
            f"Expected an answer that can be unpacked from {address} but it cannot ({why}). "
            "Is this the address of the prediction service?",
            status=NO_ANSWER,
        )
    return ServiceUnreachable(
        f"No prediction service answers at {address} ({why}). "
        "Start it (blastwatch serve) or name its address (--url, BLASTWATCH_URL)."
    )


def no_address(url: str) -> ServiceUnreachable:
    """The error for something that is no address, or one that does not say how to call it."""
    given = shown(url).rpartition("@")[2]  # without a scheme, nothing tells that a password stands in it
    return ServiceUnreachable(
        f"Expected an address that begins with http:// or https://, such as http://127.0.0.1:3000, but got {given!r}."
    )


def _check_key(api_key: str) -> None:
    if not api_key.isascii() or any(character <= " " for character in api_key):
        raise ValueError("Expected `api_key` to be the text that `blastwatch keys add` printed, without spaces")


def connection(url: str, *, api_key: str, timeout: float) -> dict[str, Any]:
    """How httpx connects to a service, whichever of its clients it is.

    Raises:
        ValueError: for what no key can be.
        ServiceUnreachable: `url` is no address.
        UsageError: it has an account in it, which httpx would send in place of the key.
    """
    _check_key(api_key)
    try:
        address = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise no_address(url) from error
    if address.scheme not in ("http", "https") or not address.host:  # what else stands in it may be a password
        raise no_address(url)
    if address.userinfo and api_key:
        raise UsageError(
            f"Expected an address without an account beside an API key but got both for {shown(url)}: a request can "
            "carry one of them. Take NAME:PASSWORD@ out of the address, or give no key (BLASTWATCH_API_KEY)."
        )
    return {
        "base_url": url,
        "timeout": httpx.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT), pool=None),
        "limits": httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=20),
        "headers": {"Authorization": f"Bearer {api_key}"} if api_key else {},
        **reading(url),
    }


def check_positive(**numbers: int) -> None:
    """Raises `ValueError` for the first number that is below 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"Expected `{name}` to be at least 1 but got {value}")


def _words(response: httpx.Response) -> str:
    """The problem document in one line, or what came instead of one."""
    address = shown(str(response.url))
    try:
        problem = response.json()
        title, detail = str(problem["title"]), str(problem["detail"])
        words = detail if detail.startswith(title) else f"{title}. {detail}"
        words += f" {problem['advice']}" if problem.get("advice") else ""  # an older service gives none
        return f"{words} (HTTP {response.status_code}, request {problem.get('request_id', 'unknown')})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"The service at {address} answered HTTP {response.status_code} without saying why."
