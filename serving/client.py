"""A client of the prediction service, for scripts and laboratory systems. `serving.async_client` is the same for
asyncio.

>>> from serving.client import Client
>>> with Client("http://127.0.0.1:3000") as client:         # doctest: +SKIP
...     answer = client.predict("cell.bmp")
...     answer["label"], answer["decision"]
('all', 'refer')
"""

import threading
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
    NO_ANSWER,
    TIMEOUT,
    Answer,
    Image,
    Retries,
    check_positive,
    check_several,
    connection,
    file_part,
    named,
    no_address,
    read_json,
    unanswered,
)


class Client:
    """Talks to one service over kept connections; safe to use from several threads.

    Args:
        url: for instance http://127.0.0.1:3000.
        api_key: what `blastwatch keys add` printed; "" for a service that needs none. It travels with every call, so
            use https:// to any other machine.
        timeout: seconds that one answer may take; the service itself gives up after 120.
        attempts: how often a call is made while the service's database is away, or connections break before the
            answer (the cell may then be stored twice). What waits for the caller's limit takes none of them, and up to
            15 minutes; what waits while the service is overloaded, up to 2.
        transport: another way to send requests, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        timeout: float = TIMEOUT,
        attempts: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        check_positive(attempts=attempts)
        self.url = url.rstrip("/")
        self._attempts = attempts
        self._timeout = timeout
        self._left: set[threading.Event] = set()
        try:
            self._http = httpx.Client(transport=transport, **connection(self.url, api_key=api_key, timeout=timeout))
        except httpx.InvalidURL as error:
            raise no_address(url) from error

    def predict(self, image: Image, *, patient: str = "", caller: str = "") -> Answer:
        """The answer of /v1/predict for one cell.

        Args:
            image: its bytes, or the path of its file.
            patient: whose cell it is, by any key that stays the same; the service stores a salted pseudonym of it.
            caller: who asks, which decides who is in the canary; without it the address does.

        Raises:
            TypeError: `image` is neither bytes nor a path, `patient` or `caller` no str.
            ValueError: `patient` or `caller` is longer than 1024 bytes, or nothing that a header can carry.
            DataError: the path cannot be read.
            ServiceError: the service refused, with its words and the HTTP status, or did not answer in time (504).
            ServiceUnreachable: no connection.
        """
        headers = named(patient=patient, caller=caller)
        return self._json("POST", "/v1/predict", files=[("image", file_part(image))], headers=headers)

    def predict_many(
        self, images: Iterable[Image], *, at_once: int = AT_ONCE, patient: str = "", caller: str = ""
    ) -> Iterator[Answer | ServiceError | DataError]:
        """For each cell, in order and as it comes, its answer or the error that stands for it.

        Who leaves the loop early waits for the calls in flight, but not for what waits its turn to be sent again.

        Args:
            images: as many as one likes; no more of them than twice `at_once` are in memory.
            at_once: calls in flight.
            patient: whose cells these are, of all of them: for several patients, call this for each.
            caller: as of `predict`.

        Raises:
            TypeError, ValueError: as `predict`; `images` is a single one.
            ServiceUnreachable: no connection.
        """
        check_positive(at_once=at_once)
        check_several(images)
        headers = named(patient=patient, caller=caller)
        left = threading.Event()
        self._left.add(left)
        with ThreadPoolExecutor(at_once, thread_name_prefix="calls") as pool:
            asked: deque[Future[Answer | ServiceError | DataError]] = deque()
            try:
                for image in images:
                    asked.append(pool.submit(self._answer_or_error, image, headers, left))
                    if len(asked) >= 2 * at_once:
                        yield asked.popleft().result()
                while asked:
                    yield asked.popleft().result()
            finally:
                for future in asked:
                    future.cancel()
                left.set()
                self._left.discard(left)

    def predict_batch(self, images: Sequence[Image], *, patient: str = "", caller: str = "") -> list[Answer]:
        """For each cell of one patient, in order, its answer or its problem (which has a `status`). As `predict`."""
        check_several(images)
        parts = [("images", file_part(image)) for image in images]
        answer = self._json("POST", "/v1/predict_batch", files=parts, headers=named(patient=patient, caller=caller))
        results: list[Answer] = answer["results"]
        return results

    def explain(self, image: Image, *, caller: str = "") -> bytes:
        """The heat map over one cell, as PNG. Arguments and errors as of `predict`."""
        headers = named(caller=caller)
        return self._send("POST", "/v1/explain", files=[("image", file_part(image))], headers=headers).content

    def model(self) -> Answer:
        """The model version that serves. Raises as `predict`."""
        return self._json("GET", "/v1/model")

    def add_label(self, prediction_id: str, label: str) -> None:
        """Tell the truth (`all` or `hem`) that came later. Raises as `predict`."""
        self._send("POST", "/v1/labels", json={"id": prediction_id, "label": label})

    def close(self) -> None:
        """Give the connections back, and send nothing again of what `predict_many` was asked for."""
        for left in tuple(self._left):
            left.set()
        self._http.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer_or_error(
        self, image: Image, headers: dict[bytes, bytes], left: threading.Event
    ) -> Answer | ServiceError | DataError:
        try:
            return self._json("POST", "/v1/predict", left=left, files=[("image", file_part(image))], headers=headers)
        except (ServiceError, DataError) as error:
            return error

    def _json(self, method: str, path: str, **content: Any) -> Answer:
        return read_json(self._send(method, path, **content), f"{self.url}{path}")

    def _send(self, method: str, path: str, *, left: threading.Event | None = None, **content: Any) -> httpx.Response:
        """Send a request, again where the service asks for it, until nobody waits for its answer (`left` is set)."""
        retries = Retries(self._attempts)
        while True:
            try:
                response = self._http.request(method, path, **content)
            except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
                pause, status = retries.pause_after(error), NO_ANSWER
                if pause is None:
                    raise unanswered(self.url, error, self._timeout) from error
            else:
                pause, status = retries.pause(response), response.status_code
                if pause is None:
                    return response
            if left is None:
                time.sleep(pause)
            elif left.wait(pause):
                raise ServiceError("Not sent again: nobody waits for the answer any more.", status=status)
