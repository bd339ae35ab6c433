"""A client of the prediction service, for scripts and laboratory systems. `serving.async_client` is the same for
asyncio.

>>> from serving.client import Client
>>> with Client("http://127.0.0.1:3000") as client:         # doctest: +SKIP
...     answer = client.predict("cell.bmp")
...     answer["label"], answer["decision"]
('all', 'refer')
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import httpx

from blastwatch.errors import DataError, ServiceError
from serving.calls import (
    AT_ONCE,
    Answer,
    Image,
    Retries,
    check_positive,
    connection,
    file_part,
    no_address,
    read_json,
    unreachable,
)


class Client:
    """Talks to one service over kept connections; safe to use from several threads.

    Args:
        url: for instance http://127.0.0.1:3000.
        api_key: what `blastwatch keys add` printed; "" for a service that needs none. It travels with every call, so
            use https:// to any other machine.
        timeout: seconds that one answer may take.
        attempts: how often a call is made while the service is overloaded or its database away. What waits for the
            caller's limit takes none of them, and up to 15 minutes.
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
        check_positive(attempts=attempts)
        self.url = url.rstrip("/")
        self._attempts = attempts
        try:
            self._http = httpx.Client(transport=transport, **connection(self.url, api_key=api_key, timeout=timeout))
        except httpx.InvalidURL as error:
            raise no_address(url) from error

    def predict(self, image: Image) -> Answer:
        """The answer of /v1/predict for one cell.

        Raises:
            DataError: the path cannot be read.
            ServiceError: the service refused, with its words and the HTTP status.
            ServiceUnreachable: no connection.
        """
        return self._json("POST", "/v1/predict", files=[("image", file_part(image))])

    def predict_many(
        self, images: Iterable[Image], *, at_once: int = AT_ONCE
    ) -> Iterator[Answer | ServiceError | DataError]:
        """For each cell, in order and as it comes, its answer or the error that stands for it.

        Args:
            images: as many as one likes; no more of them than twice `at_once` are in memory.
            at_once: calls in flight.

        Raises:
            ServiceUnreachable: no connection.
        """
        check_positive(at_once=at_once)
        with ThreadPoolExecutor(at_once, thread_name_prefix="calls") as pool:
            asked: deque[Future[Answer | ServiceError | DataError]] = deque()
            try:
                for image in images:
                    asked.append(pool.submit(self._answer_or_error, image))
                    if len(asked) >= 2 * at_once:
                        yield asked.popleft().result()
                while asked:
                    yield asked.popleft().result()
            finally:
                for future in asked:
                    future.cancel()

    def predict_batch(self, images: Sequence[Image]) -> list[Answer]:
        """For each cell, in order, its answer or its problem (which has a `status`). Raises as `predict`."""
        answer = self._json("POST", "/v1/predict_batch", files=[("images", file_part(image)) for image in images])
        results: list[Answer] = answer["results"]
        return results

    def explain(self, image: Image) -> bytes:
        """The heat map over one cell, as PNG. Raises as `predict`."""
        return self._send("POST", "/v1/explain", files=[("image", file_part(image))]).content

    def model(self) -> Answer:
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

    def _answer_or_error(self, image: Image) -> Answer | ServiceError | DataError:
        try:
            return self.predict(image)
        except (ServiceError, DataError) as error:
            return error

    def _json(self, method: str, path: str, **content: Any) -> Answer:
        return read_json(self._send(method, path, **content), f"{self.url}{path}")

    def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        retries = Retries(self._attempts)
        while True:
            try:
                response = self._http.request(method, path, **content)
            except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
                raise unreachable(self.url, error) from error
            pause = retries.pause(response)
            if pause is None:
                return response
            time.sleep(pause)
