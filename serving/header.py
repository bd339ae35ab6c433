"""One header of a request, as Starlette's `Headers` gives it. That copies the list of all headers when it is made and
raises an error for each that is missing, and a dozen are asked for at the door of every request."""

from starlette.types import Scope


def header(scope: Scope, name: bytes, missing: str = "") -> str:
    """The first header of this name, which is given in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return missing


def has_header(scope: Scope, name: bytes) -> bool:
    """Whether there is a header of this name, which is given in lower case."""
    return any(key == name for key, _ in scope["headers"])
