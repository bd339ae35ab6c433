"""Reading files and JSON out of requests. Nothing in a form makes the service open an address or unpickle anything."""

import json
import re
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from serving.problems import Problem

MULTIPART = "multipart/form-data"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON may hold one, UTF-8 not
_ADDRESS = ("http:", "https:", "ftp:", "file:", "s3:", "gs:", "data:")


async def read_files(request: Request, field: str, *, at_most: int) -> FormData:
    """Parse a form that holds nothing but files under one field name; close it when done.

    Returns:
        The form; `form.getlist(field)` are its `UploadFile`s, at least one, in the order sent.

    Raises:
        Problem: naming what was wrong.
    """
    require_media_type(request, MULTIPART)
    try:
        form = await request.form(max_files=at_most, max_fields=10, max_part_size=4096)
    except HTTPException as error:  # Starlette's word for a form that its parser refuses
        if "Too many files" in error.detail:
            raise Problem("too-many-files", f"Expected at most {at_most} files under `{field}`.") from error
        raise Problem("form-unreadable", f"Expected a complete {MULTIPART} body: {error.detail}") from error
    except UnicodeError as error:  # by a charset that reads nothing
        raise Problem("form-unreadable", f"Expected a {MULTIPART} body in UTF-8: it cannot be read as text.") from error
    fault = _fault(form, field, at_most)
    if fault is not None:
        await form.close()
        raise fault
    return form


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
