"""Reading files and JSON out of requests. Nothing in a form makes the service open an address or unpickle anything."""

import functools
import json
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.problems import Problem

MULTIPART = "multipart/form-data"
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # JSON may hold both; PostgreSQL takes no NUL, UTF-8 no half of a pair
_ADDRESS = ("http:", "https:", "ftp:", "file:", "s3:", "gs:", "data:")
_LATER = {"Retry-After": "5"}  # seconds
_SMALL_PIECE = 4096  # bytes
# Content encodings; any other word in their place, as some programs have it, says nothing of the body.
_PACKED = {"gzip", "x-gzip", "compress", "x-compress", "deflate", "br", "zstd"}
_TO_QUOTE = re.compile(rb'["\\]')
# What the parser says of a body that does not begin as it should.
_BEGINNING = ("Expected boundary character", "Did not find CR at end of boundary", "Did not find LF at end of boundary")
_log = logging.getLogger("blastwatch.service")


class _Parser(MultiPartParser):
    """Starlette's, which takes a form that ends early for a shorter one; here that is a `Problem`."""

    ended = False

    @property
    def part_name(self) -> str:
        """The field name of the part that is being read."""
        return self._current_part.field_name

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


Parser = TypeVar("Parser", bound=_Parser)


class _OneParser(_Parser):
    """Keeps the bytes of its one file as they come, to be joined once. In memory, however large: the body is bounded, a
    disk may be full."""

    def __init__(self, headers: Headers, stream: AsyncGenerator[bytes, None], **limits: int) -> None:
        super().__init__(headers, stream, max_files=1, **limits)
        self.pieces: list[bytes | bytearray] = []

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Called for each piece of a part: a whole chunk of the body for the most, but as little as a byte."""
        if self._current_part.file is None:
            super().on_part_data(data, start, end)
        elif end - start >= _SMALL_PIECE:
            self.pieces.append(data[start:end])
        else:  # one by one those of a caller who sends two bytes at a time would take twenty times their size
            if not self.pieces or not isinstance(self.pieces[-1], bytearray):
                self.pieces.append(bytearray())
            self.pieces[-1] += data[start:end]


async def read_file(request: Request, field: str) -> bytes:
    """The one file of a form that holds nothing else, under this field name. Raises as `read_files`."""
    form, parser = await _parsed(request, field, 1, _OneParser)
    await form.close()
    return b"".join(parser.pieces)


async def read_files(request: Request, field: str, *, at_most: int) -> FormData:
    """Parse a form that holds nothing but files under one field name; close it when done.

    Returns:
        The form; `form.getlist(field)` are its `UploadFile`s, at least one, in the order sent.

    Raises:
        Problem: naming what was wrong.
    """
    make = functools.partial(_Parser, max_files=at_most)
    form, _ = await _parsed(request, field, at_most, make)
    return form


async def _parsed(
    request: Request, field: str, at_most: int, make: Callable[..., Parser]
) -> tuple[FormData, Parser]:  # fmt: skip
    require_media_type(request, MULTIPART)
    headers = _with_boundary_alone(request)
    try:
        async with aclosing(request.stream()) as stream:
            parser = make(headers, stream, max_fields=10, max_part_size=4096)
            form = await parser.parse()
    except MultiPartException as error:
        raise _refused(error, parser, field, at_most) from error
    except OSError as error:
        _log.error("Request %s: its files cannot be kept in the temporary folder: %s", request.state.request_id, error)
        raise Problem("no-room", "The files of this call cannot be kept just now.", headers=_LATER) from error
    fault = _fault(form, field, at_most)
    if fault is not None:
        await form.close()
        raise fault
    return form, parser


def _with_boundary_alone(request: Request) -> Headers:
    """The content type of a form as the parser needs it. Its names are ASCII, whatever charset it tells: Python keeps
    every name of one that it is asked for, known or not, for ever."""
    _, given = parse_options_header(request.headers["content-type"])
    boundary = given.get(b"boundary", b"")
    if not boundary:
        raise Problem("form-unreadable", f"Expected the content type {MULTIPART} with a boundary but got none.")
    quoted = _TO_QUOTE.sub(rb"\\\g<0>", boundary)
    return Headers(raw=[(b"content-type", b'%s; boundary="%s"' % (MULTIPART.encode(), quoted))])


def _refused(error: MultiPartException, parser: _Parser, field: str, at_most: int) -> Problem:
    """The problem for what Starlette's parser says of a form that it refuses."""
    words = error.message
    if "Too many files" in words:
        names = [*(name for name, _ in parser.items), parser.part_name]
        return _unexpected(names, field) or _too_many(field, at_most)
    if "Part exceeded" in words:  # of text; no file is too large for it
        return Problem("not-a-file", f'Expected a file in `{field}` but got a part without `filename="..."`.')
    if error.__cause__ is not None:  # the parser below it has the particulars
        words = str(error.__cause__)
    if words.startswith(_BEGINNING):
        return Problem(
            "form-unreadable",
            f"Expected a {MULTIPART} body that begins with its boundary, and whose lines end in CR LF.",
        )
    return Problem("form-unreadable", f"Expected a {MULTIPART} body that can be read but: {words.rstrip('.')}.")


def _too_many(field: str, at_most: int) -> Problem:
    wanted = "one file" if at_most == 1 else f"at most {at_most} files"
    return Problem("too-many-files", f"Expected {wanted} under `{field}` but got more.")


def _unexpected(names: Iterable[str], field: str) -> Problem | None:
    """The problem of the first part of a form that has another name."""
    for name in names:
        if name != field:
            shown = name[:64].encode("ascii", "backslashreplace").decode()
            return Problem("unexpected-field", f"Expected the field `{field}` but got `{shown}`.")
    return None


def _fault(form: FormData, field: str, at_most: int) -> Problem | None:
    for name, value in form.multi_items():
        if unexpected := _unexpected([name], field):
            return unexpected
        if isinstance(value, str):
            if value.lstrip().lower().startswith(_ADDRESS):
                return Problem("address-refused", f"Expected a file in `{field}` but got an address.")
            return Problem("not-a-file", f"Expected a file in `{field}` but got text (is its file name missing?).")
    count = len(form.getlist(field))
    if count == 0:
        return Problem("missing-file", f"Expected a file in the field `{field}` but the form is empty.")
    return _too_many(field, at_most) if count > at_most else None


def files(form: FormData, field: str) -> list[UploadFile]:
    """The files of a form that `read_files` let through."""
    return [value for value in form.getlist(field) if isinstance(value, UploadFile)]


def require_media_type(request: Request, wanted: str) -> None:
    """Refuse every other content type, among them all that carry pickles (CVE-2025-27520, CVE-2025-32375), and what is
    compressed: nothing here unpacks it."""
    told = {word.strip() for word in request.headers.get("content-encoding", "").lower().split(",")}
    if packed := sorted(told & _PACKED):
        raise Problem("media-type", f"Expected no compressed body but got the content encoding {', '.join(packed)}.")
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
    if any(_NO_TEXT.search(text) for text in value.values()):
        raise Problem("json-unreadable", "Expected texts of whole characters but got a NUL or half a surrogate pair.")
    return value
