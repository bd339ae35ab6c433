"""What the two clients read of an answer that says that all went well. Another server may say so too."""

from collections.abc import Iterable

import httpx

from blastwatch.addresses import shown
from blastwatch.errors import ServiceError
from serving.calls import Answer, kind_of

# The members that an answer has at least:
TOLD_OF_PREDICTION = ("label", "probability", "decision", "model")
TOLD_OF_MODEL = ("version", "digest")
TOLD_OF_LABEL = ("id", "label")
PNG = b"\x89PNG\r\n\x1a\n"


def read_json(response: httpx.Response, url: str, members: Iterable[str]) -> Answer:
    """The object of an answer, which has these members at least.

    Raises:
        ServiceError: another server answers at that address.
    """
    try:
        value = response.json()
    except ValueError as error:
        raise _another(response, url, f"JSON but got {response.headers.get('content-type', 'nothing')}") from error
    if not isinstance(value, dict):
        raise _another(response, url, f"an object of JSON but got {kind_of(value)}")
    if missing := [name for name in members if name not in value]:
        raise _another(response, url, f"an answer with {', '.join(missing)} but got none")
    return value


def read_results(response: httpx.Response, url: str, images: int) -> list[Answer]:
    """The results of a batch of so many images. Raises as `read_json`."""
    results = read_json(response, url, ()).get("results")
    if not isinstance(results, list):
        raise _another(response, url, f"a list of results but got {kind_of(results)}")
    others = [kind_of(result) for result in results if not isinstance(result, dict)]
    if others or len(results) != images:
        came = f"{others[0]} among them" if others else len(results)
        raise _another(response, url, f"{images} results, each an object, but got {came}")
    return results


def read_png(response: httpx.Response, url: str) -> bytes:
    """The heat map of an answer. Raises as `read_json`."""
    if not response.content.startswith(PNG):
        raise _another(response, url, f"a PNG but got {response.headers.get('content-type', 'nothing')}")
    return response.content


def _another(response: httpx.Response, url: str, what: str) -> ServiceError:
    """The error for an answer that no prediction service gives.

    Args:
        what: was expected and came.
    """
    return ServiceError(
        f"Expected {what} from {shown(url)}. Is this the address of the prediction service?",
        status=response.status_code,
    )
