"""What a caller says of itself and of the cell, in headers: who it is, and whose cell it is."""

import logging
from pathlib import Path

from starlette.requests import Request
from starlette.types import Scope

from blastwatch.errors import BlastwatchError
from monitoring.pseudonyms import Pseudonyms
from serving.canary import CALLER_HEADER, LONGEST_HEADER, PATIENT_HEADER
from serving.header import header
from serving.problems import Problem

_CALLER, _PATIENT = CALLER_HEADER.lower().encode(), PATIENT_HEADER.lower().encode()
_NOT_ANSWERED = f"The key in {PATIENT_HEADER} cannot be hashed just now, so the call was not answered."
_log = logging.getLogger("blastwatch.service")


def check_headers(scope: Scope) -> None:
    """Raise the `Problem` of a header that is longer than /docs.json allows."""
    for name, sent in ((CALLER_HEADER, _CALLER), (PATIENT_HEADER, _PATIENT)):
        length = len(header(scope, sent))
        if length > LONGEST_HEADER:
            raise Problem("header-too-long", f"Expected at most {LONGEST_HEADER} bytes in {name} but got {length}.")


def caller_of(scope: Scope) -> str:
    """The key by which a caller stays in the canary or out of it: its header, else its address."""
    client = scope.get("client")  # host and port
    return header(scope, _CALLER) or (str(client[0]) if client else "")


class Callers:
    """Reads the headers; `salt` is the file of the patients' salt."""

    def __init__(self, salt: Path) -> None:
        self._pseudonyms = Pseudonyms(salt)
        self._said = False

    def patient(self, request: Request) -> str:
        """The hashed key of the patient whose cells these are, "" where the caller gave none.

        Raises:
            Problem: the salt cannot be had. Stored without its patient a cell would be found by no `store forget`, and
                no later call could mend it. The log has the reason, once.
        """
        try:
            found = self._pseudonyms(header(request.scope, _PATIENT))
        except BlastwatchError as error:
            if not self._said:
                _log.error("Every request that names a patient is refused: %s", error)
                self._said = True
            raise Problem("patients-unavailable", _NOT_ANSWERED, headers={"Retry-After": "5"}) from error
        return found
