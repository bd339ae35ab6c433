"""The client of the prediction service for asyncio: the same calls as `serving.client`, each awaited.

>>> from serving.async_client import AsyncClient
>>> async def ask(paths):                                    # doctest: +SKIP
...     async with AsyncClient("http://127.0.0.1:3000") as client:
...         return [answer["decision"] async for answer in client.predict_many(paths)]
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from blastwatch.errors import DataError, ServiceError
from blastwatch.http_environment import usable_environment
from serving.answers import TOLD_OF_LABEL, TOLD_OF_MODEL, TOLD_OF_PREDICTION, read_json, read_png, read_results
from serving.calls import (
    AT_ONCE,
    CONNECTIONS,
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


class AsyncClient:
    """Talks to one service over kept connections, from one event loop. Arguments as of `serving.client.Client`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        timeout: float = TIMEOUT,
        attempts: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        check_positive(attempts=attempts)
        self.url = url.rstrip("/")
        self._attempts = attempts
        self._timeout = timeout
        # Hundreds of calls may be made at once. They wait here: the pool of httpx goes through all that wait in it with
        # each that comes or goes.
        self._turn = asyncio.Semaphore(CONNECTIONS)
        how = connection(self.url, api_key=api_key, timeout=timeout)
        with usable_environment():
            self._http = httpx.AsyncClient(transport=transport, event_hooks={"response": [_refuse_redirect]}, **how)

    async def predict(self, image: Image, *, patient: str = "", caller: str = "") -> Answer:
        """The answer of /v1/predict for one cell. Arguments and errors as of `Client.predict`."""
        headers = named(patient=patient, caller=caller)
        return await self._prediction(image, headers)

    async def predict_many(
        self, images: Iterable[Image], *, at_once: int = AT_ONCE, patient: str = "", caller: str = ""
    ) -> AsyncIterator[Answer | ServiceError | DataError]:
        """For each cell, in order, its answer or the error that stands for it.

        The first comes once `at_once` images were asked for, or all. Of images that come one by one, as from a
        microscope, ask for each with `predict`.

        Args:
            images: as many as one likes; no more of them than `at_once` are in memory.
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
        asked: deque[asyncio.Task[Answer | ServiceError | DataError]] = deque()
        try:
            for image in images:
                asked.append(asyncio.create_task(self._answer_or_error(image, headers)))
                if len(asked) >= at_once:
                    yield broken.count(await asked.popleft())
            while asked:
                yield broken.count(await asked.popleft())
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def predict_batch(self, images: Sequence[Image], *, patient: str = "", caller: str = "") -> list[Answer]:
        """For each cell of one patient, in order, its answer or its problem (which has a `status`). As `predict`.

        For no cell nothing is asked.
        """
        check_several(images)
        headers = named(patient=patient, caller=caller)
        parts = [("images", await _read(image)) for image in images]
        if not parts:
            return []
        path = "/v1/predict_batch"
        sent = await self._send("POST", path, files=parts, headers=headers)
        return read_results(sent, f"{self.url}{path}", len(parts))

    async def explain(self, image: Image, *, caller: str = "") -> bytes:
        """The heat map over one cell, as PNG. Arguments and errors as of `Client.predict`."""
        headers = named(caller=caller)
        path = "/v1/explain"
        sent = await self._send("POST", path, files=[("image", await _read(image))], headers=headers)
        return read_png(sent, f"{self.url}{path}")

    async def model(self) -> Answer:
        """The model version that serves. Raises as `Client.predict`."""
        return await self._json("GET", "/v1/model", TOLD_OF_MODEL)

    async def add_label(self, prediction_id: str, label: str) -> None:
        """Tell the truth (`all` or `hem`) that came later. Raises as `Client.predict`."""
        await self._json("POST", "/v1/labels", TOLD_OF_LABEL, json={"id": prediction_id, "label": label})

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _answer_or_error(self, image: Image, headers: dict[bytes, bytes]) -> Answer | ServiceError | DataError:
        try:
            return await self._prediction(image, headers)
        except (ServiceError, DataError) as error:
            return error

    async def _prediction(self, image: Image, headers: dict[bytes, bytes]) -> Answer:
        files = [("image", await _read(image))]
        return await self._json("POST", "/v1/predict", TOLD_OF_PREDICTION, files=files, headers=headers)

    async def _json(self, method: str, path: str, members: tuple[str, ...], **content: Any) -> Answer:
        return read_json(await self._send(method, path, **content), f"{self.url}{path}", members)

    async def _ask(self, method: str, path: str, content: dict[str, Any]) -> httpx.Response:
        """One request and its whole answer. httpx itself bounds each pause alone, and so not what never ends: here the
        head of the answer, from when all is sent, and then its body have `timeout` seconds each."""
        clock = asyncio.get_running_loop()

        async def told(event: str, _facts: Mapping[str, Any]) -> None:
            if event.endswith("receive_response_headers.started"):  # of httpcore: before it a slow upload may last
                bound.reschedule(clock.time() + self._timeout)

        async with self._turn:
            try:
                async with (
                    asyncio.timeout(None) as bound,
                    self._http.stream(method, path, extensions={"trace": told}, **content) as response,
                ):
                    bound.reschedule(clock.time() + self._timeout)
                    await response.aread()
            except TimeoutError as error:
                raise httpx.ReadTimeout("The answer did not end in time.") from error
        return response

    async def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        retries = Retries(self._attempts)
        while True:
            try:
                response = await self._ask(method, path, content)
            except httpx.RequestError as error:
                pause = retries.pause_after(error)
                if pause is None:
                    raise unanswered(self.url, error, self._timeout) from error
            else:
                pause = retries.pause(response)
                if pause is None:
                    return response
            await asyncio.sleep(pause)


async def _refuse_redirect(response: httpx.Response) -> None:
    refuse_redirect(response)


async def _read(image: Image) -> tuple[str, bytes, str]:
    """One part of the form; a file is read beside the event loop."""
    return await asyncio.to_thread(file_part, image)
