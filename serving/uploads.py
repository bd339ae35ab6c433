"""Reading files and JSON out of requests. Nothing in a form makes the service open an address or unpickle anything."""

import json
import logging
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.problems import Problem

MULTIPART = "multipart/form-data"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, UTF-8 not
_ADDRESS = ("http:", "https:", "ftp:", "file:", "s3:", "gs:", "data:")
_LATER = {"Retry-After": "5"}  # seconds
_log = logging.getLogger("blastwatch.service")


class _Parser(MultiPartParser):
    """Starlette's, which takes a form that ends early for a shorter one; here that is a `Problem`."""

    ended = False

    def on_end(self) -> None:
        """Called at the closing boundary; what follows it is passed over (RFC 2046, 5.1.1)."""
        self.ended = True

    async def parse(self) -> FormData:
        async with aclosing(self._to_the_end(self.stream)) as self.stream:
            return await super().parse()  # closes its files where the stream raises

    async def _to_the_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self.ended:
            raise Problem(
                "form-unreadable", f"Expected a complete {MULTIPART} body but it ends before its closing boundary."
            )


async def read_files(request: Request, field: str, *, at_most: int) -> FormData:
    """Parse a form that holds nothing but files under one field name; close it when done.

    Returns:
        The form; `form.getlist(field)` are its `UploadFile`s, at least one, in the order sent.

    Raises:
        Problem: naming what was wrong.
    """
    require_media_type(request, MULTIPART)
    try:
        async with aclosing(request.stream()) as stream:
            parser = _Parser(request.headers, stream, max_files=at_most, max_fields=10, max_part_size=4096)
            if at_most == 1:
                parser.spool_max_size = 0  # in memory, however large: the body is bounded, a disk may be full
            form = await parser.parse()
    except MultiPartException as error:
        raise _refused(error.message, field, at_most) from error
    except UnicodeError as error:  # by a charset that reads nothing
        raise Problem("form-unreadable", f"Expected a {MULTIPART} body in UTF-8: it cannot be read as text.") from error
    except OSError as error:
        _log.error("Request %s: its files cannot be kept in the temporary folder: %s", request.state.request_id, error)
        raise Problem("no-room", "The files of this call cannot be kept just now.", headers=_LATER) from error
    fault = _fault(form, field, at_most)
    if fault is not None:
        await form.close()
        raise fault
    return form


def _refused(words: str, field: str, at_most: int) -> Problem:
    """The problem for what Starlette's parser says of a form that it refuses."""
    if "Too many files" in words:
        return Problem("too-many-files", f"Expected at most {at_most} files under `{field}`.")
    if "Part exceeded" in words:  # of text; no file is too large for it
        return Problem("not-a-file", f'Expected a file in `{field}` but got a part without `filename="..."`.')
    return Problem("form-unreadable", f"Expected a complete {MULTIPART} body: {words}")


def _fault(form: FormData, field: str, at_most: int) -> Problem | None:
    for name, value in form.multi_items():
        if name != field:
            shown = name[:64].encode("ascii", "backslashreplace").decode()
            return Problem("unexpected-field", f"Expected the field `{field}` but got `{shown}`.")
        if isinstance(value, str):
            if value.lstrip().lower().startswith(_ADDRESS):
                return Problem("address-refused", f"Expected a file in `{field}` but got an address.")
            return Problem("not-a-file", f"Expected a file in `{field}` but got text (is its file name missing?).")
    count = len(form.getlist(field))
    if count == 0:
        return Problem("missing-file", f"Expected a file in the field `{field}` but the form is empty.")
    if count > at_most:
        return Problem("too-many-files", f"Expected at most {at_most} files under `{field}` but got {count}.")
    return None


def files(form: FormData, field: str) -> list[UploadFile]:
    """The files of a form that `read_files` let through."""
    return [value for value in form.getlist(field) if isinstance(value, UploadFile)]


def require_media_type(request: Request, wanted: str) -> None:
    """Refuse every other content type, among them all that carry pickles (CVE-2025-27520, CVE-2025-32375)."""
    got = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if got != wanted:
        raise Problem("media-type", f"Expected the content type {wanted} but got {got[:64] or 'none'}.")


async def read_object(request: Request, names: tuple[str, ...]) -> dict[str, str]:
    """A JSON object with exactly these members, each a text.

    Raises:
        Problem: naming what was wrong.
    """
    require_media_type(request, "application/json")
    try:
        value: Any = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Problem("json-unreadable", "Expected a JSON object but the body is no JSON.") from error
    if not isinstance(value, dict) or set(value) != set(names) or not all(isinstance(v, str) for v in value.values()):
        raise Problem("json-unreadable", f"Expected a JSON object with the texts {' and '.join(names)}, no more.")
    if any(_LONE_SURROGATE.search(text) for text in value.values()):
        raise Problem("json-unreadable", "Expected texts of whole characters but got half of a surrogate pair.")
    return value
