"""Every way in which the service says no: problem documents (RFC 9457), named by what was wrong.

The table is the whole list. `GET /problems/NAME` explains one, and `type` of a document points there.
"""

from dataclasses import dataclass
from typing import Any

from blastwatch.errors import ImageRejected

MEDIA_TYPE = "application/problem+json"
CALLER_GONE = 499
"""Status of a request whose connection ended before its answer. No standard has one; nginx takes this number."""
RATE_LIMITED = "rate-limited"
"""Name of the problem of a caller beyond its own limit, which `overloaded` with the same status is not."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One row: a stable name, the HTTP status, a title that never changes, and what the caller can do."""

    name: str
    status: int
    title: str
    advice: str


_UPLOAD = "Send multipart/form-data with the image as a file, for instance: curl -F image=@cell.bmp URL/v1/predict"

TABLE: tuple[Kind, ...] = tuple(
    Kind(name=name, status=status, title=title, advice=advice)
    for name, status, title, advice in (
        ("image-empty", 422, "The image file is empty", "Send the bytes of an image."),
        ("image-not-an-image", 415, "The file is not an image", "Send BMP, JPEG, PNG, TIFF or WebP."),
        ("image-format", 415, "The image format is not accepted", "Send BMP, JPEG, PNG, TIFF or WebP."),
        ("image-mode", 422, "The image's colours cannot be read", "Send 8 bits a channel, RGB or grey, opaque."),
        ("image-frames", 422, "The file holds several images", "Send one cell a file."),
        ("image-truncated", 422, "The image is incomplete or damaged", "Send the whole file again."),
        ("image-too-large", 413, "The image is too large", "Send one cell, not a field or a slide."),
        ("image-too-small", 422, "The image is too small", "Send the cell at its original scale."),
        ("missing-file", 400, "The file is missing", _UPLOAD),
        ("unexpected-field", 400, "The form has a field that is not known", _UPLOAD),
        ("not-a-file", 400, "A file field holds text", _UPLOAD),
        ("address-refused", 400, "Addresses are not fetched", "Send the file itself; the service opens no addresses."),
        ("too-many-files", 413, "Too many files in one call", "Send fewer files a call."),
        ("form-unreadable", 400, "The form cannot be read", _UPLOAD),
        ("json-unreadable", 400, "The JSON cannot be read", 'Send {"id": ID, "label": "all" or "hem"}.'),
        ("label-refused", 422, "The label cannot be stored", 'Send {"id": ID, "label": "all" or "hem"}.'),
        ("prediction-unknown", 404, "There is no such prediction", "Take the `id` of the service's answer."),
        (
            "media-type",
            415,
            "The media type is not accepted",
            "Send an image as a form (curl -F image=@cell.bmp URL/v1/predict), a label as application/json, and both "
            "uncompressed.",
        ),
        ("body-too-large", 413, "The request is too large", "Send a smaller image, or fewer images a call."),
        ("key-missing", 401, "An API key is needed", "Send Authorization: Bearer KEY; the operator makes keys."),
        ("key-refused", 401, "The API key is not good", "Ask the operator: it is unknown here, or was revoked."),
        ("not-permitted", 403, "The API key may not do this", "Ask the operator for a key with the permission."),
        (
            "origin-refused",
            403,
            "Without a key no other name or site is answered",
            "Ask at the address that `blastwatch serve` printed; for others the operator makes keys.",
        ),
        ("keys-unavailable", 503, "The API keys cannot be read", "Tell the operator; the log has the reason."),
        ("patients-unavailable", 503, "Patients cannot be stored", "Tell the operator; the log has the reason."),
        (
            "signature-refused",
            401,
            "The message is not signed as it must be",
            "Sign it with the secret both ends know.",
        ),
        ("header-too-long", 400, "A header is too long", "Send a shorter name of the caller or the patient."),
        ("not-found", 404, "There is no such address", "The addresses are listed under /docs."),
        ("method-not-allowed", 405, "The method is not allowed here", "The methods are listed under /docs."),
        ("bad-request", 400, "The request cannot be read", "The requests are described under /docs."),
        (RATE_LIMITED, 429, "This caller sends too much", "Wait as long as Retry-After says and send it again."),
        ("overloaded", 429, "The service is overloaded", "Wait as long as Retry-After says and send it again."),
        ("no-room", 503, "The service has no room for the files", "Wait, or send fewer or smaller images a call."),
        ("timeout", 504, "The answer took too long", "Send fewer images a call."),
        ("store-unavailable", 503, "The database of predictions is away", "Wait and send it again."),
        ("time-unreadable", 400, "The time cannot be read", "Send ISO 8601, for instance at=2026-11-17T14:05Z."),
        ("history-broken", 503, "The history is not what was signed", "Look: blastwatch registry verify."),
        ("history-unavailable", 503, "The history is not at hand", "Ask the registry: blastwatch registry history."),
        ("no-history", 404, "There is no history here", "Ask where the registry is: blastwatch registry history."),
        ("internal", 500, "The service failed", "Tell its operator the request id; the log has the reason."),
    )
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in TABLE}

assert all(f"image-{reason}" in KINDS for reason in ImageRejected.REASONS)


class Problem(Exception):  # not a BlastwatchError: it never leaves the service
    """Raised anywhere below a route; becomes the HTTP answer.

    Args:
        name: one of `KINDS`.
        detail: what was expected and what came; nothing of the inside.
        headers: further headers of the answer, for instance Retry-After.
    """

    def __init__(self, name: str, detail: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.kind = KINDS[name]
        self.detail = detail
        self.headers = headers or {}

    def document(self, *, instance: str, request_id: str) -> dict[str, Any]:
        """The JSON of RFC 9457, with what the caller can do and the request id beside it."""
        return {
            "type": f"/problems/{self.kind.name}",
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
            "advice": self.kind.advice,
            "instance": instance,
            "request_id": request_id,
        }


def of_image(error: ImageRejected) -> Problem:
    """The problem that says why an image was refused."""
    return Problem(f"image-{error.reason}", str(error))


def no_address(path: str) -> Problem:
    """The problem of an address that is none of the service's."""
    return Problem("not-found", f"There is nothing at {path[:128]}.")


def no_method(method: str, allowed: str) -> Problem:
    """The problem of a method that an address does not take; `allowed` are those it takes, with commas, or ""."""
    detail = f"Expected {allowed or 'another method'} but got {method}."
    return Problem("method-not-allowed", detail, headers={"Allow": allowed} if allowed else {})


class Overloaded(Exception):
    """More cells wait than can be answered in time; `retry_after` in whole seconds."""

    def __init__(self, *, retry_after: int, waiting: int) -> None:
        super().__init__(f"{waiting} cells wait")
        self.retry_after = retry_after
        self.waiting = waiting

    def problem(self) -> Problem:
        return Problem(
            "overloaded",
            f"Expected an answer in time but {self.waiting} cells wait already. Try again in {self.retry_after} s.",
            headers={"Retry-After": str(self.retry_after)},
        )
