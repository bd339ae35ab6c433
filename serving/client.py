"""A client of the prediction service, for scripts and laboratory systems.

>>> from serving.client import Client
>>> with Client("http://127.0.0.1:3000") as client:         # doctest: +SKIP
...     answer = client.predict("cell.bmp")
...     answer["label"], answer["decision"]
('all', 'refer')
"""

import os
import random
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from blastwatch.addresses import encrypted
from blastwatch.errors import DataError, ServiceError, ServiceUnreachable

Image = bytes | str | os.PathLike[str]
"""The bytes of an image file, or its path."""

RETRIED = (429, 503)  # the service says itself that a later call may succeed
LONGEST_PAUSE = 30.0  # seconds


class Client:
    """Talks to one service over kept connections; safe to use from several threads.

    Args:
        url: for instance http://127.0.0.1:3000.
        api_key: what `blastwatch keys add` printed; "" for a service that needs none. It travels with every call, so
            use https:// to any other machine.
        timeout: seconds that one answer may take.
        attempts: how often a call is made while the service is overloaded or its database away.
        transport: another way to send requests, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        timeout: float = 60.0,
        attempts: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if not api_key.isascii() or any(character <= " " for character in api_key):
            raise ValueError("Expected `api_key` to be the text that `blastwatch keys add` printed, without spaces")
        if attempts < 1:
            raise ValueError(f"Expected `attempts` to be at least 1 but got {attempts}")
        self.url = url.rstrip("/")
        self._attempts = attempts
        try:
            self._http = httpx.Client(
                base_url=self.url,
                timeout=timeout,
                transport=transport,
                verify=encrypted(self.url),
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            )
        except httpx.InvalidURL as error:
            raise ServiceUnreachable(f"Expected an address such as http://127.0.0.1:3000 but got {url!r}.") from error

    def predict(self, image: Image) -> dict[str, Any]:
        """The answer of /v1/predict for one cell.

        Raises:
            DataError: the path cannot be read.
            ServiceError: the service refused, with its words and the HTTP status.
            ServiceUnreachable: no connection.
        """
        return self._json("POST", "/v1/predict", files=[("image", _file(image))])

    def predict_batch(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        """For each cell, in order, its answer or its problem (which has a `status`). Raises as `predict`."""
        answer = self._json("POST", "/v1/predict_batch", files=[("images", _file(image)) for image in images])
        results: list[dict[str, Any]] = answer["results"]
        return results

    def explain(self, image: Image) -> bytes:
        """The heat map over one cell, as PNG. Raises as `predict`."""
        return self._send("POST", "/v1/explain", files=[("image", _file(image))]).content

    def model(self) -> dict[str, Any]:
        """The model version that serves. Raises as `predict`."""
        return self._json("GET", "/v1/model")

    def add_label(self, prediction_id: str, label: str) -> None:
        """Tell the truth (`all` or `hem`) that came later. Raises as `predict`."""
        self._send("POST", "/v1/labels", json={"id": prediction_id, "label": label})

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _json(self, method: str, path: str, **content: Any) -> dict[str, Any]:
        response = self._send(method, path, **content)
        try:
            value: dict[str, Any] = response.json()
        except ValueError as error:
            raise ServiceError(
                f"Expected JSON from {self.url}{path} but got {response.headers.get('content-type', 'nothing')}. "
                "Is this the address of the prediction service?",
                status=response.status_code,
            ) from error
        return value

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        for attempt in range(1, self._attempts + 1):
            try:
                response = self._http.request(method, path, **content)
            except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
                raise ServiceUnreachable(
                    f"No prediction service answers at {self.url} ({error or type(error).__name__}). "
                    "Start it (blastwatch serve) or name its address (--url, BLASTWATCH_URL)."
                ) from error
            if response.is_success:
                return response
            if response.status_code in RETRIED and attempt < self._attempts:
                time.sleep(_pause(response, attempt))
                continue
            raise ServiceError(_words(response), status=response.status_code)
        raise AssertionError("the loop returns or raises")


def _file(image: Image) -> tuple[str, bytes, str]:
    """Name, bytes and media type of one part of the form."""
    if isinstance(image, bytes):
        return "image", image, "application/octet-stream"
    path = Path(image)
    try:
        return path.name, path.read_bytes(), "application/octet-stream"
    except OSError as error:
        raise DataError(f"Expected an image file but {path} cannot be read: {error.strerror or error}.") from error


def _pause(response: httpx.Response, attempt: int) -> float:
    """Seconds to wait: what the service asks for, else doubling; spread, so that callers do not return together."""
    asked = response.headers.get("Retry-After", "")
    seconds = float(asked) if asked.isdecimal() else 0.25 * 2.0**attempt
    return min(seconds, LONGEST_PAUSE) * random.uniform(1.0, 1.25)  # noqa: S311  (no secret depends on it)


def _words(response: httpx.Response) -> str:
    """The problem document in one line, or what came instead of one."""
    try:
        problem = response.json()
        title, detail = str(problem["title"]), str(problem["detail"])
        return f"{title}. {detail} (HTTP {response.status_code}, request {problem.get('request_id', 'unknown')})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"The service at {response.url} answered HTTP {response.status_code} without saying why."
