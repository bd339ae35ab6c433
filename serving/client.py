"""A client of the prediction service, for scripts and laboratory systems. `serving.async_client` is the same for
asyncio.

>>> from serving.client import Client
>>> with Client("http://127.0.0.1:3000") as client:         # doctest: +SKIP
...     answer = client.predict("cell.bmp")
...     answer["label"], answer["decision"]
('all', 'refer')
"""

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import httpcore
import httpx

from blastwatch.errors import DataError, ServiceError
from blastwatch.http_environment import usable_environment
from serving.answers import TOLD_OF_LABEL, TOLD_OF_MODEL, TOLD_OF_PREDICTION, read_json, read_png, read_results
from serving.calls import (
    AT_ONCE,
    NO_ANSWER,
    TIMEOUT,
    Answer,
    Broken,
    Image,
    Retries,
    check_positive,
    check_several,
    connection,
    file_part,
    named,
    refuse_redirect,
    unanswered,
)


class Client:
    """Talks to one service over kept connections; safe to use from several threads.

    Args:
        url: for instance http://127.0.0.1:3000.
        api_key: what `blastwatch keys add` printed; "" for a service that needs none. It travels with every call, so
            use https:// to any other machine.
        timeout: seconds until an answer begins, and again until it is there whole; the service itself gives up after
            120.
        attempts: how often a call is made while the service's database is away, or connections break before the
            answer (the cell may then be stored twice). What waits for the caller's limit takes none of them, and up to
            15 minutes; what waits while the service is overloaded, up to 2.
        transport: another way to send requests, for tests.

    Raises:
        ServiceUnreachable: `url` is no address.
        UsageError: it has an account in it, and there is a key; or (`SettingsError`) a proxy or a file of certificates
            that the environment names cannot be used.
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
        self._in_time = _InTime(timeout)
        self._left: set[threading.Event] = set()
        how = connection(self.url, api_key=api_key, timeout=timeout)
        with usable_environment():
            self._http = httpx.Client(transport=transport, event_hooks={"response": [refuse_redirect]}, **how)

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
            ServiceError: the service refused, with its words and the HTTP status, did not answer in time (504), or
                ended the connection each time (502).
            ServiceUnreachable: no connection.
        """
        headers = named(patient=patient, caller=caller)
        return self._prediction(image, headers)

    def predict_many(
        self, images: Iterable[Image], *, at_once: int = AT_ONCE, patient: str = "", caller: str = ""
    ) -> Iterator[Answer | ServiceError | DataError]:
        """For each cell, in order, its answer or the error that stands for it.

        The first comes once twice `at_once` images were asked for, or all. Of images that come one by one, as from a
        microscope, ask for each with `predict`. Who leaves the loop early waits for the calls in flight, but not for
        what waits its turn to be sent again.

        Args:
            images: as many as one likes; no more of them than twice `at_once` are in memory.
            at_once: calls in flight.
            patient: whose cells these are, of all of them: for several patients, call this for each.
            caller: as of `predict`.

        Raises:
            TypeError, ValueError: as `predict`; `images` is a single one.
            ServiceUnreachable: no connection; or 16 images in a row, or twice `at_once`, got no answer (502).
        """
        check_positive(at_once=at_once)
        check_several(images)
        headers = named(patient=patient, caller=caller)
        broken = Broken(self.url, at_once)
        left = threading.Event()
        self._left.add(left)
        with ThreadPoolExecutor(at_once, thread_name_prefix="calls") as pool:
            asked: deque[Future[Answer | ServiceError | DataError]] = deque()
            try:
                for image in images:
                    asked.append(pool.submit(self._answer_or_error, image, headers, left))
                    if len(asked) >= 2 * at_once:
                        yield broken.count(asked.popleft().result())
                while asked:
                    yield broken.count(asked.popleft().result())
            finally:
                for future in asked:
                    future.cancel()
                left.set()
                self._left.discard(left)

    def predict_batch(self, images: Sequence[Image], *, patient: str = "", caller: str = "") -> list[Answer]:
        """For each cell of one patient, in order, its answer or its problem (which has a `status`). As `predict`.

        For no cell nothing is asked.
        """
        check_several(images)
        headers = named(patient=patient, caller=caller)
        parts = [("images", file_part(image)) for image in images]
        if not parts:
            return []
        path = "/v1/predict_batch"
        return read_results(self._send("POST", path, files=parts, headers=headers), f"{self.url}{path}", len(parts))

    def explain(self, image: Image, *, caller: str = "") -> bytes:
        """The heat map over one cell, as PNG. Arguments and errors as of `predict`."""
        headers = named(caller=caller)
        path = "/v1/explain"
        sent = self._send("POST", path, files=[("image", file_part(image))], headers=headers)
        return read_png(sent, f"{self.url}{path}")

    def model(self) -> Answer:
        """The model version that serves. Raises as `predict`."""
        return self._json("GET", "/v1/model", TOLD_OF_MODEL)

    def add_label(self, prediction_id: str, label: str) -> None:
        """Tell the truth (`all` or `hem`) that came later. Raises as `predict`."""
        self._json("POST", "/v1/labels", TOLD_OF_LABEL, json={"id": prediction_id, "label": label})

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
            return self._prediction(image, headers, left)
        except (ServiceError, DataError) as error:
            return error

    def _prediction(self, image: Image, headers: dict[bytes, bytes], left: threading.Event | None = None) -> Answer:
        files = [("image", file_part(image))]
        return self._json("POST", "/v1/predict", TOLD_OF_PREDICTION, left=left, files=files, headers=headers)

    def _json(self, method: str, path: str, members: tuple[str, ...], **content: Any) -> Answer:
        return read_json(self._send(method, path, **content), f"{self.url}{path}", members)

    def _ask(self, method: str, path: str, content: dict[str, Any]) -> httpx.Response:
        """One request and its whole answer."""
        with self._http.stream(method, path, extensions={"trace": self._in_time.hear}, **content) as response:
            response.read()
        return response

    def _send(self, method: str, path: str, *, left: threading.Event | None = None, **content: Any) -> httpx.Response:
        """Send a request, again where the service asks for it, until nobody waits for its answer (`left` is set)."""
        retries = Retries(self._attempts)
        while True:
            try:
                response = self._ask(method, path, content)
            except httpx.RequestError as error:
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


class _InTime(threading.local):
    """Gives the head of an answer, from when all is sent, and then its body so many seconds each. httpx itself bounds
    each pause alone, and so not what never ends. A thread reads one answer at a time, so each has an end of its own."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, math.inf

    def hear(self, event: str, facts: Mapping[str, Any]) -> None:
        """What httpcore tells while a request is made."""
        if event.endswith(("receive_response_headers.started", "receive_response_body.started")):
            self._end = time.monotonic() + self._seconds
        elif event.endswith("connect_tcp.started"):
            self._end = math.inf  # a proxy may be asked first
        elif event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._bound(facts["return_value"])

    def _bound(self, stream: Any) -> None:
        """Let a new connection read until the end of whatever is read from it, and no longer."""
        read = stream.read

        def read_in_time(most: int, timeout: float) -> Any:
            left = self._end - time.monotonic()
            if left <= 0:
                raise httpcore.ReadTimeout("The answer did not end in time.")
            return read(most, min(timeout, left))

        stream.read = read_in_time
