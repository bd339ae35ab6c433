"""What the two clients share: what is sent, what an answer means, and when to try again. Nothing here waits."""

import os
import random
from pathlib import Path
from typing import Any

import httpx

from blastwatch.addresses import encrypted
from blastwatch.errors import DataError, ServiceError, ServiceUnreachable

Image = bytes | str | os.PathLike[str]
"""The bytes of an image file, or its path."""

Answer = dict[str, Any]

RETRIED = (429, 503)  # the service says itself that a later call may succeed
LONGEST_PAUSE = 30.0  # seconds
AT_ONCE = 8  # calls in flight: enough for batches to form, and far from the service's limits


def file_part(image: Image) -> tuple[str, bytes, str]:
    """Name, bytes and media type of one part of the form.

    Raises:
        DataError: the path cannot be read.
    """
    if isinstance(image, bytes):
        return "image", image, "application/octet-stream"
    path = Path(image)
    try:
        return path.name, path.read_bytes(), "application/octet-stream"
    except OSError as error:
        raise DataError(f"Expected an image file but {path} cannot be read: {error.strerror or error}.") from error


def pause_before_next(response: httpx.Response, *, attempt: int, attempts: int) -> float | None:
    """None where the call succeeded, seconds to wait where another attempt is worth it.

    Args:
        attempt: number of the one that was answered, from 1; attempts: how many there may be.

    Raises:
        ServiceError: the service refused, or there is no attempt left.
    """
    if response.is_success:
        return None
    if response.status_code not in RETRIED or attempt >= attempts:
        raise ServiceError(_words(response), status=response.status_code)
    # What the service asks for, else doubling; spread, so that callers do not return together.
    asked = response.headers.get("Retry-After", "")
    seconds = float(asked) if asked.isdecimal() else 0.25 * 2.0**attempt
    return min(seconds, LONGEST_PAUSE) * random.uniform(1.0, 1.25)  # noqa: S311  (no secret depends on it)


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


def unreachable(url: str, error: Exception) -> ServiceUnreachable:
    """The error for a connection that did not come about."""
    return ServiceUnreachable(
        f"No prediction service answers at {url} ({error or type(error).__name__}). "
        "Start it (blastwatch serve) or name its address (--url, BLASTWATCH_URL)."
    )


def no_address(url: str) -> ServiceUnreachable:
    """The error for something that is no address."""
    return ServiceUnreachable(f"Expected an address such as http://127.0.0.1:3000 but got {url!r}.")


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
        "timeout": timeout,
        "verify": encrypted(url),
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
        return f"{title}. {detail} (HTTP {response.status_code}, request {problem.get('request_id', 'unknown')})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"The service at {response.url} answered HTTP {response.status_code} without saying why."
